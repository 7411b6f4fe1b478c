#!/bin/bash
# tools/test.sh [--all] [--no-install] - names and installs what is missing, builds, and runs the
# tests: at most 20 minutes on 2 CPUs. Closes with CTest's summary; exit code 0 only if all passed.
#
#   --all         also what is labelled `slow`
#   --no-install  install nothing: name what is missing and exit 2
#
# As non-root, or off Debian, it prints what to install and exits 2. Nothing outside the clone is
# touched but packages. One kind of test alone: ctest --test-dir build/dev -L unit

set -eu
# shellcheck source=tools/lib.sh
. "$(dirname "$0")/lib.sh"

parse_install_option "$@"
select=(-LE slow)
for word in "${words[@]}"; do
    case $word in
    --all) select=() ;;
    *) die 2 "unknown argument '$word' (see --help)" ;;
    esac
done

require_packages "${packages_build[@]}" "${packages_guest[@]}" "${packages_test[@]}"
cd "$top"

# Runs a step whose output only matters if it fails; it is kept in build/NAME.log.
step() { # step NAME COMMAND...
    local name=$1 log=$top/build/$1.log
    shift
    mkdir -p "$top/build"
    say "$name"
    if ! "$@" </dev/null >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        die 1 "'$name' failed; the whole log is $log"
    fi
}

step configure cmake --preset dev
step build cmake --build --preset dev --parallel 2
if [ -x tools/guest.sh ]; then
    step guest tools/guest.sh agent
fi

# The other builds (sanitizers, release), the formatter and the checkers are tests too: tests/build
# and tests/lint. A test that fails is tried once more and both tries are printed: live guests on a
# shared host meet time limits that say nothing of vmsnap.
exec ctest --test-dir build/dev --parallel 2 --repeat until-pass:2 --no-tests=error --output-on-failure "${select[@]}" \
    </dev/null
