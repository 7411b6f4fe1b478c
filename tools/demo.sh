#!/bin/bash
# tools/demo.sh [--no-install] - the whole way on a real guest: names and installs what is missing,
# builds vmsnap, boots a Linux guest in QEMU, snapshots it live while it rewrites its memory, ends it,
# and restores it on demand in a new process. The guest checks its own memory all the time. About two
# minutes after the downloads; run again, it is quick. Ctrl-C at any point cleans up.
#
#   --no-install  install nothing: name what is missing and exit 2
#
# Everything lies in build/ of this clone.

set -eu
# shellcheck source=tools/lib.sh
. "$(dirname "$0")/lib.sh"

memory_mib=1024
check_mib=256
rate=5000 # pages rewritten per second

vmm=     # QEMU's process id
server=  # that of `vmsnap restore`
started= # a process group that runs right now and is waited for

heading() {
    printf '\n== %s\n' "$*"
}

# Ends a process of ours (-PID: its whole group): asked first, then by force.
end_process() {
    local pid=$1
    [ "${pid#-}" ] && kill -- "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 -- "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "$pid" 2>/dev/null || true
}

clean_up() {
    trap '' INT TERM HUP
    end_process "-$started"
    end_process "$server"
    end_process "$vmm"
    cd "$top"
    rm -rf "$top/build/demo"
}

stop() { # stop EXIT_CODE WORDS...: after what went wrong, with what the guest said last
    local code=$1
    shift
    say "$*"
    [ ! -s console ] || { say "the guest's last lines:" && tail -n 5 console >&2; }
    [ ! -s qemu.log ] || tail -n 5 qemu.log >&2
    exit "$code"
}

# Runs a step whose output only matters if it fails.
step() { # step NAME COMMAND...
    local name=$1 log=$top/build/demo-$1.log
    shift
    say "$name"
    setsid "$@" </dev/null >"$log" 2>&1 &
    started=$!
    if ! wait "$started"; then
        started=
        tail -n 30 "$log" >&2
        die 1 "'$name' failed; the whole log is $log"
    fi
    started=
}

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

says() { # says PATTERN [FIRST_LINE]: the guest's console has such a line, from that line on
    [ -e console ] && tail -n "+${2:-1}" console | grep -q "$1"
}

lines() {
    wc -l <console
}

# field NAME: from lines of selfcheck on stdin, the values of NAME=...
field() {
    sed -n "s/^SELFCHECK.* $1=\([0-9.]*\).*/\1/p"
}

qemu_ended() {
    ! kill -0 "$vmm" 2>/dev/null
}

start_guest() { # start_guest ACCELERATOR
    local cpu=qemu64
    [ "$1" = tcg ] || cpu=host
    rm -f console
    qemu-system-x86_64 -name demo -accel "$1" -cpu "$cpu" -machine pc -smp 2 -m "$memory_mib" \
        -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$top/build/guest/vmlinuz" -initrd "$top/build/guest/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 no_timer_check vmsnap.work=selfcheck,vio \
vmsnap.mib=$check_mib vmsnap.rate=$rate" \
        -chardev file,id=console,path=console,append=on -serial chardev:console \
        -device virtio-rng-pci -qmp unix:qmp,server=on,wait=off </dev/null >qemu.log 2>&1 &
    vmm=$!
}

boots_or_ends() {
    says '^SELFCHECK.* up=' || qemu_ended
}

# KVM where the guest boots under it, else TCG. That it does not is remembered for this host.
boot() {
    local verdict=$top/build/guest/no-kvm host
    host="$(uname -r) $(qemu-system-x86_64 --version | head -n 1) $(cat "$top/build/guest/kernel-version")"
    if [ -w /dev/kvm ] && [ "$(cat "$verdict" 2>/dev/null)" != "$host" ]; then
        accelerator=KVM why=
        start_guest kvm
        wait_for 15 boots_or_ends && ! qemu_ended && return
        end_process "$vmm"
        echo "$host" >"$verdict"
    fi
    accelerator=TCG
    why=" (no /dev/kvm here)"
    [ ! -w /dev/kvm ] || why=" (this kernel does not boot under this host's KVM)"
    start_guest tcg
    wait_for 60 boots_or_ends || stop 1 "the guest does not boot"
    ! qemu_ended || stop 1 "QEMU has ended"
}

