#!/usr/bin/python3
"""A restore whose processes are killed: its server at every named point and in the middle of its work, its supervisor,
both at once. Another server takes over by itself, or by hand where nobody is left to; each time every page is right,
nothing of vmsnap stays in the VMM, and who waits for `vmsnap restore` gets the VMM's own status."""

import os
import random
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import (Failed, case, command_line, descendants, is_alive, kill, main, open_files, wait_until)  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from resume import POINTS, SIZES, check_whole, minivm_of  # noqa: E402
from vmsnap import Restore, broken, hook_points, pause_log, vmsnap  # noqa: E402

FROM_LIVE = ("restore-let-live", *POINTS)
BEFORE = ("restore-forked", "restore-launched", "restore-attached", "restore-registered", "restore-state-loaded")
KINDS = (("--kind", "anon", "--pattern", "random"), ("--kind", "memfd", "--pattern", "random"))


def first_line(log):
    """The pid of whom a named point has stopped or killed."""
    def found():
        try:
            with open(log, encoding="ascii") as f:
                words = f.readline().split()
            return int(words[1]) if len(words) == 2 else None
        except FileNotFoundError:
            return None
    return wait_until(found, 20, "the point is reached", every=0.002)


def started(t, image, options, *args, hooks=None):
    place = MiniVmPlace(t, *SIZES, *options)
    return place, Restore(t, image, place, *args, hooks=hooks)


def ours(restored):
    """The processes of a restore, the VMM and its threads aside: the supervisor first."""
    return [restored.process.pid, *(p for p in descendants(restored.process.pid) if is_vmsnap(p))]


def is_vmsnap(pid):
    return [os.path.basename(word) for word in command_line(pid)[:1]] == [b"vmsnap"]


def check_end(t, restored, place, what):
    """All of it is right, and its end is told as if nothing had happened."""
    restored.wait_complete()
    check_whole(t, place, what)
    result = restored.end()
    t.equal(result.code, 0, f"{what}: exit status: {result.text()}")
    t.equal(result.objects[-1]["type"], "exit", f"{what}: the last object: {result.text()}")


# ---- the server is killed

def killed_once(t, image, options, point, again=0):
    log = t.path("log")
    place, restored = started(t, image, options, hooks={"kill_at": point, "pause_log": log,
                                                        "kill_again": again})
    server = first_line(log)
    restored.wait_running()
    t.check(server != restored.process.pid, "server and supervisor are two processes")
    check_end(t, restored, place, f"{options[1]}, server killed at {point}")
    took_over = restored.result().of_type("takeover")
    t.equal(bool(took_over), point != "restore-handed-off", f"{point}: {took_over}")
    t.equal(len([o for o in took_over if o["signal"] == signal.SIGKILL]), len(took_over), "signals")


def killed_at_points(t, times, kinds=KINDS):
    for options in kinds:
        image = take_image(t, *SIZES, *options)
        for point in FROM_LIVE:
            for _ in range(times):
                inner = t.sub()
                killed_once(inner, image, options, point)
                inner.end()
            t.say(f"{options[1]}, {point}: {times} times")
        os.unlink(image)


@case("minivm.supervised.server", "kernel", 120)
def server(t):
    """Killed at each point from the moment at which the VMM is to live on."""
    killed_at_points(t, 1)


@case("minivm.supervised.server-20", "kernel,slow", 1500)
def server_20(t):
    killed_at_points(t, 20)


@case("minivm.supervised.noticed", "kernel", 60)
def noticed(t):
    """That test fails if nobody takes over."""
    image = take_image(t, *SIZES)
    inner = t.sub()
    inner.quiet = True
    with broken("not-supervised"):
        try:
            killed_once(inner, image, KINDS[0], "restore-running")
        except (Failed, OSError) as error:
            t.say(f"noticed: {str(error)[:100]}")
            return
    raise Failed("not noticed that nobody takes over")


@case("minivm.supervised.successors", "kernel", 60)
def successors(t):
    """Each successor is killed too, while it gets on: the guest goes on in between."""
    image = take_image(t, *SIZES, *KINDS[0])
    log = t.path("log")
    place, restored = started(t, image, KINDS[0],
                              hooks={"kill_at": "serve-read:20", "pause_log": log, "kill_again": 8})
    restored.wait_running()
    check_end(t, restored, place, "killed over and over")
    t.check(len(restored.result().of_type("takeover")) >= 3, "hardly any was killed")


# ---- in the middle of something: each time it is done, or within an injection

SERVING = hook_points("serve-", "fill-")


INJECTING = hook_points("inject-")


def killed_anywhere(t, image, options, point, nth):
    """The server is killed the nth time it gets to a point, wherever that is: nothing is left of a VMM that has
    not run, and all is right with one that has. What became of it."""
    place, restored = started(t, image, options,
                              hooks={"kill_at": f"{point}:{nth}", "pause_log": t.path("log")})
    what = f"{options[1]}, killed at {point}, time {nth}"
    wait_until(lambda: restored.result().of_type("running") or restored.process.poll() is not None, 30, what)
    if not restored.result().of_type("running"):
        check_too_soon(t, restored, place, what)
        return "too soon"
    restored.wait_running()
    check_end(t, restored, place, what)
    if restored.result().of_type("takeover"):
        return "taken over"
    return "at the end" if os.path.exists(t.path("log")) else "not reached"


