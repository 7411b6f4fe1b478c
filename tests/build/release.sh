#!/bin/bash
# release.sh BUILD_DIR - the release preset builds without a warning, is hardened, holds no test
# hook, and installs what it should where it should.
set -eu
build=$1/release # not the user's build/release: warnings are errors here
scratch=$1/release-install
cd "$(dirname "$0")/../.."

fail() {
    echo "release: $*"
    exit 1
}

cmake --preset release -B "$build" -DVMSNAP_WERROR=ON
cmake --build "$build" --parallel 2
program=$build/vmsnap
[ -x "$program" ] || fail "$program is not there"
[ "$("$program" --version)" = "vmsnap $(sed -n 's/^project(vmsnap VERSION \([0-9.]*\).*/\1/p' \
    CMakeLists.txt)" ] || fail "--version does not say the project's version"

if grep -qaE 'VMSNAP_(PAUSE_AT|KILL_AT|BREAK|FAIL_AT|MASK_FEATURES)' "$program"; then
    fail "test hooks are in a release"
fi
readelf -hW "$program" | grep -q 'Type: *DYN' || fail "not position-independent"
readelf -dW "$program" | grep -q 'FLAGS.*BIND_NOW' || fail "symbols are bound lazily"
readelf -lW "$program" | grep -q GNU_RELRO || fail "no RELRO"
readelf -sW "$program" | grep -q __stack_chk_fail || fail "no stack protector"
readelf -sW "$program" | grep -q '__[a-z]*printf_chk' || fail "no _FORTIFY_SOURCE"

rm -rf "$scratch"
DESTDIR=$scratch cmake --install "$build" --prefix /usr >/dev/null
installed=$(cd "$scratch" && find . -type f | sort | tr '\n' ' ')
expected="./usr/bin/vmsnap ./usr/lib/systemd/system/vmsnap-listen@.service"
expected+=" ./usr/lib/systemd/system/vmsnap-restore@.service ./usr/share/bash-completion/completions/vmsnap"
expected+=" ./usr/share/man/man1/vmsnap.1 "
[ "$installed" = "$expected" ] || fail "installed: $installed"
unit=$scratch/usr/lib/systemd/system/vmsnap-restore@.service
grep -q '^ExecStart=/usr/bin/vmsnap ' "$unit" || fail "the unit runs: $(grep ExecStart "$unit")"
