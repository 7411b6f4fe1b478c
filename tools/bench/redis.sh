#!/bin/bash
# Makes the benchmark's guest with a real server: build/guest/redis.gz, the initramfs of tools/guest.sh and
# behind it Debian's redis-server, the libraries it needs, and the modules of a virtio network card. Packages
# are fetched and unpacked, never installed; only what is missing or older than its source is done. Needs
# the network, once.
set -eu

top=$(cd "$(dirname "$0")/../.." && pwd)
out=$top/build/guest
work=

say() {
    echo "redis.sh: $*" >&2
}

# The package and those that it needs and this machine has not: what it has is taken from here.
packages() {
    apt-get install -s -q --no-install-recommends redis-server 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p'
}

fetch() {
    local names package
    names=$(packages)
    case " $(echo "$names" | tr '\n' ' ') " in
    *" redis-tools "*) ;;
    *) names="$names redis-tools" ;; # the program is in there
    esac
    say "fetching" $names
    mkdir "$work/packages" "$work/unpacked"
    # shellcheck disable=SC2086
    if ! (cd "$work/packages" && apt-get download -q $names >"$work/apt.log" 2>&1); then
        sed 's/^/  /' "$work/apt.log" >&2
        say "could not download them (network? outdated lists? try apt-get update)"
        exit 1
    fi
    for package in "$work"/packages/*.deb; do
        dpkg-deb -x "$package" "$work/unpacked"
    done
}

# The program, and every library that the loader finds for it, the unpacked ones first.
build() {
    local root=$work/root program=$work/unpacked/usr/bin/redis-check-rdb name version
    version=$(cat "$out/kernel-version")
    mkdir -p "$root/redis/lib" "$root/redis/modules"
    cp "$program" "$root/redis/redis-server"
    LD_LIBRARY_PATH=$work/unpacked/usr/lib/x86_64-linux-gnu ldd "$program" |
        sed -n 's/.*[ \t]\(\/[^ ]*\) (0x.*/\1/p' >"$work/libraries"
    while read -r name; do
        cp -L "$name" "$root/redis/lib/"
    done <"$work/libraries"
    for name in net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
        cp "$out/kernel/lib/modules/$version/kernel/$name.ko" "$root/redis/modules/"
    done
    install -m 755 "$top/tools/bench/redis_init" "$root/redis/run"
    (cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) |
        gzip -1n >"$work/redis"
    cat "$out/initramfs.gz" "$work/redis" >"$work/redis.gz"
    mv "$work/redis.gz" "$out/"
}

exec 9>"$out/.lock-redis" # two runs at the same time: the second finds it done
flock 9
if [ -e "$out/redis.gz" ] && [ "$out/redis.gz" -nt "$0" ] &&
    [ "$out/redis.gz" -nt "$top/tools/bench/redis_init" ] &&
    [ "$out/redis.gz" -nt "$out/initramfs.gz" ]; then
    exit 0
fi
work=$(mktemp -d "$out/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
fetch
build
say "ready: $("$work/root/redis/lib/ld-linux-x86-64.so.2" --library-path "$work/root/redis/lib" \
    "$work/root/redis/redis-server" --version | cut -d' ' -f1-3)"
