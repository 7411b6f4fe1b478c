#!/usr/bin/python3
"""Where a VMM and its memory may lie: in a jail; regions that begin at any page; memory that can be plugged in (Firecracker's
virtio-mem), which is part of the handoff and has no access until it is."""

import ctypes
import mmap
import os
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, is_alive, main, tool, wait_until  # noqa: E402
from listener import Listener, Memory, send_handoff  # noqa: E402
from minivm import PAGE, MiniVm, end_and_wait, kvm_works  # noqa: E402
from qmp import Qmp  # noqa: E402
from vmsnap import import_memory  # noqa: E402

MIB = 1 << 20
SIZES = ("--memory", "64M", "--populate", "60M", "--cpus", "2", "--balloon", "4M", "--regions", "3")


def check(t, vm, what):
    vm.wait_for_writes(1000)
    vm.wait_for_reuse(500)
    vm.stop()
    vm.check_right(what)
    vm.cont()


@case("minivm.placed.skewed", "kernel", 60)
def skewed(t):
    """Each region begins 4 KiB behind a multiple of 2 MiB: clusters and huge pages lie across one another."""
    for accel in ("threads", "kvm") if kvm_works() else ("threads",):
        source = MiniVm(t, *SIZES, accel=accel)
        source.balloon(pages=100)
        source.wait_for_writes(2000)
        source.stop()
        state, memory = source.save_files()
        end_and_wait(source)
        image = import_memory(t, memory)
        for options in ((), ("--no-fill", "--prefetch", "none")):
            listener = Listener(t, image, *options)
            vm = MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, "--skewed",
                        "--balloon-rate", "5000")
            t.equal({m["hva"] % (2 * MIB) for m in vm.description["memory"]}, {PAGE}, "begin at")
            check(t, vm, f"{accel} {options}: coming in")
            if not options:
                wait_until(lambda k=listener: k.of_type("summary"), 20, "all is in")
            check(t, vm, f"{accel} {options}: in")
            t.equal(listener.of_type("error") + listener.of_type("warning"), [], listener.text())
            t.equal(end_and_wait(vm), 0, "exit status")
            t.equal(listener.end(), 0, "the listener's")


@case("minivm.placed.unplugged", "kernel", 40)
def unplugged(t):
    """A part without access is filled like any other, and is right once access is given; another part is taken
    away meanwhile (discarded, then without access) and comes back as zeros."""
    libc = ctypes.CDLL(None, use_errno=True)
    data = os.urandom(16 * MIB)
    path = t.path("memory")
    with open(path, "wb") as f:
        f.write(data)
    listener = Listener(t, import_memory(t, path), "--bwlimit", "16M")
    memory = Memory(t, len(data))

    def protect(start, length, access):
        t.equal(libc.mprotect(ctypes.c_void_p(memory.address + start), ctypes.c_size_t(length), access), 0,
                "mprotect")
    protect(8 * MIB, 4 * MIB, 0)
    connection = listener.connect()
    t.defer(connection.close)
    send_handoff(connection, [memory.region()], [memory.fd])
    wait_until(lambda: listener.of_type("running"), 20, "it is served")
    t.equal(libc.madvise(ctypes.c_void_p(memory.address + 12 * MIB), ctypes.c_size_t(MIB), 4), 0, "discard")
    protect(12 * MIB, MIB, 0)
    wait_until(lambda: listener.of_type("summary"), 20, "all is in")
    protect(8 * MIB, 5 * MIB, mmap.PROT_READ | mmap.PROT_WRITE)
    there = ctypes.string_at(memory.address, len(data))
    wanted = data[:12 * MIB] + bytes(MIB) + data[13 * MIB:]
    wrong = [n for n in range(0, len(data), PAGE) if there[n:n + PAGE] != wanted[n:n + PAGE]]
    t.equal(wrong[:5], [], f"{len(wrong)} wrong pages")
    t.equal(listener.of_type("error") + listener.of_type("warning"), [], listener.text())


class Jailed(MiniVm):
    """A minivm in a jail as Firecracker's jailer makes one: a root directory and a user of its own, its own
    mount and pid namespaces. `pid` is that of the host; paths in `options` are the jail's."""

    SETUP = """set -e
cd "$1"; shift
mkdir -p usr build dev proc
for d in bin lib lib64; do ln -sfn usr/$d $d; done
mount --bind /usr usr
mount --bind "$1" build; shift
mount -t tmpfs tmpfs dev
mount -t proc proc proc
mknod dev/null c 1 3
mknod dev/userfaultfd c $(cat /sys/class/misc/userfaultfd/dev | tr : ' ')
chmod 666 dev/null
chown nobody dev/userfaultfd
exec chroot --userspec=nobody:nogroup . "$@" """

    def __init__(self, t, root, *options): # pylint: disable=super-init-not-called
        self.t = t
        self.control = os.path.join(root, "control.sock")
        self.process = t.spawn(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", self.SETUP, "sh", root,
                                os.path.dirname(tool("minivm")), "/build/minivm", "--accel", "threads",
                                "--control", "/control.sock", *options])
        self.qmp = Qmp(self.control)
        t.defer(self.qmp.close)
        self.pid = descendants(self.process.pid)[-1]
        self.description = self.qmp.command("query-vm")


@case("minivm.placed.jailed", "kernel", 60)
def jailed(t):
    """Served in a jail; after all of vmsnap was killed, by a new one."""
    t.need(os.path.exists("/sys/class/misc/userfaultfd/dev"), "no /dev/userfaultfd here")
    source = MiniVm(t, *SIZES, accel="threads")
    source.wait_for_writes(2000)
    source.stop()
    root = t.path("jail")
    os.mkdir(root)
    shutil.chown(root, "nobody")
    state, memory = source.save_files(os.path.join(root, "state"))
    os.chmod(state, 0o644)
    image = import_memory(t, memory)
    listener = Listener(t, image, "--no-fill")
    inside = os.path.join(root, "mem.sock")
    os.rename(listener.path, inside) # as if it had been made there
    shutil.chown(inside, "nobody")
    vm = Jailed(t, root, "--vmstate", "/state", "--uffd-backend", "/mem.sock", "--seccomp",
                "--balloon-rate", "2000")
    with open(f"/proc/{vm.pid}/status", encoding="ascii") as f:
        fields = dict(line.split(":\t", 1) for line in f)
    t.check(fields["Name"] == "minivm\n" and fields["Uid"].split()[0] != "0", f"who it is: {fields}")
    t.check(len(fields["NSpid"].split()) > 1, f"its pid namespace: {fields['NSpid']}")
    check(t, vm, "served")
    t.equal(listener.of_type("error") + listener.of_type("warning"), [], listener.text())
    for pid in [listener.pid, *descendants(listener.pid)]:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    t.check(is_alive(vm.pid), "it lives on, its guest waits")
    again = t.spawn([tool("vmsnap"), "restore", "--resume", str(vm.pid), image])
    check(t, vm, "served again")
    t.equal(again.wait(20), 0, "the successor's exit status, when all is in")
    check(t, vm, "all is in")


if __name__ == "__main__":
    main()
