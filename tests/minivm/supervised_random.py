#!/usr/bin/python3
"""A restore whose processes are killed at random moments, from its start on or while its guest runs (at named points:
supervised.py)."""

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, kill, main, process_name, wait_until  # noqa: E402
from minivm import take_image  # noqa: E402
from resume import SIZES, check_whole  # noqa: E402
from supervised import KINDS, check_too_soon, holds_anything, is_left, ours, started  # noqa: E402
from vmsnap import vmsnap  # noqa: E402


def random_moments(t, times, seed):
    """SIGKILL for the server, the supervisor or both at a random moment after the guest runs."""
    chance = random.Random(seed)
    t.say(f"seed {seed}")
    images = [(options, take_kept_image(t, number, *options)) for number, options in enumerate(KINDS)]
    by_hand = 0
    for number in range(times):
        inner = t.sub()
        options, image = chance.choice(images)
        place, restored = started(inner, image, options, *chance.choice(((), ("--prefetch", "none"))))
        restored.wait_running()
        delay = chance.uniform(0, 0.25)
        time.sleep(delay)
        victims = ours(restored)
        whom = chance.choice(("first", "last", "all"))
        chosen = {"first": victims[:1], "last": victims[-1:], "all": victims}[whom]
        for pid in chosen:
            kill(pid)
        what = f"{number}: {options[1]}, {whom} of {len(victims)} killed after {delay:.3f} s"
        if whom == "all":
            restored.process.wait(10)
            for pid in victims: # on a busy host that takes a while
                wait_until(lambda pid=pid: not is_alive(pid), 10, f"{what}: {pid} is gone")
            done = vmsnap(inner, "restore", "--resume", str(place.pid))
            t.check(done.code in (0, 10), f"{what}: {done.text()}")
            by_hand += done.code == 0
        wait_until(lambda place=place: not holds_anything(place.pid), 30, f"{what}: all is filled")
        check_whole(inner, place, what)
        inner.end()
    t.say(f"{times} times; {by_hand} taken over by hand")


def take_kept_image(t, number, *options):
    image = take_image(t, *SIZES, *options)
    kept = f"{image}.{number}"
    os.rename(image, kept)
    return kept


@case("minivm.supervised.random-6", "kernel", 90)
def random_6(t):
    random_moments(t, 6, random.randrange(1 << 30))


@case("minivm.supervised.random-100", "kernel,slow", 900)
def random_100(t):
    random_moments(t, 100, random.randrange(1 << 30))


def random_starts(t, times, seed):
    """SIGKILL for server or supervisor at a random moment from the start on. Of a server killed early nothing
    is left; else the guest runs, and all is right."""
    chance = random.Random(seed)
    t.say(f"seed {seed}")
    images = [(options, take_kept_image(t, number, *options)) for number, options in enumerate(KINDS)]
    too_early = 0
    for number in range(times):
        inner = t.sub()
        options, image = chance.choice(images)
        place, restored = started(inner, image, options)
        delay = chance.uniform(0, 0.12)
        time.sleep(delay)
        whom = chance.choice(("server", "supervisor"))
        victims = {"supervisor": [restored.process.pid],
                   "server": [p for p in ours(restored) if process_name(p) == "vmsnap-server"]}[whom]
        for pid in victims:
            kill(pid)
        what = f"{number}: {options[1]}, {whom} killed after {delay:.3f} s"
        wait_until(lambda restored=restored, whom=whom, place=place: restored.result().of_type("running") or
                   (restored.process.poll() is not None and (whom == "server" or not is_left(place))), 30, what)
        if restored.result().of_type("running"):
            place.pid = restored.result().of_type("running")[0]["vmm_pid"]
            inner.defer(kill, place.pid)
            place.connect()
            wait_until(lambda place=place: not holds_anything(place.pid), 30, f"{what}: all is filled")
            check_whole(inner, place, what)
        else:
            too_early += 1
            if whom == "server" and victims:
                check_too_soon(inner, restored, place, what)
        inner.end()
    t.say(f"{times} times; {too_early} before the guest ran")


@case("minivm.supervised.starts-6", "kernel", 90)
def starts_6(t):
    random_starts(t, 6, random.randrange(1 << 30))


@case("minivm.supervised.starts-100", "kernel,slow", 900)
def starts_100(t):
    random_starts(t, 100, random.randrange(1 << 30))


if __name__ == "__main__":
    main()
