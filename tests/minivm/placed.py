#!/usr/bin/python3
"""Where a VMM's memory may lie: regions that begin at any page, and memory that can be plugged in (Firecracker's
virtio-mem), which is part of the handoff and has no access until it is."""

import ctypes
import mmap
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from listener import Listener, Memory, send_handoff  # noqa: E402
from minivm import PAGE, MiniVm, end_and_wait, kvm_works  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

MIB = 1 << 20
SIZES = ("--memory", "64M", "--populate", "60M", "--cpus", "2", "--balloon", "4M", "--regions", "3")


def imported(t, memory):
    image = t.path(t.unique("image"))
    made = vmsnap(t, "import", "firecracker", memory, image)
    t.equal(made.code, 0, made.text())
    return image


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
        image = imported(t, memory)
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
    listener = Listener(t, imported(t, path), "--bwlimit", "16M")
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


if __name__ == "__main__":
    main()
