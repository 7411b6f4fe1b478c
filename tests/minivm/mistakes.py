#!/usr/bin/python3
"""What people get wrong at first: the wrong socket, the wrong file, a directory that can't be written. vmsnap says
soon what is wrong, and what to do about it. minivm stands for Firecracker."""

import os
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from minivm import MiniVm  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

SIZES = ("--memory", "16M", "--populate", "8M")
SOON = 5 # seconds; --timeout is 30


def with_api(t):
    path = t.path(t.unique("api") + ".sock")
    vm = MiniVm(t, *SIZES, "--api", path)
    vm.qmp.close() # minivm's control socket takes one client
    return vm, path


def soon(t, what, *args):
    """The command's result, which must not take long."""
    began = time.monotonic()
    result = vmsnap(t, *args)
    took = time.monotonic() - began
    t.check(took < SOON, f"{what}: took {took:.1f} s: {result.text()}")
    return result


@case("minivm.mistakes.sockets", "kernel", 60)
def sockets(t):
    """--qmp with Firecracker's API socket, and --api with a QMP socket."""
    vm, api = with_api(t)
    image = t.path("never.img")
    for option, path, words in (("--qmp", api, ("HTTP", "--api")),
                                ("--api", vm.control, ("no HTTP", "--qmp"))):
        result = soon(t, option, "snapshot", option, path, image)
        error = result.error
        t.equal((result.code, error["guest_state"]), (10, "untouched"), f"{option}: {result.text()}")
        t.check(words[0] in error["message"] and words[1] in error["hint"], f"{option}: {error}")
        result = soon(t, f"check {option}", "check", option, path)
        refused = [o for o in result.of_type("item") if o["refused"]]
        t.equal((result.code, [o["name"] for o in refused]), (10, [option[2:]]), result.text())
        t.check(all(w in refused[0]["reason"] for w in words), f"check {option}: {refused}")
    t.check(not os.path.exists(image), "no image")


@case("minivm.mistakes.not-yet", "kernel", 60)
def not_yet(t):
    """A VMM that greets late is not taken for anything else."""
    vm, _ = with_api(t)
    os.kill(vm.pid, signal.SIGSTOP)
    threading.Timer(2.5, os.kill, (vm.pid, signal.SIGCONT)).start()
    result = vmsnap(t, "snapshot", "--qmp", vm.control, t.path("late.img"))
    t.equal(result.code, 0, result.text())


if __name__ == "__main__":
    main()
