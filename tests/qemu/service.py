#!/usr/bin/python3
"""The example unit under a real systemd: a Linux guest whose process 1 is this host's systemd starts
vmsnap-restore@.service, with all its hardening, on an image of a minivm that runs inside."""

import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, main, tool, wait_until  # noqa: E402
from guest import Guest, initramfs_with  # noqa: E402

SYSTEMD = "/lib/systemd/systemd"
PROGRAMS = (SYSTEMD, "/lib/systemd/systemd-shutdown", "/bin/systemctl", "/usr/bin/systemd-escape")
UNIT = "vmsnap-restore@.service"
TEST = """#!/bin/busybox sh
exec >/dev/ttyS0 2>&1
PATH=/bin:/sbin:/usr/bin
say() { echo "SERVICE $*"; }
show() { systemctl show "$unit" --value -p "$1"; }
image="/srv/an image-1"
mkdir -p /srv /tmp
minivm --accel threads --memory 32M --populate 24M --rate 2000 --control /run/vm.sock &
source=$!
while ! [ -S /run/vm.sock ]; do usleep 50000; done
vmsnap snapshot -q --qmp /run/vm.sock "$image" || say snapshot failed
kill $source
wait $source
unit=$(systemd-escape --path --template=vmsnap-restore@.service "$image")
systemctl start "$unit"
say start=$?
say active="$(show ActiveState)" type="$(show Type)"
say line="$(tr '\\0' '|' <"/proc/$(show MainPID)/cmdline")"
for process in /proc/[0-9]*; do
    grep -q minivm "$process/comm" && vmm=$process
    grep -q vmsnap-server "$process/comm" && kill -9 "${process#/proc/}" && say killed
done
say guest="$(vmsnap check --qmp /run/vm.sock | grep run-state)"
say environment="$(tr '\\0' ' ' <"$vmm/environ")"
n=0
until [ "$(show StatusText)" = "all memory is in" ] || [ $n = 150 ]; do
    usleep 100000
    n=$((n + 1))
done
say status="$(show StatusText)"
systemctl stop "$unit"
say stop=$? result="$(show Result)" active="$(show ActiveState)"
[ -d "$vmm" ] && say vmm=alive || say vmm=ended
say end
poweroff -f
"""
TEST_UNIT = """[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/busybox sh /test
"""


def put(root, path, source=None, text=None):
    target = root + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if source:
        shutil.copyfile(os.path.realpath(source), target)
    else:
        with open(target, "w", encoding="utf-8") as f:
            f.write(text)
    os.chmod(target, 0o755 if source or (text or "").startswith("#!") else 0o644)


def put_program(t, root, path, source):
    put(root, path, source)
    listed = t.run(["ldd", source])
    for library in re.findall(r"(/\S+) \(0x", listed.stdout):
        if not os.path.exists(root + library):
            put(root, library, library)


def build_root(t):
    root = t.path("root")
    for program in PROGRAMS:
        put_program(t, root, program, program)
    put_program(t, root, "/bin/vmsnap", tool("vmsnap"))
    put_program(t, root, "/bin/minivm", tool("minivm"))
    put_program(t, root, "/lib/x86_64-linux-gnu/libsystemd.so.0",
                "/lib/x86_64-linux-gnu/libsystemd.so.0")
    with open(tool("tools", UNIT), encoding="utf-8") as f:
        unit = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/vmsnap", f.read(), flags=re.M)
    put(root, f"/etc/systemd/system/{UNIT}", text=unit)
    put(root, f"/etc/systemd/system/{UNIT}.d/console.conf",
        text="[Service]\nStandardError=append:/dev/ttyS0\n") # there is no journal
    put(root, "/etc/systemd/system/default.target", text="[Unit]\nWants=test.service\n")
    put(root, "/etc/systemd/system/test.service", text=TEST_UNIT)
    for name in ("sysinit", "basic", "network", "shutdown"):
        put(root, f"/etc/systemd/system/{name}.target", text="[Unit]\nDefaultDependencies=no\n")
    put(root, "/etc/passwd", text="root:x:0:0::/root:/bin/sh\n")
    put(root, "/etc/group", text="root:x:0:\n")
    put(root, "/etc/os-release", text="ID=test\n")
    put(root, "/etc/default/vmsnap-restore", text="VMSNAP_OPTIONS=-q --prefetch none\n")
    put(root, "/test", text=TEST)
    put(root, "/start", text="#!/bin/busybox sh\n/bin/busybox mkdir -p /bin /sbin /usr/bin\n"
                             "/bin/busybox --install -s /bin\nexec " + SYSTEMD + "\n")
    return root


def said(guest):
    """What the script in the guest said, in order."""
    return re.findall(r"SERVICE (.*?)\r?$", guest.console.text(), re.M)


@case("qemu.service.under-systemd", "qemu", 120)
def under_systemd(t):
    """systemctl start returns once the guest runs; a server that is killed is none of the unit's failures; the
    status says when all is in; systemctl stop ends VMM and server without a failure; and none of the unit's
    hardening stands in the way."""
    for program in PROGRAMS:
        t.need(os.path.exists(program), f"no {program} here (package systemd)")
    guest = Guest(t, memory_mib=768, cpus=2, work="none", devices=(), initrd=initramfs_with(t, build_root(t)),
                  append="rdinit=/start systemd.log_target=console", extra=["-cpu", "max"]).start()
    try:
        wait_until(lambda: "end" in said(guest) or guest.process.poll() is not None, 100,
                   "the script in the guest ends", every=0.1)
        lines = said(guest)
        for wanted in ("start=0", "active=active type=notify", "line=/bin/vmsnap|restore|-q|--prefetch|none|/srv/an image-1|",
                       "killed", "status=all memory is in",
                       "stop=0 result=success active=inactive", "vmm=ended"):
            t.check(wanted in lines, f"{wanted}: {lines}")
        t.check(any(re.match("guest=yes +run-state +running", line) for line in lines), f"{lines}")
        t.check(not any("NOTIFY_SOCKET" in line for line in lines), f"the VMM's environment: {lines}")
    except Failed:
        print(guest.console.text())
        raise


if __name__ == "__main__":
    main()
