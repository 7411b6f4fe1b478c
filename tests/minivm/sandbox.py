#!/usr/bin/python3
"""A VMM under a seccomp filter as strict as Firecracker's: vmsnap serves it, leaves its record in it, takes
over by hand, and takes everything back, all by system calls that the filter does not allow the VMM."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, is_alive, main, open_files, tool, wait_until  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import MiniVm, end_and_wait, kvm_works  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

SIZES = ("--memory", "32M", "--populate", "30M", "--cpus", "2", "--balloon", "2M")


def prepare(t, accel):
    """(state file, image) of a VM that has worked for a while."""
    vm = MiniVm(t, *SIZES, "--regions", "2", accel=accel)
    vm.balloon(pages=100)
    vm.wait_for_writes(2000)
    vm.stop()
    state, memory = vm.save_files()
    end_and_wait(vm)
    image = t.path(t.unique("image"))
    made = vmsnap(t, "import", "firecracker", memory, image)
    t.equal(made.code, 0, made.text())
    return state, image


def start(t, state, listener):
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, "--seccomp",
                "--balloon-rate", "2000")
    for task in os.listdir(f"/proc/{vm.pid}/task"):
        with open(f"/proc/{vm.pid}/task/{task}/status", encoding="ascii") as f:
            t.check("\nSeccomp:\t2\n" in f.read(), "each thread is under a filter")
    return vm


def holds_record(vm):
    names = open_files(vm.pid)
    return any("memfd:vmsnap" in name for name in names)


def check(t, vm, what):
    vm.wait_for_writes(1000)
    vm.wait_for_reuse(100)
    vm.stop()
    vm.check_right(what)
    vm.cont()


def accelerators():
    return ("threads", "kvm") if kvm_works() else ("threads",)


@case("minivm.sandbox.served", "kernel", 60)
def served(t):
    for accel in accelerators():
        state, image = prepare(t, accel)
        listener = Listener(t, image, "--bwlimit", "16M")
        vm = start(t, state, listener)
        wait_until(lambda: holds_record(vm), 10, "the record is in the VMM")
        check(t, vm, f"{accel}: served")
        wait_until(lambda: not holds_record(vm), 20, "all is in, and the record is gone")
        check(t, vm, f"{accel}: complete")
        t.equal(listener.of_type("error") + listener.of_type("warning"), [], listener.text())
        t.equal(end_and_wait(vm), 0, "exit status")
        t.equal(listener.end(), 0, "the listener's")


@case("minivm.sandbox.resumed", "kernel", 60)
def resumed(t):
    """Everything of vmsnap is killed; a new one takes over by hand."""
    for accel in accelerators():
        state, image = prepare(t, accel)
        listener = Listener(t, image, "--no-fill")
        vm = start(t, state, listener)
        check(t, vm, f"{accel}: served")
        for pid in [listener.pid, *descendants(listener.pid)]:
            os.kill(pid, signal.SIGKILL)
        listener.process.wait(10)
        time.sleep(0.2)
        t.check(is_alive(vm.pid), "the VMM lives on, its guest waits")
        again = t.spawn([tool("vmsnap"), "restore", "--resume", str(vm.pid), image])
        check(t, vm, f"{accel}: served again")
        t.equal(again.wait(20), 0, "the successor's exit status, when all is in")
        t.check(not holds_record(vm), "nothing is left in the VMM")
        check(t, vm, f"{accel}: complete")


@case("minivm.sandbox.can-fail", "kernel", 20)
def can_fail(t):
    """What the filter forbids does end a VMM: here prctl() in a child of it, and its own wait4()."""
    vm = MiniVm(t, *SIZES, "--seccomp")
    vm.wait_for_writes(100)
    vm.qmp.command("x-fork-dump", path=t.path("dump"))
    t.equal(vm.process.wait(10), -signal.SIGSYS, "exit status")
    t.equal(os.path.getsize(t.path("dump")), 0, "bytes that the child has written")


if __name__ == "__main__":
    main()
