#!/bin/bash
# tools/speed.sh [--no-install] - names and installs what is missing, builds the release, and prints how
# fast it is on this machine, as ratios measured in one run: snapshots against QEMU's background-snapshot
# into `zstd -1 -T0`, restores against an empty start of the same QEMU. The accelerator is named. It
# takes about a minute and asserts nothing; let nothing else run beside it.
#
#   --no-install  install nothing: name what is missing and exit 2
#
# SPEED_RUNS=N in the environment: N runs of each instead of 3.

set -eu
# shellcheck source=tools/lib.sh
. "$(dirname "$0")/lib.sh"

parse_install_option "$@"
[ ${#words[@]} = 0 ] || die 2 "unknown argument '${words[0]}' (see --help)"
require_packages "${packages_build[@]}" "${packages_guest[@]}"
cd "$top"
mkdir -p build
{
    cmake --preset release && cmake --build --preset release --parallel "$(nproc)"
} >build/speed.log 2>&1 || {
    tail -n 30 build/speed.log >&2
    die 1 "the build failed; the whole log is build/speed.log"
}
tools/guest.sh
VMSNAP_BUILD=$top/build/release exec /usr/bin/python3 -B tests/perf/speed.py speed
