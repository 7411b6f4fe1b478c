#!/usr/bin/python3
"""Snapshots of what vmsnap has restored: refused by name as long as memory may be missing, whatever became of
the restore; once all is in, as good as any, over generations."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from damage import damage_middle  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from resume import SIZES, check_whole, minivm_of, restore_and_kill  # noqa: E402
from vmsnap import Restore, finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

KINDS = (("--kind", "anon", "--pattern", "random"), ("--kind", "memfd", "--pattern", "random"))
KILL_POINTS = ("snapshot-registered", "snapshot-paused", "snapshot-resumed", "snapshot-finished",
               "snapshot-armed", "snapshot-sweeping:20")


def check_refused(t, place, image, words, what, checks=("--qmp", "--pid")):
    """snapshot and check say so; the guest is not touched, nothing is published, it says what to do."""
    refused = vmsnap(t, "snapshot", "--qmp", place.control, image)
    t.equal(refused.code, 11, f"{what}: {refused.text()}")
    for word in words:
        t.check(word in refused.error["message"], f"{what}: '{word}' in: {refused.error}")
    t.check("--resume" in refused.error["hint"], f"{what}: what to do: {refused.error}")
    t.check(not os.path.exists(image), f"{what}: something was published")
    for option in checks:
        checked = vmsnap(t, "check", option, {"--qmp": place.control, "--pid": str(place.pid)}[option])
        t.equal(checked.code, 11, f"{what}: check: {checked.text()}")
        items = [o for o in checked.objects if o.get("name") == "userfaultfd" and not o["ok"]]
        t.equal(len(items), 1, f"{what}: items named userfaultfd: {checked.text()}")
        t.check(words[0] in items[0]["reason"], f"{what}: {items}")
    return refused


def generation(t, place, image, options):
    """A snapshot of the guest at `place`, which ends, restored: (place, Restore), its memory complete."""
    place.wait_for_writes(5000)
    taken = vmsnap(t, "snapshot", "--qmp", place.control, image)
    t.equal(taken.code, 0, f"snapshot: {taken.text()}")
    end_place(place)
    following = MiniVmPlace(t, *SIZES, *options)
    restored = Restore(t, image, following).wait_running()
    restored.wait_complete()
    return following, restored


def end_place(place):
    place.qmp.command("quit")


@case("minivm.again.generations", "kernel", 60)
def generations(t):
    """Three generations, each a snapshot of the guest that was restored from the one before."""
    for options in KINDS:
        image = take_image(t, *SIZES, *options)
        place = MiniVmPlace(t, *SIZES, *options)
        Restore(t, image, place).wait_running().wait_complete()
        os.unlink(image)
        for n in (2, 3):
            place, _ = generation(t, place, t.path(f"{options[1]}{n}"), options)
        check_whole(t, place, f"{options[1]}, third generation")
        end_place(place)


@case("minivm.again.recorded-line", "kernel", 60)
def recorded_line(t):
    """The recorded command line of a restored guest is that of the first: what a restore adds is not handed
    down."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    Restore(t, image, place).wait_running().wait_complete()
    second = t.path("second")
    t.equal(vmsnap(t, "snapshot", "--qmp", place.control, second).code, 0, "snapshot")
    end_place(place)
    line = vmsnap(t, "restore", "--print-command", second, json_=False).out
    t.equal(line.count("--vmsnap-incoming"), 0, f"on the line: {line}")
    again = Restore(t, second, MiniVmPlace(t, *SIZES, control=place.control), recorded=True)
    again.wait_running().wait_complete()
    check_whole(t, again.guest, "restored by the recorded line")


@case("minivm.again.fill", "kernel", 60)
def fill(t):
    """While memory comes in; with --no-fill, which never ends; once all is in it is done."""
    for options in KINDS:
        image = take_image(t, *SIZES, *options)
        place = MiniVmPlace(t, *SIZES, *options)
        # Paused: a guest that runs has touched all of it soon.
        restored = Restore(t, image, place, "--paused", "--bwlimit", "2M", "--prefetch", "none").wait_running()
        check_refused(t, place, t.path("none"), ["a restore is still bringing its memory in"],
                      f"{options[1]}, filling")
        place.cont()
        place.wait_for_writes(500)
        restored.give_up()
        place = MiniVmPlace(t, *SIZES, *options)
        restored = Restore(t, image, place, "--no-fill", "--paused").wait_running()
        check_refused(t, place, t.path("none"), ["a restore is still bringing its memory in"],
                      f"{options[1]}, --no-fill")
        restored.give_up()
        os.unlink(image)


