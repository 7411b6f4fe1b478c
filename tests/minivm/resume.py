#!/usr/bin/python3
"""`vmsnap restore --resume PID`: the guest of a restorer that was killed waits, is taken over, goes on, and
every page is right; and what is refused."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, command_line, descendants, kill, main, open_files, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

SIZES = ("--memory", "48M", "--populate", "40M", "--cpus", "2", "--rate", "50000")
# Where the guest runs already, or may.
POINTS = ("restore-running", "restore-prefetched", "restore-filled", "restore-released",
          "restore-closing", "restore-handed-off")
ALONE = {"break": "not-supervised"} # nobody takes over by himself (tests/minivm/supervised.py)


def minivm_of(place):
    """The VMM that listens on the place's socket, once it runs."""
    def found():
        for pid in descendants(os.getpid()):
            words = command_line(pid)
            if words[:1] == [place.argv()[0].encode()] and place.control.encode() in words:
                return pid
        return None
    return wait_until(found, 10, "the VMM is there")


def restore_and_kill(t, image, place, point, *args):
    """Starts the restore, without a supervisor, and lets it be killed at a point; the VMM's pid."""
    log, _, _ = pause_log(t)
    process = start_vmsnap(t, "restore", *args, image, "--", *place.argv(),
                           hooks={"kill_at": point, "pause_log": log, **ALONE})
    wait_until(lambda: os.path.exists(log), 20, f"{point} is reached")
    process.wait(10)
    t.equal(process.returncode, -signal.SIGKILL, f"killed at {point}")
    place.pid = minivm_of(place)
    t.defer(kill, place.pid)
    return place.pid


def check_whole(t, place, what):
    """It goes on, nothing of vmsnap is in it, and every page is right."""
    if not place.qmp:
        place.connect()
    place.wait_for_writes(2000)
    links = open_files(place.pid)
    t.check(not any("userfaultfd" in link or "memfd:vmsnap" in link for link in links),
            f"{what}: its descriptors: {links}")
    flags = set(place.mapping()[1]["VmFlags"].split())
    t.check(not {"um", "uw", "ui"} & flags, f"{what}: its memory is registered nowhere: {flags}")
    place.stop()
    place.check_right(what)


@case("minivm.resume.points", "kernel", 120)
def points(t):
    """Killed at every point from the moment at which the guest runs; anonymous and shared memory."""
    for kind in ("anon", "memfd"):
        options = ("--kind", kind, "--pattern", "random")
        image = take_image(t, *SIZES, *options)
        for point in POINTS:
            inner = t.sub()
            place = MiniVmPlace(inner, *SIZES, *options)
            pid = restore_and_kill(inner, image, place, point)
            result = vmsnap(inner, "restore", "--resume", str(pid))
            if point == "restore-handed-off":
                t.equal(result.code, 10, f"nothing is left to do: {result.text()}")
            else:
                t.equal(result.code, 0, f"{point}: {result.text()}")
                t.equal(result.objects[-1]["type"], "summary", f"{point}: the last object")
                t.check(all(o["guest_state"] == "running" for o in result.of_type("running")),
                        f"{point}: {result.text()}")
            check_whole(inner, place, f"{kind}, {point}")
            inner.end()
        os.unlink(image)


@case("minivm.resume.waits", "kernel", 60)
def waits(t):
    """Until it is taken over the guest waits and reads no zero; the one that took over may be killed
    too; one that serves keeps another out."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    pid = restore_and_kill(t, image, place, "restore-running", "--prefetch", "none")
    place.connect()
    time.sleep(0.3)
    before = place.writes()
    time.sleep(0.5)
    t.equal(place.writes(), before, "the guest waits")
    t.equal(place.stats()["wrong_pages"], 0, "wrong pages that it found")
    for _ in range(10):
        again = start_vmsnap(t, "restore", "--resume", str(pid),
                             hooks={"kill_at": "resume-serving", "pause_log": t.path("again"),
                                    **ALONE})
        again.communicate(timeout=10)
        t.equal(again.returncode, -signal.SIGKILL, "killed as soon as it serves")
    log, reached, go = pause_log(t)
    serving = start_vmsnap(t, "restore", "--resume", str(pid),
                           hooks={"pause_at": "resume-serving", "pause_log": log})
    reached("resume-serving")
    other = vmsnap(t, "restore", "--resume", str(pid))
    t.equal(other.code, 11, f"a second server: {other.text()}")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTOU):
        serving.send_signal(number)
    go()
    done = finish(t, serving)
    t.equal(done.code, 0, f"it outlives the signals: {done.text()}")
    t.check("signal 2 (Interrupt) ends nothing" in done.err, f"and says so: {done.err}")
    check_whole(t, place, "taken over many times")


@case("minivm.resume.no-fill", "kernel", 60)
def no_fill(t):
    """A takeover by hand of a guest that only got what it touched brings in the rest and ends; with
    --no-fill it goes on as before."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES, "--rate", "2000") # it leaves something to be filled
    pid = restore_and_kill(t, image, place, "restore-running", "--no-fill", "--prefetch", "none")
    still = start_vmsnap(t, "restore", "--resume", str(pid), "--no-fill",
                         hooks={"kill_at": "serve-installed:3", "pause_log": t.path("log"), **ALONE})
    still.communicate(timeout=20)
    t.equal(still.returncode, -signal.SIGKILL, "it serves")
    done = vmsnap(t, "restore", "--resume", str(pid))
    t.equal(done.code, 0, done.text())
    t.check(done.summary["pages_filled"] > 1000, f"the rest: {done.summary}")
    check_whole(t, place, "taken over")


