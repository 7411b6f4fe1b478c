#!/usr/bin/python3
"""A restore whose processes are killed: its server at every named point and at random moments, its supervisor,
both at once. Another server takes over by itself, or by hand where nobody is left to; each time every page is
right, nothing of vmsnap stays in the VMM, and who waits for `vmsnap restore` gets the VMM's own status."""

import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, descendants, is_alive, main, open_files, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from resume import ALONE, POINTS, SIZES, check_whole, kill, minivm_of  # noqa: E402
from vmsnap import (Restore, broken, finish, hook_points, pause_log, start_vmsnap,  # noqa: E402
                    vmsnap)

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
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return os.path.basename(f.read().split(b"\0")[0]) == b"vmsnap"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
    return any(place.control.encode() in cmdline(pid) for pid in descendants(os.getpid()))


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except OSError:
        return b""


@case("minivm.supervised.too-soon", "kernel", 60)
def too_soon(t):
    """Killed before the guest was to run: an error, and nothing is left."""
    before_at_points(t, 1)


@case("minivm.supervised.too-soon-20", "kernel,slow", 300)
def too_soon_20(t):
    before_at_points(t, 20)


# ---- random moments

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
                   "server": [p for p in ours(restored) if named(p) == "vmsnap-server"]}[whom]
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


