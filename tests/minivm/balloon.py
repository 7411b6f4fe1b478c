#!/usr/bin/python3
"""minivm's balloon: pages that the VMM discards, and what the guest sees of them when it takes them
back, by itself and while a handler serves its page faults."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from firecracker import Backend, PageServer  # noqa: E402
from minivm import PAGE, MiniVm, kvm_works  # noqa: E402
from qmp import QmpError  # noqa: E402

SIZES = ("--memory", "16M", "--populate", "12M", "--cpus", "2")
RING = 512 # pages of 2 MiB
BALLOON = ("--balloon", "2M")
FIRST = (12 << 20) // PAGE - RING # its first page


def rounds(t, accel, *options):
    """Several times round the ring, and the other pages are written beside it."""
    t.need(accel == "threads" or kvm_works(), "no /dev/kvm here")
    vm = MiniVm(t, *SIZES, *BALLOON, "--balloon-rate", "5000", *options, accel=accel)
    vm.wait_for_reuse(RING // 3)
    vm.stop()
    vm.check_right("in the first round")
    vm.cont()
    vm.wait_for_reuse(2 * RING)
    vm.wait_for_writes(1000)
    vm.stop()
    vm.check_right("after some rounds")
    state = vm.balloon()
    t.check(state["pages"] == RING and state["discarded"] >= state["reused"] > 2 * RING, f"{state}")
    vm.save_files(t.path("state"), t.path("memory"))
    other = MiniVm(t, "--vmstate", t.path("state"), "--memory-file", t.path("memory"),
                   "--balloon-rate", "5000")
    t.check(other.balloon()["discarded"] >= state["discarded"], "it goes on where it was")
    other.wait_for_reuse(RING + 10)
    other.stop()
    other.check_right("from the files")


@case("minivm.balloon.threads", "kernel", 40)
def threads(t):
    rounds(t, "threads")
    rounds(t, "threads", "--regions", "3", "--pattern", "sequential", "--kind", "thp")


@case("minivm.balloon.kvm", "kvm", 40)
def kvm(t):
    rounds(t, "kvm", "--regions", "2")


@case("minivm.balloon.unpopulated", "kernel", 30)
def unpopulated(t):
    """Memory that nobody has written: a discard changes nothing, and what is absent stays absent."""
    vm = MiniVm(t, "--memory", "16M", *BALLOON)
    vm.balloon(pages=100)
    wait_until(lambda: vm.balloon()["reused"] == 100, 10, "they are reused")
    vm.stop()
    vm.check_right("unpopulated")


@case("minivm.balloon.can-fail", "kernel", 30)
def can_fail(t):
    """x-check sees a page of the balloon that is stale, zero too much, zero too little, or elsewhere."""
    vm = MiniVm(t, *SIZES, *BALLOON)
    vm.balloon(pages=100)
    wait_until(lambda: vm.balloon()["reused"] == 100, 10, "they are reused")
    early = {p: vm.peek(p) for p in (FIRST, FIRST + 99, FIRST + 100)}
    vm.balloon(pages=RING)
    wait_until(lambda: vm.balloon()["reused"] == RING + 100, 10, "they are reused")
    vm.stop()
    vm.check_right("before")
    now = {p: vm.peek(p) for p in early}
    for page, wrong in ((FIRST, early[FIRST]), (FIRST + 99, bytes(PAGE)),
                        (FIRST + 100, early[FIRST + 100]), (FIRST + 100, now[FIRST]),
                        (FIRST, now[FIRST][:2000] + b"\1" + now[FIRST][2001:])):
        vm.poke(page, wrong)
        t.equal(vm.wrongs(), {"wrong_pages": 1}, f"page {page - FIRST} of the balloon")
        vm.poke(page, now[page])
    vm.check_right("put back")
    try:
        vm.balloon(pages=1)
        t.check(False, "a VM that is stopped discards nothing")
    except QmpError as error:
        t.check("runs" in str(error), f"why: {error}")


def saved(t, accel):
    vm = MiniVm(t, *SIZES, *BALLOON, "--regions", "2", accel=accel)
    vm.balloon(pages=100)
    vm.wait_for_writes(2000)
    vm.stop()
    return vm.save_files()


def serve(t, files, forgetful=False):
    backend = Backend(t)
    return MiniVm(t, "--vmstate", files[0], "--uffd-backend", backend.path, "--balloon-rate",
                  "4000", "--rate", "4000",
                  serve=lambda: PageServer(t, backend.accept(), files[1], forgetful))


@case("minivm.balloon.served", "kernel", 40)
def served(t):
    """Discards while memory is coming in, of pages that are in and of such that never were, and after."""
    for accel in ("threads", "kvm") if kvm_works() else ("threads",):
        vm = serve(t, saved(t, accel))
        vm.wait_for_reuse(RING // 2)
        vm.stop()
        vm.check_right("while it comes in")
        vm.cont()
        vm.wait_for_reuse(2 * RING)
        vm.stop()
        vm.check_right("after")
        t.equal(vm.server.error, None, "the handler")
        t.check(vm.server.removed >= 2 * RING, f"{vm.server.removed} pages were discarded")


@case("minivm.balloon.forgotten", "kernel", 30)
def forgotten(t):
    """A handler that brings old pages back after a discard: the guest notices."""
    vm = serve(t, saved(t, "threads"), forgetful=True)
    wait_until(lambda: vm.stats()["wrong_pages"] > 10, 10, "the guest finds what is no zero")


@case("minivm.balloon.refused", "kernel", 20)
def refused(t):
    for words, options in (("leaves", ("--balloon", "64M")),
                           ("leaves", ("--populate", "4M", "--balloon", "4M")),
                           ("private", ("--balloon", "1M", "--kind", "memfd")),
                           ("balloon-rate", ("--balloon-rate", "x"))):
        result = t.run([tool("minivm"), *options])
        t.equal(result.returncode, 2, f"{options}: {result.stderr}")
        t.check(words in result.stderr, f"'{words}' is in: {result.stderr}")


if __name__ == "__main__":
    main()