@case("minivm.again.attaching", "kernel", 60)
def attaching(t):
    """Before memory is registered the record alone tells."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    log, reached, go = pause_log(t)
    restored = Restore(t, image, place, hooks={"pause_at": "restore-attached", "pause_log": log})
    reached("restore-attached")
    place.pid = minivm_of(place)
    flags = {f for line in open(f"/proc/{place.pid}/smaps", encoding="ascii", errors="replace")
             if line.startswith("VmFlags") for f in line.split()[1:]}
    t.check(not {"um", "uw", "ui"} & flags, "nothing is registered yet")
    check_refused(t, place, t.path("none"), ["a restore is still bringing its memory in"], "attaching",
                  checks=("--pid",))
    go()
    restored.wait_running().wait_complete()
    check_whole(t, place, "afterwards")


@case("minivm.again.orphan", "kernel", 60)
def orphan(t):
    """Nobody brings in what is missing: said at once, though the VMM may not answer; after a takeover by hand
    the snapshot is as good as any."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    pid = restore_and_kill(t, image, place, "restore-running", "--prefetch", "none")
    began = time.monotonic()
    refused = check_refused(t, place, t.path("none"), ["it was being restored", "is gone"], "killed")
    t.equal(refused.error["guest_state"], "waiting", "guest_state")
    t.check(time.monotonic() - began < 10, "said at once")
    done = vmsnap(t, "restore", "--resume", str(pid))
    t.equal(done.code, 0, done.text())
    place.connect()
    place, _ = generation(t, place, t.path("second"), ())
    check_whole(t, place, "taken over, snapshotted, restored")


@case("minivm.again.left-over", "kernel", 60)
def left_over(t):
    """A restorer that was killed when all was in, but before it had closed its descriptors in the VMM: memory
    is complete, and the snapshot is right."""
    image = take_image(t, *SIZES)
    for point in ("restore-released", "restore-closing"):
        inner = t.sub()
        place = MiniVmPlace(inner, *SIZES)
        restore_and_kill(inner, image, place, point)
        place.connect()
        place, _ = generation(inner, place, inner.path("second"), ())
        check_whole(inner, place, f"killed at {point}")
        inner.end()


@case("minivm.again.damaged", "kernel", 60)
def damaged(t):
    """A page of the image can't be had: what is missing is never taken for zero."""
    image = take_image(t, *SIZES)
    bad, _, _ = damage_middle(t, image)
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, bad, place).wait_running()
    wait_until(lambda: restored.result().of_type("error"), 20, "the damage is told")
    check_refused(t, place, t.path("none"), ["a restore is still bringing", "damaged"], "damaged")
    restored.give_up()


@case("minivm.again.learning", "kernel", 60)
def learning(t):
    """While the guest's own working set is recorded nothing else comes in."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--learn").wait_running()
    place.wait_for_writes(100)
    check_refused(t, place, t.path("none"), ["a restore is still bringing its memory in"], "learning")
    restored.give_up()


@case("minivm.again.killed", "kernel", 120)
def killed(t):
    """The snapshot of a restored guest is killed in mid-flight: the guest goes on, its memory right."""
    for options in KINDS:
        image = take_image(t, *SIZES, *options)
        place = MiniVmPlace(t, *SIZES, *options)
        restored = Restore(t, image, place).wait_running()
        restored.wait_complete()
        for point in KILL_POINTS if options == KINDS[0] else KILL_POINTS[-2:]:
            log, _, _ = pause_log(t)
            process = start_vmsnap(t, "snapshot", "--qmp", place.control, t.path("none"),
                                   hooks={"kill_at": point, "pause_log": log})
            ended = finish(t, process)
            t.check(os.path.exists(log), f"{point} is reached")
            t.equal(ended.code, 1, f"{options[1]}, {point}: {ended.text()}")
            t.check(ended.error["guest_state"] in ("running", "untouched"), f"{point}: {ended.error}")
            place.wait_for_writes(1000)
            t.check(not os.path.exists(t.path("none")), "nothing is published")
        check_whole(t, place, f"{options[1]}, snapshots killed")
        place.cont()
        t.equal(vmsnap(t, "snapshot", "--qmp", place.control, t.path("whole")).code, 0, "the next one")
        restored.give_up()
        os.unlink(t.path("whole"))
        os.unlink(image)


if __name__ == "__main__":
    main()
