#!/usr/bin/python3
"""Requests to end that come by different ways: to the supervisor alone, to the whole group as a terminal
sends them, before and after a server was replaced."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, main, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from supervised import ours  # noqa: E402
from vmsnap import Restore  # noqa: E402

SIZES = ("--memory", "16M", "--populate", "8M")
WAYS = {"alone": lambda restored, number: os.kill(restored.process.pid, number),
        "group": lambda restored, number: os.killpg(restored.process.pid, number)}


def ask_twice(t, image, first, second, replaced):
    """The VMM stands still, so that it heeds nothing: the first request leaves it, the second kills it."""
    what = f"{first}, {'another server, ' if replaced else ''}{second}"
    pidfile = t.path("pid")
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--no-fill", "--pidfile", pidfile).wait_running()
    os.kill(place.pid, signal.SIGSTOP)
    WAYS[first](restored, signal.SIGINT)
    time.sleep(0.3)
    t.check(is_alive(place.pid) and restored.process.poll() is None, f"{what}: the first is not the end")
    t.check(os.path.exists(pidfile), f"{what}: the pidfile stays as long as the VMM lives")
    if replaced:
        os.kill(ours(restored)[1], signal.SIGKILL)
        wait_until(lambda: restored.result().of_type("takeover"), 10, f"{what}: another server")
    WAYS[second](restored, signal.SIGINT)
    wait_until(lambda: restored.process.poll() is not None, 10, f"{what}: it ends")
    result = restored.result()
    t.equal((result.code, result.objects[-1]["type"]), (137, "exit"), f"{what}: {result.text()}")
    t.check(not is_alive(place.pid), f"{what}: the VMM is gone")
    t.check(not os.path.exists(pidfile), f"{what}: the pidfile goes with it")


@case("minivm.ends.ways", "kernel", 60)
def ways(t):
    image = take_image(t, *SIZES)
    for first in WAYS:
        for second in WAYS:
            for replaced in (False, True):
                inner = t.sub()
                ask_twice(inner, image, first, second, replaced)
                inner.end()


@case("minivm.ends.wrapper-left", "kernel", 60)
def wrapper_left(t):
    """The VMM has ended, its wrapper goes on and is waited for: whoever asks for the end then gets it."""
    image = take_image(t, *SIZES)
    for replaced in (False, True):
        inner = t.sub()
        place = MiniVmPlace(inner, *SIZES)
        restored = Restore(inner, image, place, "--no-fill",
                           wrapper=("sh", "-c", '"$@"; exec sleep 100', "sh")).wait_running()
        if replaced:
            os.kill(ours(restored)[1], signal.SIGKILL)
            wait_until(lambda r=restored: r.result().of_type("takeover"), 10, "another server")
        os.kill(place.pid, signal.SIGKILL)
        wait_until(lambda p=place: not is_alive(p.pid), 10, "the VMM is gone")
        time.sleep(1)
        t.check(restored.process.poll() is None, "the wrapper is waited for")
        os.kill(restored.process.pid, signal.SIGTERM)
        wait_until(lambda r=restored: r.process.poll() is not None, 10, f"it ends ({replaced})")
        inner.end()


if __name__ == "__main__":
    main()