def check_too_soon(t, restored, place, what):
    restored.process.wait(20)
    result = restored.result()
    t.equal(result.code, 1, f"{what}: {result.text()}")
    t.equal(result.error["guest_state"], "not-started", f"{what}: guest_state")
    t.check(not is_left(place), f"{what}: no VMM is left")


def killed_serving(t, times, seed):
    chance = random.Random(seed)
    t.say(f"seed {seed}")
    for options in KINDS:
        image = take_image(t, *SIZES, *options)
        for point in SERVING:
            ends = []
            for _ in range(times):
                inner = t.sub()
                nth = chance.randint(1, 3 if point == "serve-releasing" else 300)
                ends.append(killed_anywhere(inner, image, options, point, nth))
                inner.end()
            t.say(f"{options[1]}, {point}: {ends}")
        os.unlink(image)


@case("minivm.supervised.serving", "kernel", 90)
def serving(t):
    """Killed while it reads faults, fills, unregisters: the nth time."""
    killed_serving(t, 2, random.randrange(1 << 30))


@case("minivm.supervised.serving-20", "kernel,slow", 900)
def serving_20(t):
    killed_serving(t, 20, random.randrange(1 << 30))


def killed_injecting(t, points, times, options):
    """A server injects system calls to attach, and to hand off: at each of its points, each time it comes
    there."""
    image = take_image(t, *SIZES, *options)
    seen = set()
    for point in points:
        ends = []
        while not ends or ends[-1] != "not reached":
            inner = t.sub()
            ends.append(killed_anywhere(inner, image, options, point, len(ends) // times + 1))
            inner.end()
        seen.update(ends)
        t.say(f"{point}: {ends}")
    t.check({"too soon", "taken over"} <= seen, f"before and after the guest runs: {seen}")


@case("minivm.supervised.injecting", "kernel", 120)
def injecting(t):
    killed_injecting(t, ("inject-stopped", "inject-in-syscall", "inject-after-syscall"), 1, KINDS[0])


@case("minivm.supervised.injecting-20", "kernel,slow", 3000)
def injecting_20(t):
    killed_injecting(t, INJECTING, 20, KINDS[0])


# ---- the supervisor is killed, or all at once

def killed_while_held(t, image, options, point, whom):
    """The server stands still at a point while `whom` are killed."""
    log, reached, go = pause_log(t)
    place, restored = started(t, image, options, hooks={"pause_at": point, "pause_log": log})
    server_pid = reached(point)
    place.pid = minivm_of(place)
    t.defer(kill, place.pid)
    supervisor = restored.process.pid
    what = f"{options[1]}, {whom} killed at {point}"
    kill(supervisor)
    if whom == "all":
        kill(server_pid)
    go()
    restored.process.wait(10)
    t.equal(restored.process.returncode, -signal.SIGKILL, what)
    if whom == "all":
        wait_until(lambda: not is_alive(server_pid), 10, "the server is gone")
        done = vmsnap(t, "restore", "--resume", str(place.pid))
        t.equal(done.code, 10 if point == "restore-handed-off" else 0, f"{what}: {done.text()}")
        if point == "restore-let-live":
            place.connect()
            place.cont()
        check_whole(t, place, what)
    else:
        wait_until(lambda: not holds_anything(place.pid), 30, f"{what}: the server fills on")
        check_whole(t, place, what)
        t.check(is_alive(server_pid), f"{what}: the server lives on")


def holds_anything(pid):
    links = open_files(pid)
    return any("userfaultfd" in link or "memfd:vmsnap" in link for link in links)


def held_at_points(t, times, kinds=KINDS):
    for options in kinds:
        image = take_image(t, *SIZES, *options)
        for point in FROM_LIVE:
            for whom in ("supervisor", "all"):
                for _ in range(times):
                    inner = t.sub()
                    killed_while_held(inner, image, options, point, whom)
                    inner.end()
            t.say(f"{options[1]}, {point}: {times} times each")
        os.unlink(image)


@case("minivm.supervised.supervisor", "kernel", 120)
def supervisor_killed(t):
    """The supervisor killed alone, or with its server, at the same points."""
    held_at_points(t, 1, KINDS[:1])


@case("minivm.supervised.supervisor-20", "kernel,slow", 2400)
def supervisor_killed_20(t):
    held_at_points(t, 20)


def before_at_points(t, times):
    image = take_image(t, *SIZES)
    for point in BEFORE:
        for _ in range(times):
            inner = t.sub()
            log = inner.path("log")
            pid_path = inner.path("pid")
            place, restored = started(inner, image, (), "--pidfile", pid_path,
                                      hooks={"kill_at": point, "pause_log": log})
            first_line(log)
            check_too_soon(inner, restored, place, point)
            t.check(not os.path.exists(pid_path), "no pidfile is left")
            inner.end()


def is_left(place):
    """Whether there is a VMM, or a vmsnap for it."""
    return any(place.control.encode() in command_line(pid) for pid in descendants(os.getpid()))


@case("minivm.supervised.too-soon", "kernel", 60)
def too_soon(t):
    """Killed before the guest was to run: an error, and nothing is left."""
    before_at_points(t, 1)


@case("minivm.supervised.too-soon-20", "kernel,slow", 300)
def too_soon_20(t):
    before_at_points(t, 20)


if __name__ == "__main__":
    main()
