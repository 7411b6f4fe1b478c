#!/usr/bin/python3
"""The processes that read the image for a server (restore/read/reader.h) are killed, at their pause points and
at random, one by one and all at once: others take their place, or it is said what is wrong; no fault is lost
and no page is wrong."""

import contextlib
import glob
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, kill, main, process_name, wait_until  # noqa: E402
from damage import SIZES, check_goes_on  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from resume import restore_and_kill  # noqa: E402
from slowfile import SlowFile  # noqa: E402
from vmsnap import Restore, hook_points, json_lines, start_vmsnap, vmsnap  # noqa: E402


def is_called(pid, name):
    return process_name(pid) == name


def readers(restored):
    """Those of a restore that are there now. Quick: they don't live long."""
    if not restored.server or not is_called(restored.server, "vmsnap-server"):
        restored.server = next((p for p in descendants(restored.process.pid)
                                if is_called(p, "vmsnap-server")), None)
    found = []
    for path in glob.glob(f"/proc/{restored.server}/task/*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, encoding="ascii") as f:
            found += [int(p) for p in f.read().split() if is_called(int(p), "vmsnap-reader")]
    return found


def check_whole(t, restored, place, what):
    """It goes to its end as if nothing had happened."""
    summary = restored.wait_complete(40)
    t.equal(summary["clusters_damaged"], 0, f"{what}: damage")
    check_goes_on(place, what)
    result = restored.end()
    # Where several in a row die within a read that may be said; it is tried again.
    others = [e for e in result.of_type("error") if "are killed" not in e["message"]]
    t.equal((result.code, others), (0, []), f"{what}: {result.text()}")
    t.equal(result.of_type("takeover"), [], f"{what}: the server lives on")


def started(t, image, *args, **options):
    """All of the image is read by readers: it lies on FUSE, which has no RWF_NOWAIT."""
    slow = SlowFile(t, image)
    place = MiniVmPlace(t, *SIZES)
    return slow, place, Restore(t, slow.path, place, *args, **options)


def killed_at(t, image, point, nth):
    """Every reader dies when it gets there the nth time."""
    log = t.path("log")
    _, place, restored = started(t, image, hooks={"kill_at": f"{point}:{nth}", "pause_log": log})
    check_whole(t, restored.wait_running(), place, f"{point}, time {nth}")
    n = 0
    if os.path.exists(log):
        with open(log, encoding="ascii") as f:
            n = len(f.readlines())
    t.check(n >= 10 or point == "reader-ahead", f"{point}: {n} readers were killed")
    return n


def killed_at_points(t, times):
    image = take_image(t, *SIZES)
    for point in hook_points("reader-"):
        killed = []
        for i in range(times):
            inner = t.sub()
            killed.append(killed_at(inner, image, point, 1 if point == "reader-ahead" else 2 + i))
            inner.end()
        # Reading ahead is at low priority: on a busy host all may be in before it has begun.
        t.check(sum(killed) * 2 >= times - 1, f"{point}: {killed} readers were killed")
        t.say(f"{point}: {killed} readers were killed")


@case("minivm.readers.points", "kernel", 60)
def points(t):
    killed_at_points(t, 1)


@case("minivm.readers.points-20", "kernel,slow", 600)
def points_20(t):
    killed_at_points(t, 20)


class Killer(threading.Thread):
    """Kills readers at random moments: one at a time, or all."""

    def __init__(self, restored, chance, everyone):
        super().__init__(daemon=True)
        self.restored, self.chance, self.everyone = restored, chance, everyone
        self.killed, self.over = 0, False
        restored.server = None
        self.start()

    def run(self):
        while not self.over:
            found = readers(self.restored)
            chosen = found if self.everyone else found and [self.chance.choice(found)]
            for pid in chosen:
                kill(pid)
            self.killed += len(chosen)
            time.sleep(self.chance.random() * 0.01)


def killed_at_random(t, image, chance, everyone):
    _, place, restored = started(t, image, "--bwlimit", "16M")
    killer = Killer(restored, chance, everyone)
    try:
        restored.wait_running()
        summary = restored.wait_complete(40)
    finally:
        killer.over = True
        killer.join(5)
    t.say(f"{killer.killed} readers were killed, {'all at once' if everyone else 'one by one'}; "
          f"{summary['demand_faults']} faults")
    check_whole(t, restored, place, "killed at random")
    return killer.killed


def killed_often(t, times):
    seed = random.randrange(1 << 30)
    t.say(f"seed {seed}")
    chance, image, killed = random.Random(seed), take_image(t, *SIZES), 0
    for i in range(2 * times):
        inner = t.sub()
        killed += killed_at_random(inner, image, chance, i % 2 == 1)
        inner.end()
    t.check(killed >= 5 * times, f"hardly any was killed: {killed}")


@case("minivm.readers.random", "kernel", 60)
def at_random(t):
    killed_often(t, 1)


@case("minivm.readers.random-20", "kernel,slow", 600)
def at_random_20(t):
    killed_often(t, 20)


@case("minivm.readers.always", "kernel", 60)
def always(t):
    """No reader lives to answer: that is said, the guest waits, and nothing counts as damage, however long it
    lasts. A vmsnap whose readers live takes over."""
    image = take_image(t, *SIZES)
    slow, place, err = SlowFile(t, image), MiniVmPlace(t, *SIZES), t.path("err")
    pid = restore_and_kill(t, image, place, "restore-running", "--prefetch", "none")
    with open(err, "wb") as f:
        start_vmsnap(t, "restore", "--resume", str(pid), "--on-damage", "poison", slow.path, stderr=f,
                     hooks={"kill_at": "reader-asked", "pause_log": t.path("log")})

    def errors():
        with open(err, encoding="utf-8") as f:
            return [o for o in json_lines(f.read()) if "are killed" in o.get("message", "")]
    error = wait_until(lambda: [e for e in errors() if e["guest_state"] == "waiting"], 20,
                       "it is said, and that the guest waits")[0]
    t.check("0x" in error["message"] and "--resume" in error["hint"], f"where, and what to do: {error}")
    time.sleep(3)
    done = vmsnap(t, "restore", "--resume", str(pid), slow.path)
    t.equal(done.code, 0, f"taken over: {done.text()}")
    t.equal((done.summary["clusters_damaged"], done.summary["pages_poisoned"]), (0, 0), "damage")
    place.connect()
    check_goes_on(place, "taken over")


if __name__ == "__main__":
    main()
