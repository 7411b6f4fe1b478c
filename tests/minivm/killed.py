#!/usr/bin/python3
"""A VMM of one's own, and vmsnap's worker, its restorer or the VMM itself are killed: the VM runs again, waits for its
pages, or has ended; nothing is left."""

import fcntl
import os
import signal
import sys
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, is_alive, main, wait_until  # noqa: E402
from minivm import MiniVm, MiniVmPlace, take_image  # noqa: E402
from roundtrip import SIZES, check_free, check_goes_on, check_whole  # noqa: E402
from vmsnap import Restore, check_no_litter, finish, hook_points, pause_log, start_vmsnap  # noqa: E402

POINTS = [p for p in hook_points("source-", "snapshot-") if p.startswith("source-") or p in (
    "snapshot-before-pause", "snapshot-paused", "snapshot-state-saved", "snapshot-armed",
    "snapshot-resumed", "snapshot-sweeping")]


@case("minivm.killed.worker-at-points", "kernel", 120)
def worker_at_points(t):
    """The worker ends by SIGKILL around the pause: the VM runs again, nothing is left."""
    vm = MiniVm(t, *SIZES)
    where = t.path("out")
    os.mkdir(where)
    reached = 0
    for point in POINTS:
        log, _, _ = pause_log(t)
        result = finish(t, start_vmsnap(t, "snapshot", "--qmp", vm.control,
                                        os.path.join(where, "image"),
                                        hooks={"kill_at": point, "pause_log": log}))
        if not os.path.exists(log): # a point of QEMU's source alone
            t.equal(result.code, 0, f"{point}, which is not reached: {result.text()}")
            os.unlink(os.path.join(where, "image"))
            continue
        reached += 1
        t.equal(result.code, 1, f"{point}: {result.text()}")
        t.check("kill" in result.error["message"], f"the cause is named: {result.error}")
        check_goes_on(t, vm, point, 500)
        check_free(t, vm)
        check_no_litter(where)
    t.say(f"{reached} of {len(POINTS)} points")
    t.check(reached >= 10, "most points are reached")
    check_whole(t, vm, "after all")


@case("minivm.killed.paused-vm", "kernel", 60)
def paused_vm(t):
    vm = MiniVm(t, *SIZES)
    vm.stop()
    for point in ("snapshot-paused", "source-after-state", "snapshot-armed"):
        log, _, _ = pause_log(t)
        finish(t, start_vmsnap(t, "snapshot", "--qmp", vm.control, t.path("image"),
                               hooks={"kill_at": point, "pause_log": log}))
        t.check(os.path.exists(log), f"{point} is reached")
        t.equal(vm.qmp.status(), "paused", f"{point}: status")
        vm.check_right(point)


@case("minivm.killed.vmm", "kernel", 60)
def vmm_killed(t):
    """The VMM ends at any moment: exit status 10, and no image."""
    for point in ("snapshot-registered", "snapshot-paused", "snapshot-armed", "snapshot-sweeping"):
        vm = MiniVm(t, *SIZES)
        where = t.path(t.unique("out"))
        os.mkdir(where)
        log, reached, go = pause_log(t)
        process = start_vmsnap(t, "snapshot", "--qmp", vm.control, os.path.join(where, "image"),
                               hooks={"pause_at": point, "pause_log": log})
        reached(point)
        vm.process.kill()
        vm.process.wait(10)
        go()
        result = finish(t, process)
        t.equal(result.code, 10, f"{point}: {result.text()}")
        check_no_litter(where)


@case("minivm.killed.vmm-in-the-pause", "kernel", 60)
def vmm_killed_in_the_pause(t):
    """With much memory a process takes a while to end, and it answers no call in that time before it
    counts as ended: exit status 10 all the same, and nobody is told to give \"cont\"."""
    for point in ("snapshot-paused", "snapshot-state-saved", "snapshot-armed"):
        for wait_ms in (0, 10):
            vm = MiniVm(t, "--memory", "512M", "--populate", "448M", "--pattern", "idle")
            log, reached, go = pause_log(t)
            process = start_vmsnap(t, "snapshot", "--qmp", vm.control, t.path("image"),
                                   hooks={"pause_at": point, "pause_log": log})
            reached(point)
            vm.process.kill()
            time.sleep(wait_ms / 1000)
            go()
            result = finish(t, process)
            vm.process.wait(10)
            t.equal(result.code, 10, f"{point}: {result.text()}")
            t.equal(result.error["guest_state"], "ended", f"{point}: {result.error}")


@case("minivm.killed.precopy-into-nothing", "kernel", 60)
def precopy_into_nothing(t):
    """Precopy into a pipe that nobody reads: no write is held, so no --max-stall ends it; a signal
    does, and so does the death of the guardian, and the VM is free."""
    vm = MiniVm(t, "--memory", "192M", "--populate", "160M", "--rate", "5000")
    for sig, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        into_nothing, sink = os.pipe()
        process = start_vmsnap(t, "snapshot", "--precopy", "2", "--buffer", "12M", "--qmp",
                               vm.control, "-", stdout=sink)
        os.close(sink)

        def is_stuck():
            before = fcntl.ioctl(into_nothing, termios.FIONREAD, b"1234")
            time.sleep(0.5)
            return any(before) and fcntl.ioctl(into_nothing, termios.FIONREAD, b"1234") == before
        wait_until(is_stuck, 20, "the pipe is full")
        t.check("uw" in vm.mapping()[1]["VmFlags"].split(), "precopy is under way")
        process.send_signal(sig)
        result = finish(t, process, timeout=10)
        t.equal(result.code, code, f"{sig.name}: {result.text()}")
        wait_until(lambda: "uw" not in vm.mapping()[1]["VmFlags"].split(), 10,
                   f"{sig.name}: protection is dropped")
        check_free(t, vm)
        check_goes_on(t, vm, sig.name, 500)
        os.close(into_nothing)
    check_whole(t, vm, "after all")


@case("minivm.killed.restorer", "kernel", 60)
def restorer(t):
    """All of the restorer dies: the guest waits at the next page and reads nothing wrong."""
    image = take_image(t, *SIZES, accel="threads")
    place = MiniVmPlace(t, *SIZES, accel="threads")
    restored = Restore(t, image, place, "--no-fill", "--prefetch", "none").wait_running()
    for pid in [restored.process.pid, *descendants(restored.process.pid)]: # the supervisor first
        if pid != place.pid:
            os.kill(pid, signal.SIGKILL)
    restored.process.wait(10)
    time.sleep(0.3)
    t.check(is_alive(place.pid), "the VMM lives on")
    t.equal(place.stats()["wrong_pages"], 0, "wrong pages that the guest found")
    before = place.writes()
    time.sleep(0.3)
    t.equal(place.writes(), before, "writes of a guest that waits")


if __name__ == "__main__":
    main()