fresh_line() { # fresh_line FIRST_LINE
    says '^SELFCHECK.* up=' "$1"
}

no_errors() {
    ! grep -E 'ERROR|errors=[1-9]' console >&2 || stop 1 "the guest found an error in its memory"
}

# Shows what selfcheck said from a line of the console on: the first and the last, and what it means.
show_console() { # show_console FIRST_LINE
    tail -n "+$1" console | grep '^SELFCHECK.* up=' | sed -n '1p;$p' | sed 's/^/    /'
}

snapshot() {
    local before
    before=$(lines)
    echo "  \$ vmsnap snapshot --qmp qmp image"
    setsid "$vmsnap" snapshot --qmp qmp image >closing-snapshot 2>snapshot.log &
    started=$!
    wait "$started" || stop 1 "the snapshot failed: $(cat snapshot.log)"
    started=
    sed 's/^/  /' closing-snapshot
    wait_for 10 fresh_line "$(($(lines) + 1))" || stop 1 "the guest did not run on"
    no_errors
    echo "  The guest's own console from then on:"
    show_console "$((before + 1))"
    tail -n "+$((before + 1))" console >during
    echo "  It ran on: $(field up <during | wc -l) reports, no error, longest gap" \
        "$(field gap_ms <during | sort -g | tail -n 1) ms by its own clock."
    instant=$(head -n "$before" console | field up | tail -n 1)
}

restore() {
    local before
    end_process "$vmm"
    wait "$vmm" 2>/dev/null || true
    vmm=
    before=$(lines)
    echo "  The guest's process is gone. Its last report: up=$(field up <console | tail -n 1)"
    echo "  \$ vmsnap restore image"
    "$vmsnap" restore image >closing-restore 2>restore.log &
    server=$!
    wait_for 30 fresh_line "$((before + 1))" ||
        stop 1 "the restored guest says nothing: $(cat restore.log)"
    wait_for 60 restored_whole "$((before + 1))" || stop 1 "the restored guest's check does not finish"
    no_errors
    echo "  The restored guest's console:"
    show_console "$((before + 1))"
    echo "  It went on from the snapshot's instant (last report before it: up=$instant) and has" \
        "checked all its memory: no error."
}

# restored_whole FIRST_LINE: every page has been checked once more since that line, and is in.
restored_whole() {
    local rounds
    rounds=$(tail -n "+$1" console | field rounds | sed -n '1p;$p' | xargs)
    [ "${rounds##* }" -gt "$((${rounds%% *} + 1))" ] && [ -s closing-restore ]
}

parse_install_option "$@"
[ ${#words[@]} = 0 ] || die 2 "unknown argument '${words[0]}' (see --help)"
require_packages "${packages_build[@]}" "${packages_guest[@]}"

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cd "$top"
mkdir -p build
step configure cmake --preset release
step build cmake --build --preset release --parallel "$(nproc)"
step guest tools/guest.sh
vmsnap=$top/build/release/vmsnap
rm -rf build/demo
mkdir -p build/demo
cd build/demo # short names for sockets, wherever the clone lies

heading "A guest boots"
boot
echo "  Linux $(cat ../guest/kernel-version), 2 vCPUs, $memory_mib MiB," \
    "$(qemu-system-x86_64 --version | sed -n '1s/ (.*//;1s/ emulator version//p'), $accelerator$why."
echo "  It rewrites $rate pages of $check_mib MiB per second and checks every one:"
wait_for 20 says '^SELFCHECK.* rounds=[1-9]' || stop 1 "the guest's check does not finish"
show_console 1

heading "A snapshot, while it runs"
snapshot

heading "The guest is ended, and brought back in a new process"
restore

heading "In short ($accelerator)"
cat closing-snapshot closing-restore