@case("minivm.resume.image", "kernel", 60)
def image_moved(t):
    """The image has moved: said, and another path given. Another image, a process that nobody
    restores, and options that make no sense are refused; the guest goes on waiting."""
    image = take_image(t, *SIZES)
    other = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    pid = restore_and_kill(t, image, place, "restore-running")
    os.rename(image, image + ".moved")
    lost = vmsnap(t, "restore", "--resume", str(pid))
    t.equal(lost.code, 1, f"the image is gone: {lost.text()}")
    t.check("--resume" in lost.error["hint"], f"what to do: {lost.error}")
    t.equal(lost.error["guest_state"], "waiting", "guest_state")
    wrong = vmsnap(t, "restore", "--resume", str(pid), other)
    t.equal(wrong.code, 15, f"another image: {wrong.text()}")
    nobody = vmsnap(t, "restore", "--resume", str(os.getpid()))
    t.equal(nobody.code, 10, f"nobody restores this process: {nobody.text()}")
    t.equal(vmsnap(t, "restore", "--resume", str(pid), "--paused").code, 2, "--paused")
    t.equal(vmsnap(t, "restore", "--resume", str(pid), "--report", t.path("r")).code, 2, "--report")
    t.equal(vmsnap(t, "restore").code, 2, "no image")
    done = vmsnap(t, "restore", "--resume", str(pid), image + ".moved")
    t.equal(done.code, 0, f"the moved image: {done.text()}")
    t.check(done.summary["pages_filled"] + done.summary["pages_prefetched"] > 0, f"{done.summary}")
    check_whole(t, place, "moved")


@case("minivm.resume.never-run", "kernel", 60)
def never_run(t):
    """The restorer was killed just before it let the guest run: said, and the guest is paused; with --paused
    it is so on purpose."""
    image = take_image(t, *SIZES)
    for point, args in (("restore-let-live", ()), ("restore-running", ("--paused",))):
        inner = t.sub()
        place = MiniVmPlace(inner, *SIZES)
        pid = restore_and_kill(inner, image, place, point, *args)
        done = vmsnap(inner, "restore", "--resume", str(pid))
        t.equal(done.code, 0, f"{point}: {done.text()}")
        t.equal(done.of_type("running")[0]["guest_state"], "paused", f"{point}: guest_state")
        t.equal("'cont'" in done.err, not args, f"{point}: what to do: {done.err}")
        place.connect()
        t.equal(place.stats()["wrong_pages"], 0, "wrong pages that it found")
        before = place.writes()
        time.sleep(0.3)
        t.equal(place.writes(), before, f"{point}: the guest is paused")
        place.cont()
        check_whole(inner, place, point)
        inner.end()


@case("minivm.resume.nameless", "kernel", 60)
def nameless(t):
    """An image without a name is restored, and given to the successor."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    fd = os.open(image, os.O_RDONLY)
    os.link(image, image + ".kept")
    os.unlink(image)
    log, _, _ = pause_log(t)
    process = start_vmsnap(t, "restore", f"/dev/fd/{fd}", "--", *place.argv(), pass_fds=(fd,),
                           hooks={"kill_at": "restore-running", "pause_log": log, **ALONE})
    wait_until(lambda: os.path.exists(log), 20, "the guest runs")
    process.wait(10)
    place.pid = minivm_of(place)
    t.defer(kill, place.pid)
    lost = vmsnap(t, "restore", "--resume", str(place.pid))
    t.equal(lost.code, 1, f"no image: {lost.text()}")
    t.check("--resume" in lost.error["hint"], f"what to do: {lost.error}")
    done = vmsnap(t, "restore", "--resume", str(place.pid), image + ".kept")
    t.equal(done.code, 0, f"the image: {done.text()}")
    check_whole(t, place, "without a name")


if __name__ == "__main__":
    main()
