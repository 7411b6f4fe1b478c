#!/usr/bin/python3
"""minivm's save-state and load-state: a second process goes on exactly where the first one was."""

import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from minivm import Incoming, MiniVm, generation, kvm_works  # noqa: E402
from qmp import QmpError  # noqa: E402


def second(t, *options, accel):
    """A VMM that waits for a state."""
    vm = MiniVm(t, *options, accel=accel, incoming=Incoming(t))
    t.equal(vm.qmp.status(), "inmigrate", "status")
    t.equal(vm.mapping()[1]["Rss"], "0 kB", "memory that was touched")
    return vm


def copy(t, accel, *options):
    source = MiniVm(t, *options, accel=accel)
    source.wait_for_writes(3000)
    source.stop()
    state = source.save_state()
    target = second(t, *options, accel=accel)
    source.copy_memory_to(target)
    target.load_state(state)
    t.equal(target.qmp.status(), "paused", "status")
    target.check_right("copied")
    t.equal(target.writes(), 0, "the target's own count")
    return source, target


def goes_on(t, accel):
    t.need(accel == "threads" or kvm_works(), "no /dev/kvm here")
    for pattern in ("random", "sequential"):
        options = ("--memory", "16M", "--populate", "12M", "--cpus", "2", "--pattern", pattern)
        source, target = copy(t.sub(), accel, *options)
        for _ in range(2): # both, at once
            for vm in (source, target):
                vm.cont()
            for vm in (source, target):
                vm.wait_for_writes(20000)
            for vm in (source, target):
                vm.stop()
                vm.check_right(pattern)
        # What was measured is the target's own: no time since another clock's beginning.
        t.check(target.stats()["write"]["max_ns"] < 20e9, "the longest write")


@case("minivm.state.kvm", "kvm", 30)
def state_kvm(t):
    goes_on(t, "kvm")


@case("minivm.state.threads", "kernel", 30)
def state_threads(t):
    goes_on(t, "threads")


MASK = (1 << 64) - 1


def check_word(number, gen):
    """tools/minivm/guest.h: guest_check()."""
    if gen == 0:
        return 0
    x = (number * 0x9e3779b97f4a7c15 + gen) & MASK
    x = ((x ^ x >> 30) * 0xbf58476d1ce4e5b9) & MASK
    x = ((x ^ x >> 27) * 0x94d049bb133111eb) & MASK
    return x ^ x >> 31


def is_within_a_write(vm):
    """Has the (only) vCPU been stopped after the first store to a page, before it added it up?"""
    total, pending, old, new = struct.unpack_from("<4Q", vm.peek(0), 88)
    if not pending or generation(vm.peek(pending)) != new:
        return False
    others = sum(check_word(p, generation(vm.peek(p))) for p in range(1, vm.pages) if p != pending)
    return (others + check_word(pending, old)) & MASK == total


@case("minivm.state.registers", "kvm", 30)
def state_registers(t):
    """A vCPU that was stopped in the middle of a write: what it had in its registers decides
    whether the copy comes out right."""
    t.need(kvm_works(), "no /dev/kvm here")
    source = MiniVm(t, "--memory", "64K", accel="kvm")
    source.wait_for_writes(1000)
    for _ in range(20000):
        source.stop()
        if is_within_a_write(source):
            break
        source.cont()
    else:
        t.skip("in 20000 stops none came in the middle of a write")
    state = source.save_state()
    target = second(t, "--memory", "64K", accel="kvm")
    source.copy_memory_to(target)
    target.load_state(state)
    with open(state, "rb") as before, open(target.save_state(), "rb") as after:
        t.check(before.read() == after.read(), "what is saved after a load is what was loaded")
    target.cont()
    target.wait_for_writes(1000)
    target.stop()
    target.check_right("from the middle of a write on")


@case("minivm.state.idle", "kernel", 30)
def state_idle(t):
    """vCPUs that sleep at a doorbell, and such that keep to a rate."""
    source = MiniVm(t, "--memory", "16M", "--rate", "50")
    source.wait_for_writes(3)
    source.stop()
    state = source.save_state()
    target = second(t, "--memory", "16M", "--rate", "50", accel=source.description["accelerator"])
    source.copy_memory_to(target)
    target.load_state(state)
    target.cont()
    target.wait_for_writes(5)
    target.stop()
    target.check_right("with a rate")


@case("minivm.state.refused", "kernel", 30)
def refused(t):
    """A state that does not fit, or not to this memory, is refused; the VMM stays as it is."""
    options = ("--memory", "16M")
    source = MiniVm(t, *options)
    accel = source.description["accelerator"]
    source.wait_for_writes(3000)
    source.stop()
    state = source.save_state()
    with open(state, "rb") as f:
        data = f.read()

    def is_refused(vm, path, text):
        try:
            vm.load_state(path)
            t.check(False, f"refused: {text}")
        except QmpError as error:
            t.check(text in str(error), f"'{text}' is in: {error}")

    def variant(changed):
        path = t.path(t.unique("variant"))
        with open(path, "wb") as f:
            f.write(changed)
        return path
    is_refused(source, state, "--vmsnap-incoming")
    target = second(t, *options, accel=accel)
    is_refused(target, variant(data[:-1]), "cannot read")
    is_refused(target, variant(bytes(len(data))), "another minivm")
    is_refused(target, variant(data[:64] + bytes([data[64] ^ 1]) + data[65:]), "damaged")
    is_refused(target, state, "one instant") # its memory is empty
    source.copy_memory_to(target)
    source.cont()
    source.wait_for_writes(100)
    source.stop()
    is_refused(target, source.save_state(), "one instant")
    t.equal(target.qmp.status(), "inmigrate", "status")
    target.load_state(state)
    target.check_right("the right state, after all")
    is_refused(second(t, "--memory", "8M", accel=accel), state, "another minivm")


@case("minivm.state.stale", "kernel", 30)
def stale(t):
    """One page that was not copied: x-check finds it in the copy."""
    source, target = copy(t, "auto", "--memory", "16M", "--populate", "16M")
    source.cont()
    source.wait_for_writes(20000)
    source.stop()
    page = next(p for p in range(1, source.pages) if source.peek(p) != target.peek(p))
    target.poke(page, source.peek(page))
    t.equal(target.wrongs(), {"stale_shares": 1}, "a page of another instant")


if __name__ == "__main__":
    main()
