# shellcheck shell=bash disable=SC2034
# lib.sh - what tools/*.sh share; sourced by bash scripts, never run.
#
#     . "$(dirname "$0")/lib.sh"
#     parse_install_option "$@"       # sets install=yes|no, leaves the other words in "${words[@]}"
#     require_packages "${packages_build[@]}" "${packages_test[@]}"
#
# Packages are Debian 12's. apt's own configured sources are used.

# The clone. Scripts touch nothing outside it but packages.
top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# To build vmsnap.
packages_build=(gcc libc6-dev make cmake pkg-config
    libzstd-dev libxxhash-dev libjansson-dev libaio-dev libcurl4-openssl-dev)

# To run a guest in QEMU: the VMM, what the guest is made of, and the scripts that drive it.
packages_guest=(qemu-system-x86 binutils busybox-static cpio zstd python3)

# To compare and to plot: the benchmark.
packages_bench=(zstd python3-zstandard python3-matplotlib)

# To test: the unit test library, the independent image reader's modules, the checkers.
packages_test=(strace libcriterion-dev python3-zstandard python3-xxhash gdb procps
    git clang-format clang-tidy cppcheck shellcheck groff-base systemd)

say() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

die() { # die EXIT_CODE WORDS...
    local code=$1
    shift
    say "$*"
    exit "$code"
}

# Sets `install` and `words` from a script's arguments. --help prints the script's head comment.
parse_install_option() {
    install=yes
    words=()
    local word
    for word in "$@"; do
        case $word in
        --no-install) install=no ;;
        -h | --help)
            sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) words+=("$word") ;;
        esac
    done
}

is_debian() {
    [ -r /etc/os-release ] && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null &&
        (# shellcheck source=/dev/null
            . /etc/os-release && [[ " ${ID:-} ${ID_LIKE:-} " == *" debian "* ]])
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# Ends with exit code 2 unless the packages are there: names the missing ones and, as root on
# Debian and without --no-install, installs them first.
require_packages() {
    local package missing=()
    if ! is_debian; then
        say "this is not Debian. Install what these Debian packages hold, then use cmake and ctest:"
        die 2 "  $*"
    fi
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    if [ "$(id -u)" != 0 ]; then
        say "not root: attaching to a VM needs CAP_SYS_PTRACE, and the guests need /dev/kvm"
        [ ${#missing[@]} = 0 ] || say "also to install: apt-get install ${missing[*]}"
        die 2 "run it as root"
    fi
    [ ${#missing[@]} = 0 ] && return
    if [ "$install" = no ]; then
        die 2 "to install: apt-get install ${missing[*]}"
    fi
    say "installing: ${missing[*]}"
    install_packages "${missing[@]}"
}

install_packages() {
    local log=$top/build/install.log
    mkdir -p "$top/build"
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get -q update && apt-get -q -y --no-install-recommends install "$@"; } \
        </dev/null >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        die 1 "the packages could not be installed; the whole log is $log"
    fi
}
