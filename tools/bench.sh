#!/bin/bash
# tools/bench.sh [--quick] [--rounds N] [--only NAME]... [--cold] [--out DIR] [--no-install]
#
# Names and installs what is missing, builds the release, and measures vmsnap beside everything that
# could be used instead, in turns in one run: QEMU's background-snapshot, stop-and-save, fork-and-dump,
# QEMU's load of all memory, a guest that was never away, floors that only resolve faults. Prints a
# table; leaves results.json, table.md and plots (SVG) in build/bench. It asserts nothing. Let nothing
# else run beside it.
#
#   (nothing)     4 GiB guests, up to 16 GiB in minivm, 3 rounds: at most 40 minutes
#   --quick       1 GiB guests, fewer workloads, one round: at most 5 minutes
#   --only NAME   one experiment, a wrong name lists them; `--only speed` is the everyday case, a minute;
#                 `--only restore` is all of the restore side, `--only firecracker` its page faults
#   --cold        what is restored is not in the page cache
#   --no-install  install nothing: name what is missing and exit 2

set -eu
# shellcheck source=tools/lib.sh
. "$(dirname "$0")/lib.sh"

parse_install_option "$@"
require_packages "${packages_build[@]}" "${packages_guest[@]}" "${packages_bench[@]}"
cd "$top"
mkdir -p build
{
    cmake --preset release && cmake --build --preset release --parallel "$(nproc)"
} >build/bench.log 2>&1 || {
    tail -n 30 build/bench.log >&2
    die 1 "the build failed; the whole log is build/bench.log"
}
tools/guest.sh
VMSNAP_BUILD=$top/build/release exec /usr/bin/python3 -B tools/bench/bench.py "${words[@]}"
