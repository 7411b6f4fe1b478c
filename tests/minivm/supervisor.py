#!/usr/bin/python3
"""What the supervisor of a restore does besides replacing servers: it gives up, stands back from who took over by hand,
reports, continues a stopped server, and tells of the VMM's end."""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, kill, main, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from resume import ALONE, SIZES, check_whole, minivm_of  # noqa: E402
from supervised import KINDS, holds_anything, ours, started  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402


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
