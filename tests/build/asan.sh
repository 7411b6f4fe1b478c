#!/bin/bash
# asan.sh - the unit tests under AddressSanitizer and UndefinedBehaviorSanitizer.
set -eu
cd "$(dirname "$0")/../.."
cmake --preset asan
cmake --build --preset asan --parallel 2 >build/asan/build.log 2>&1 || {
    tail -n 40 build/asan/build.log
    exit 1
}
ctest --test-dir build/asan -L unit --no-tests=error --output-on-failure --parallel 2