def named(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as f:
            return f.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None


@case("minivm.supervised.starts-6", "kernel", 90)
def starts_6(t):
    random_starts(t, 6, random.randrange(1 << 30))


@case("minivm.supervised.starts-100", "kernel,slow", 900)
def starts_100(t):
    random_starts(t, 100, random.randrange(1 << 30))


# ---- what it does besides

@case("minivm.supervised.gives-up", "kernel", 90)
def gives_up(t):
    """Servers that die at once are not started for ever, nor if the image is gone: said, and the guest waits,
    until somebody takes over by hand. The supervisor still sees the VMM's end through."""
    image = take_image(t, *SIZES, *KINDS[0])
    for cause in ("killed", "no image"):
        inner = t.sub()
        log, reached, go = pause_log(inner)
        hooks = {"kill_at": "resume-taken", "kill_again": 100, "pause_log": log,
                 "pause_at": "restore-running"}
        place, restored = started(inner, image, KINDS[0], "--no-fill", "--prefetch", "none", hooks=hooks)
        first = reached("restore-running")
        if cause == "no image":
            os.rename(image, image + ".moved")
        kill(first)
        go()
        place.pid = minivm_of(place)
        inner.defer(kill, place.pid)
        wait_until(lambda restored=restored: restored.result().of_type("error"), 30, "it gives up")
        time.sleep(0.2)
        errors = restored.result().of_type("error")
        t.check("served no more" in errors[-1]["message"], f"the last word: {errors}")
        t.equal(errors[-1]["guest_state"], "waiting", "guest_state")
        t.check("--resume" in errors[-1]["hint"], f"what to do: {errors}")
        if cause == "no image":
            t.check("--resume" in errors[0]["hint"], f"the cause says what to do, too: {errors}")
        t.equal(len(errors), 1 if cause == "killed" else 2, f"{cause}: errors: {errors}")
        t.check(is_alive(restored.process.pid), "the supervisor waits for the VMM's end")
        restored.process.send_signal(signal.SIGUSR1)
        wait_until(lambda restored=restored: f"process {place.pid} is served no more from here"
                   in restored.result().err, 5, "an answer to SIGUSR1")
        again = start_vmsnap(inner, "restore", "--resume", str(place.pid),
                             *([image + ".moved"] if cause == "no image" else []))
        place.connect()
        place.wait_for_writes(500)
        wait_until(lambda: restored.result().of_type("summary"), 20, "it hears that all is in")
        last = restored.result().of_type("summary")[-1]
        t.equal((last["handed_over"], last["complete_ns"]), (True, None), f"its last words: {last}")
        place.qmp.command("quit")
        t.equal(finish(inner, again).code, 0, "the one by hand")
        restored.process.wait(20)
        t.equal(restored.result().code, 0, "the VMM's own status")
        if cause == "no image":
            os.rename(image + ".moved", image)
        inner.end()


@case("minivm.supervised.by-hand", "kernel", 60)
def by_hand(t):
    """A takeover by hand has a supervisor, too; and keeps another server out, which waits and watches."""
    image = take_image(t, *SIZES, *KINDS[0])
    log = t.path("log")
    place, restored = started(t, image, KINDS[0], "--no-fill", "--prefetch", "none")
    restored.wait_running()
    for pid in ours(restored):
        kill(pid)
    restored.process.wait(10)
    first = start_vmsnap(t, "restore", "--no-fill", "--resume", str(place.pid),
                         hooks={"kill_at": "resume-serving", "pause_log": log, "kill_again": 2})
    wait_until(lambda: os.path.exists(log) and len(open(log, encoding="ascii").readlines()) == 3, 20,
               "it and two successors are killed")
    place.wait_for_writes(500)
    second = vmsnap(t, "restore", "--resume", str(place.pid))
    t.check(second.code == 11, f"one serves already: {second.text()}")
    place.wait_for_writes(500)
    place.qmp.command("quit")
    t.equal(finish(t, first).code, 0, "exit status")


@case("minivm.supervised.pidfile-by-hand", "kernel", 60)
def pidfile_by_hand(t):
    """A takeover by hand removes the earlier pidfile at the VMM's end, if it is that VMM's; killed ones too."""
    image = take_image(t, *SIZES, *KINDS[0])
    pidfile = t.path("pid")
    place, restored = started(t, image, KINDS[0], "--no-fill", "--prefetch", "none", "--pidfile", pidfile)
    restored.wait_running()
    for pid in ours(restored):
        kill(pid)
    restored.process.wait(10)
    with open(t.path("other"), "w", encoding="ascii") as f:
        f.write("1\n")
    for wrong in ("other", "none"):
        refused = vmsnap(t, "restore", "--resume", str(place.pid), "--pidfile", t.path(wrong))
        t.equal(refused.code, 1, f"{wrong}: {refused.text()}")
        t.check("pidfile" in refused.error["message"], f"why: {refused.error}")
    by = start_vmsnap(t, "restore", "--resume", str(place.pid), "--pidfile", pidfile,
                      hooks={"kill_at": "resume-serving", "pause_log": t.path("log")})
    place.wait_for_writes(500)
    t.check(os.path.exists(pidfile), "it is there as long as the VMM lives")
    place.qmp.command("quit")
    t.equal(finish(t, by).code, 0, "exit status")
    t.check(not os.path.exists(pidfile) and os.path.exists(t.path("other")), "it is gone, and no other")


@case("minivm.supervised.race", "kernel", 60)
def race(t):
    """By hand was quicker: the supervisor waits, and takes over when that one is killed as well."""
    image = take_image(t, *SIZES, *KINDS[0])
    log, reached, go = pause_log(t)
    place, restored = started(t, image, KINDS[0], "--no-fill", "--prefetch", "none")
    restored.wait_running()
    mine = ours(restored)
    os.kill(mine[0], signal.SIGSTOP)
    kill(mine[1])
    by = start_vmsnap(t, "restore", "--no-fill", "--resume", str(place.pid),
                      hooks={"pause_at": "resume-serving", "pause_log": log, **ALONE})
    reached("resume-serving")
    go()
    os.kill(mine[0], signal.SIGCONT)
    place.wait_for_writes(200)
    time.sleep(1.5)
    t.check(is_alive(mine[0]), "the supervisor is there")
    by.kill()
    by.wait(10)
    place.wait_for_writes(2000)
    t.equal(restored.result().of_type("error"), [], "errors")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.supervised.detached", "kernel", 60)
def detached(t):
    """--detach: the caller is told that the guest runs whoever gets that far; --report tells of takeovers;
    the pidfile goes with the VMM."""
    image = take_image(t, *SIZES, *KINDS[0])
    for point in ("restore-let-live", "restore-running", "restore-filled", "restore-handed-off"):
        inner = t.sub()
        place = MiniVmPlace(inner, *SIZES, *KINDS[0])
        log, report, pidfile = (inner.path(n) for n in ("log", "report", "pid"))
        done = vmsnap(inner, "restore", "--detach", "--pidfile", pidfile, "--report", report, image, "--",
                      *place.argv(), hooks={"kill_at": point, "pause_log": log})
        t.equal(done.code, 0, f"{point}: {done.text()}")
        place.pid = done.of_type("running")[0]["vmm_pid"]
        inner.defer(kill, place.pid)
        wait_until(lambda place=place: not holds_anything(place.pid), 30, f"{point}: all is filled")
        check_whole(inner, place, point)
        with open(report, encoding="utf-8") as f:
            types = [json.loads(line)["type"] for line in f]
        t.equal("takeover" in types, point != "restore-handed-off", f"{point}: {types}")
        with open(pidfile, encoding="ascii") as f:
            t.equal(int(f.read()), place.pid, "the pidfile")
        place.qmp.command("quit")
        if point != "restore-handed-off":
            wait_until(lambda pidfile=pidfile: not os.path.exists(pidfile), 10, f"{point}: the pidfile goes")
        inner.end()


@case("minivm.supervised.stopped", "kernel", 60)
def stopped(t):
    """SIGSTOP for the server alone: the supervisor continues it, its guest does not hang."""
    image = take_image(t, *SIZES, *KINDS[0])
    place, restored = started(t, image, KINDS[0], "--no-fill", "--prefetch", "none")
    restored.wait_running()
    for _ in range(3):
        os.kill(ours(restored)[1], signal.SIGSTOP)
        place.wait_for_writes(500)
    t.equal(restored.result().of_type("takeover"), [], "nobody had to take over")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.supervised.signals", "kernel", 60)
def signals(t):
    """Under a successor as before: SIGTERM ends the VMM, whose status is ours, and a VMM that is killed is
    told as such; pidfile and exit object are as ever."""
    image = take_image(t, *SIZES, *KINDS[0])
    for how in ("terminate", "kill the VMM"):
        inner = t.sub()
        log, pidfile = inner.path("log"), inner.path("pid")
        place, restored = started(inner, image, KINDS[0], "--no-fill", "--pidfile", pidfile,
                                  hooks={"kill_at": "restore-running", "pause_log": log})
        restored.wait_running()
        t.check(os.path.exists(pidfile), "the pidfile is there")
        if how == "terminate":
            restored.process.terminate()
        else:
            kill(place.pid)
        restored.process.wait(20)
        result = restored.result()
        t.check(result.code == 137 if how == "kill the VMM" else result.code in (0, 143),
                f"{how}: {result.text()}")
        t.equal(result.objects[-1]["type"], "exit", f"{how}: the last object")
        t.equal(result.objects[-1]["exit_status"], result.code, f"{how}: exit_status")
        t.check(not os.path.exists(pidfile), f"{how}: the pidfile is gone")
        t.check(not is_alive(place.pid), f"{how}: the VMM is gone")
        inner.end()


if __name__ == "__main__":
    main()
