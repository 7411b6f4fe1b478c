#!/usr/bin/python3
"""minivm's checks find what is wrong: a check that can't fail would show nothing."""

import os
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from minivm import MARK_WORDS, PAGE, MiniVm, generation, torn_steps  # noqa: E402
from qmp import QmpError  # noqa: E402


def flip(vm, page, offset):
    """Turns one bit around; the page as it was."""
    old = vm.peek(page)
    vm.poke(page, bytes([old[offset] ^ 1]), offset)
    return old


@case("minivm.check.wrong", "kernel", 30)
def wrong(t):
    """x-check finds each bit of a page that is not as it was written, and nothing once it is put
    back."""
    vm = MiniVm(t, "--memory", "16M", "--populate", "8M", "--cpus", "2")
    vm.wait_for_writes(5000)
    vm.stop()
    vm.check_right("before")
    places = [(777, 0), (777, 8), (777, 16), (777, 24), (1500, 4095), (2047, 2000), (2048, 0),
              (4095, 4095)] + [(900, word * 8) for word in MARK_WORDS]
    for page, offset in places:
        old = flip(vm, page, offset)
        found = vm.qmp.command("x-check")
        t.equal((found["wrong_pages"], found.get("first_wrong")), (1, page), f"byte {offset}")
        vm.poke(page, old)
    vm.check_right("after")
    old = vm.peek(777)
    vm.poke(777, bytes(PAGE))
    t.equal(vm.wrongs().get("wrong_pages"), 1, "a populated page that is lost")
    vm.poke(777, vm.peek(778))
    t.equal(vm.wrongs().get("wrong_pages"), 1, "another page's content")
    vm.poke(777, old)
    flip(vm, 1, 0)
    try:
        vm.wrongs()
        t.check(False, "a damaged state page is an error")
    except QmpError as error:
        t.check("state" in str(error), f"what is said: {error}")


@case("minivm.check.stale", "kernel", 30)
def stale(t):
    """A page that is right, but older than it should be, is found by the sum of its share."""
    vm = MiniVm(t, "--memory", "4M", "--cpus", "2")
    vm.wait_for_writes(2000)
    vm.stop()
    old = vm.peek(700)
    vm.cont()
    wait_until(lambda: vm.peek(700) != old, 10, "another generation of page 700")
    vm.stop()
    vm.check_right("before")
    new = vm.peek(700)
    vm.poke(700, old)
    t.equal(vm.wrongs(), {"stale_shares": 1}, "an old page")
    vm.poke(700, bytes(PAGE))
    t.equal(vm.wrongs(), {"stale_shares": 1}, "a page that was never written, it seems")
    vm.poke(700, new)
    vm.check_right("after")


@case("minivm.check.steps", "kernel", 30)
def steps(t):
    """Neighbours of a sequential guest; also by a copy of the memory that is not an instant."""
    vm = MiniVm(t, "--memory", "16M", "--pattern", "sequential")
    vm.wait_for_writes(10000)
    torn = 0
    for _ in range(5): # while it runs
        torn += torn_steps([generation(vm.peek(p, length=16)) for p in range(1, vm.pages)])
    t.check(torn > 0, "a copy of a running guest's memory is torn")
    vm.stop()
    vm.check_right("stopped")
    t.equal(torn_steps([generation(vm.peek(p, length=16)) for p in range(1, vm.pages)]), 0,
            "steps in a stopped guest's memory")
    middle = vm.peek(2000)
    number, gen, _ = struct.unpack_from("<3Q", middle)
    t.check(number == 2000 and gen > 1, "a page in the middle")
    vm.poke(2000, bytes(PAGE))
    found = vm.wrongs()
    t.check(found.get("wrong_steps") and found.get("stale_shares") == 1, f"found: {found}")


@case("minivm.check.guest", "kernel", 30)
def guest(t):
    """The guest itself finds a wrong page when it comes to write it."""
    vm = MiniVm(t, "--memory", "4M", "--pattern", "sequential")
    vm.wait_for_writes(2000)
    vm.stop()
    flip(vm, 500, MARK_WORDS[1] * 8)
    vm.cont()
    wait_until(lambda: vm.stats()["wrong_pages"], 10, "a wrong page found")
    time.sleep(0.1)
    t.equal(vm.stats()["wrong_pages"], 1, "it is counted once, and mended by the write")


@case("minivm.check.absent", "kernel", 30)
def absent(t):
    """A check leaves absent memory absent."""
    for kind in ("anon", "memfd"):
        vm = MiniVm(t, "--memory", "64M", "--populate", "8M", "--kind", kind)
        vm.wait_for_writes(1000)
        vm.stop()
        vm.check_right(kind)
        rss = int(vm.mapping()[1]["Rss"].split()[0])
        t.equal(rss, 8192, f"{kind}: KiB present after a check of all")


def generations_of(data):
    return [generation(data[at:at + 16]) for at in range(PAGE, len(data), PAGE)]


@case("minivm.fork-dump", "kernel", 30)
def fork_dump(t):
    """The dump of a running guest is one instant, raw or compressed."""
    vm = MiniVm(t, "--memory", "16M", "--pattern", "sequential")
    vm.wait_for_writes(10000)
    for compress in (False, True):
        path = t.path(f"dump{compress}")
        answer = vm.qmp.command("x-fork-dump", path=path, compress=compress)
        t.check(0 < answer["fork_ns"] <= answer["pause_ns"], f"times: {answer}")
        events = []
        wait_until(lambda: events.extend(vm.qmp.take_events(0.1)) or len(events) >= 3, 20,
                   "the dump's end")
        t.equal([e["event"] for e in events], ["STOP", "RESUME", "X_FORK_DUMP_DONE"], "events")
        done = events[-1]
        t.check("error" not in done["data"], f"the dump: {done}")
        t.equal(vm.stats()["fork_dump"], done["data"], "the same in x-stats")
        with open(path, "rb") as f:
            data = f.read()
        if compress:
            data = subprocess.run(["zstd", "-dc", path], stdout=subprocess.PIPE, check=True,
                                  timeout=20).stdout
        t.equal(len(data), vm.ram["bytes"], "length of the dump")
        t.equal(torn_steps(generations_of(data)), 0, "wrong steps in the dump")
    vm.stop()
    vm.check_right("after it")
    t.equal(vm.qmp.status(), "paused", "status")


@case("minivm.fork-dump.refused", "kernel", 30)
def fork_dump_refused(t):
    vm = MiniVm(t, "--memory", "16M", "--kind", "memfd")
    for arguments, text in (({"path": t.path("x")}, "shared"), ({}, "path")):
        try:
            vm.qmp.command("x-fork-dump", **arguments)
            t.check(False, "it is refused")
        except QmpError as error:
            t.check(text in str(error), f"what is said: {error}")
    t.equal(vm.qmp.status(), "running", "status")
    other = MiniVm(t, "--memory", "16M")
    other.qmp.command("x-fork-dump", path="/dev/full")
    done = wait_until(lambda: [e for e in other.qmp.take_events(0.1)
                               if e["event"] == "X_FORK_DUMP_DONE"], 20, "the dump's end")[0]
    t.check("error" in done["data"], f"a dump that can't be written: {done}")


if __name__ == "__main__":
    main()
