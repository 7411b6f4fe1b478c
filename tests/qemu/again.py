#!/usr/bin/python3
"""Snapshots of guests that vmsnap has restored: refused while their memory comes in, and then as good as any:
the check of its memory that the guest makes goes on through three generations."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from guest import Guest  # noqa: E402
from roundtrip import check_let_go  # noqa: E402
from vmsnap import (finish, first_counters, pause_log, restored_guest, snapshot,  # noqa: E402
                    start_vmsnap, vmsnap)

GENERATIONS = 3
KILL_POINTS = ("snapshot-armed", "snapshot-resumed", "snapshot-sweeping:40")


def next_generation(t, guest, image):
    """The image of a guest, which ends then, restored: a Restore whose memory is complete."""
    snapshot(t, guest, image)
    guest.check_goes_on()
    guest.stop()
    restored = restored_guest(t, guest, image)
    first_counters(restored.guest, restored.mark)
    restored.wait_complete()
    restored.guest.check_whole()
    check_let_go(t, restored.guest)
    os.unlink(image)
    return restored


def chain(t, **shape):
    guest = Guest(t, **shape).boot_up()
    for n in range(1, GENERATIONS + 1):
        restored = next_generation(t, guest, t.path(f"generation{n}"))
        guest = restored.guest
    t.equal(restored.end().code, 0, "the last one's exit status")


@case("qemu.again.anon", "qemu", 120)
def anon(t):
    chain(t, memory_mib=256, mib=48)


@case("qemu.again.memfd", "qemu", 120)
def memfd(t):
    chain(t, memory_mib=256, mib=48, ram="memfd")


@case("qemu.again.filling", "qemu", 120)
def filling(t):
    """Refused while memory comes in; killed in mid-flight afterwards, the guest goes on, all of it right."""
    source = Guest(t, memory_mib=256, mib=48).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    restored = restored_guest(t, source, image, "--bwlimit", "2M", "--prefetch", "none")
    refused = vmsnap(t, "snapshot", "--qmp", restored.guest.qmp_path, t.path("none"))
    t.equal(refused.code, 11, f"while it fills: {refused.text()}")
    t.check("still bringing its memory in" in refused.error["message"], f"why: {refused.error}")
    t.equal(vmsnap(t, "check", "--qmp", restored.guest.qmp_path).code, 11, "check")
    restored.guest.check_goes_on()
    restored.give_up()
    restored = restored_guest(t, source, image)
    restored.wait_complete()
    for point in KILL_POINTS:
        log, _, _ = pause_log(t)
        process = start_vmsnap(t, "snapshot", "--qmp", restored.guest.qmp_path, t.path("none"),
                               hooks={"kill_at": point, "pause_log": log})
        ended = finish(t, process)
        t.check(os.path.exists(log), f"{point} is reached")
        t.equal((ended.code, ended.error["guest_state"]), (1, "running"), f"killed at {point}")
        restored.guest.check_whole()
    t.equal(restored.end().code, 0, "exit status")


if __name__ == "__main__":
    main()
