#!/bin/bash
# Makes the guest that the demo and the tests boot: Debian's cloud kernel, unpacked from its package,
# and an initramfs with busybox and the programs of tests/guest. Leaves in build/guest/:
#
#   vmlinuz  initramfs.gz   the Linux guest
#   boot.rom                the guest without an operating system (firmware image)
#   kernel-version
#
# With the word `agent` also
#
#   agent.gz                a further initramfs (to be appended to initramfs.gz) with Debian's
#                           qemu-guest-agent and the libraries it needs, those of this host
#
# Does only what is missing or older than its source; needs the network only for the kernel package,
# and the agent's, once. Installs nothing: without a tool it says which package has it, and exits 2.
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
source=$top/tests/guest
out=$top/build/guest
work=

say() {
    echo "guest.sh: $*" >&2
}

# need COMMAND PACKAGE...: collects in `missing` the package of a command that is not there.
missing=
need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}

check_tools() {
    need gcc gcc
    need ld binutils
    need cpio cpio
    need dpkg-deb dpkg
    need /bin/busybox busybox-static
    [ -e /usr/lib/x86_64-linux-gnu/libc.a ] || missing="$missing libc6-dev"
    if [ -z "$missing" ] && ldd /bin/busybox >/dev/null 2>&1; then
        missing=" busybox-static"
    fi
    [ -z "$missing" ] && return
    say "missing:$missing (apt-get install$missing)"
    exit 2
}

# fetch PACKAGE: downloads it into $work.
fetch() {
    say "fetching $1"
    (cd "$work" && apt-get download -q "$1" >"$work/apt.log" 2>&1) && return
    sed 's/^/  /' "$work/apt.log" >&2
    say "could not download $1 (network? outdated lists? try apt-get update)"
    exit 1
}

last=kernel/net/core/failover.ko # what was unpacked last, when there was more and more to unpack

# Fetches and unpacks the kernel package into build/guest/kernel (whole or not at all).
fetch_kernel() {
    [ -e "$out/kernel/done" ] && [ -e "$out/kernel/lib/modules/$(cat "$out/kernel/done")/$last" ] &&
        return
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)/\1/p' | head -n 1)
    if [ -z "$package" ]; then
        say "apt knows no linux-image-cloud-amd64: run apt-get update (as root) and try again"
        exit 1
    fi
    fetch "$package"
    dpkg-deb --fsys-tarfile "$work/$package"_*.deb | tar -x -C "$work" \
        --wildcards './boot/vmlinuz-*' './lib/modules/*/kernel/drivers/virtio/*' \
        './lib/modules/*/kernel/drivers/block/*' './lib/modules/*/kernel/drivers/char/*' \
        './lib/modules/*/kernel/drivers/net/virtio_net.ko' \
        './lib/modules/*/kernel/drivers/net/net_failover.ko' "./lib/modules/*/$last"
    rm -rf "$out/kernel"
    mkdir "$out/kernel"
    mv "$work/boot" "$work/lib" "$out/kernel/"
    basename "$out"/kernel/lib/modules/* >"$out/kernel/done"
}

# The modules the guest loads, in the order they need each other.
modules="virtio/virtio_ring virtio/virtio virtio/virtio_pci_legacy_dev
    virtio/virtio_pci_modern_dev virtio/virtio_pci virtio/virtio_balloon block/virtio_blk
    block/loop char/virtio_console char/hw_random/virtio-rng"

build_initramfs() {
    local root=$work/root name version
    version=$(cat "$out/kernel/done")
    mkdir -p "$root/bin" "$root/dev" "$root/modules"
    cp /bin/busybox "$root/bin/busybox"
    install -m 755 "$source/init" "$root/init"
    for name in selfcheck stepper syncer vio writer; do
        gcc -std=c11 -D_GNU_SOURCE -O2 -Wall -Wextra -static -s -o "$root/bin/$name" \
            "$source/$name.c"
    done
    for name in $modules; do
        cp "$out/kernel/lib/modules/$version/kernel/drivers/$name.ko" "$root/modules/"
        echo "${name##*/}.ko" >>"$root/modules/order"
    done
    (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) |
        gzip -6n >"$work/initramfs.gz"
    cp "$out/kernel/boot/vmlinuz-$version" "$work/vmlinuz"
    mv "$work/vmlinuz" "$work/initramfs.gz" "$out/"
    echo "$version" >"$out/kernel-version"
}

# The agent, what it needs, and what runs it (tests/guest/agent) on the port that init finds.
build_agent() {
    local root=$work/agent library
    fetch qemu-guest-agent
    dpkg-deb -x "$work"/qemu-guest-agent_*.deb "$work/agent-package"
    mkdir -p "$root/bin" "$root/sbin" "$root/lib64"
    cp "$work/agent-package/usr/sbin/qemu-ga" "$root/sbin/"
    install -m 755 "$source/agent" "$root/bin/agent"
    if ldd "$root/sbin/qemu-ga" | grep 'not found'; then
        say "qemu-guest-agent needs libraries that this host lacks (qemu-system-x86 brings them)"
        exit 2
    fi
    ldd "$root/sbin/qemu-ga" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
    (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) |
        gzip -6n >"$work/agent.gz"
    mv "$work/agent.gz" "$out/"
}

# Firmware of 64 KiB that is the whole guest.
build_boot_rom() {
    gcc -c -m32 -o "$work/kvm_boot.o" "$source/kvm_boot.S"
    ld -m elf_i386 -Ttext=0xffff0000 -e _start --oformat binary -o "$work/boot.rom" \
        "$work/kvm_boot.o"
    [ "$(stat -c %s "$work/boot.rom")" = 65536 ]
    mv "$work/boot.rom" "$out/"
}

# older FILE SOURCE...: true when FILE is missing or older than a source.
older() {
    local target=$1 file
    shift
    [ -e "$target" ] || return 0
    for file in "$@"; do
        [ "$file" -nt "$target" ] && return 0
    done
    return 1
}

case ${1-} in
'' | agent) ;;
*)
    say "unknown argument '$1'"
    exit 2
    ;;
esac
mkdir -p "$out"
exec 9>"$out/.lock" # two runs at the same time: the second finds all done
flock 9
work=$(mktemp -d "$out/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

stale=
older "$out/initramfs.gz" "$0" "$source"/{init,*.c,*.h} && stale="$stale initramfs"
older "$out/boot.rom" "$0" "$source/kvm_boot.S" && stale="$stale boot"
[ -e "$out/vmlinuz" ] || stale="$stale initramfs"
[ "${1-}" = agent ] && older "$out/agent.gz" "$0" "$source/agent" && stale="$stale agent"
[ -z "$stale" ] && exit 0
check_tools
case $stale in *initramfs*) fetch_kernel && build_initramfs ;; esac
case $stale in *boot*) build_boot_rom ;; esac
case $stale in *agent*) build_agent ;; esac
say "ready: Linux $(cat "$out/kernel-version"), $(du -h "$out/initramfs.gz" | cut -f1) initramfs"
