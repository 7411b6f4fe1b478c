#!/usr/bin/python3
"""More of an image can't be read, or hangs, than there are places for faults that are being read: the guest
waits there and nowhere else."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, process_name, wait_until  # noqa: E402
from damage import (CLUSTER, SIZES, check_goes_on, content_of, demand_page, places_of,  # noqa: E402
                    wait_for_error)
from minivm import PAGE, MiniVmPlace, need_huge_pages, take_image  # noqa: E402
from slowfile import SlowFile  # noqa: E402
from vmsnap import Restore, vmsnap  # noqa: E402

HUGE = 2 << 20
ON_DEMAND = ("--paused", "--no-fill", "--prefetch", "none")


class Touch(threading.Thread):
    """Somebody who touches a page of the guest, which is a fault like the guest's own."""

    def __init__(self, place, page):
        super().__init__(daemon=True)
        self.place, self.page, self.content = place, page, None
        self.start()

    def run(self):
        self.content = demand_page(self.place, self.page)


def restored_on_demand(t, *options, args=()):
    """A paused guest whose memory comes in by faults alone; its image, and the storage of that."""
    image = take_image(t, *SIZES, *options)
    slow = SlowFile(t, image)
    place = MiniVmPlace(t, *SIZES, *options)
    return image, slow, place, Restore(t, slow.path, place, *ON_DEMAND, *args).wait_running()


def server_of(restored):
    return next(p for p in descendants(restored.process.pid) if process_name(p).startswith("vmsnap-server"))


def check_answered(t, touches, content, seconds, what):
    wait_until(lambda: not any(one.is_alive() for one in touches), seconds, what)
    for one in touches:
        t.check(one.content == content[one.page * PAGE:(one.page + 1) * PAGE].ljust(PAGE, b"\0"),
                f"{what}: page {one.page} is right")


def check_waiting(t, touches, what):
    t.equal([one.page for one in touches if not one.is_alive()], [], f"{what}: answered")


def fail_beside(t, how, n, unit=CLUSTER, *options):
    """n units can't be had and are waited for; others are answered at once; in the end all are."""
    image, slow, place, restored = restored_on_demand(t, *options)
    content, places = content_of(t, image), places_of(t, image)
    units = {}
    for cluster, where in places.items():
        units.setdefault(cluster * CLUSTER // unit, []).append((cluster, where))
    chosen = list(units)[1:] # without the vCPUs' states, which are in
    bad, good = chosen[1::2][:n], chosen[::2]
    t.equal(len(bad), n, f"units that fail, of {len(chosen)}")
    # Not the first cluster of a huge page: it is found out on the way.
    getattr(slow, how)([units[u][len(units[u]) // 2][1] for u in bad])
    waiting = [Touch(place, 4 * units[u][0][0]) for u in bad]
    time.sleep(1.5)
    check_waiting(t, waiting, "what can't be read")
    for some in (good[:len(good) // 2], good[len(good) // 2:]):
        began = time.monotonic()
        check_answered(t, [Touch(place, 4 * units[u][0][0] + 1) for u in some[:40]], content, 5,
                       "beside it")
        t.say(f"{len(some[:40])} units in {time.monotonic() - began:.2f} s")
        time.sleep(0.5)
    check_waiting(t, waiting, "what can't be read")
    if how == "hang":
        wait_for_error(restored, "does not answer")
    else:
        wait_for_error(restored, "can't be read now")
    slow.work()
    check_answered(t, waiting, content, 10, "when it can be read")
    restored.end()


@case("minivm.failing.many", "kernel", 60)
def many(t):
    """I/O errors."""
    fail_beside(t, "fail", 100)


@case("minivm.failing.many-hang", "kernel", 60)
def many_hang(t):
    """Reads that don't come back."""
    fail_beside(t, "hang", 48)


@case("minivm.failing.many-huge", "kernel", 60, lock="hugepages")
def many_huge(t):
    """Huge pages, for which there are two places."""
    need_huge_pages(t, 24)
    fail_beside(t, "fail", 3, HUGE, "--kind", "hugetlbfs")


@case("minivm.failing.taken-over", "kernel", 60)
def taken_over(t):
    """The server is killed, and the next one has the same trouble: as before. Then one with a sound copy of
    the image takes over, and all go on."""
    image, slow, place, restored = restored_on_demand(t)
    content, places = content_of(t, image), places_of(t, image)
    clusters = list(places)[1:]
    slow.fail([places[c] for c in clusters[1::2]])
    waiting = [Touch(place, 4 * c) for c in clusters[1:120:2]]
    for turn in range(2):
        time.sleep(1)
        check_answered(t, [Touch(place, 4 * c + turn) for c in clusters[:40:2]], content, 5, "beside it")
        check_waiting(t, waiting, "what can't be read")
        if turn == 0:
            os.kill(server_of(restored), signal.SIGKILL)
            wait_until(lambda: restored.result().of_type("takeover"), 5, "another server")
    wait_for_error(restored, "can't be read now")
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"another copy: {done.text()}")
    check_answered(t, waiting, content, 10, "from another copy")
    place.cont()
    check_goes_on(place, "taken over")
    t.equal(restored.end().code, 0, "exit status")


MOUNTS = """
import sys, time
sys.path.insert(0, sys.argv[1])
from case import Case
from slowfile import SlowFile
print(SlowFile(Case("mounts"), "/proc/version").path, flush=True)
time.sleep(100)
"""


@case("minivm.failing.leaves-no-mount", "kernel", 30)
def leaves_no_mount(t):
    """A test with such a storage leaves nothing of it, however it ends."""
    t.need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "FUSE needs root and /dev/fuse")
    lib = os.path.dirname(os.path.abspath(sys.modules["slowfile"].__file__))
    user = t.spawn([sys.executable, "-B", "-c", MOUNTS, lib], stdout=subprocess.PIPE, text=True)
    where = os.path.dirname(user.stdout.readline().strip())
    with open(f"/proc/{user.pid}/mounts", encoding="utf-8") as f:
        t.check(f" {where} fuse" in f.read(), "it is mounted")
    user.kill()
    user.wait(10)
    with open("/proc/self/mounts", encoding="utf-8") as f:
        t.check(where not in f.read(), f"{where} is left")
    shutil.rmtree(os.path.dirname(where))


if __name__ == "__main__":
    main()
