#!/usr/bin/python3
"""vmsnap is killed, stopped or starved while a guest depends on it. Whatever the moment: the guest runs
(or stays as it was), its memory is right, and under the image's name there is a whole image or none."""

import glob
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import (Failed, case, descendants, is_alive, main, process_state, wait_until,  # noqa: E402
                  where_it_hangs)
from guest import Guest  # noqa: E402
from vmsnap import (Restore, check_no_litter, finish, hook_points, pause_log, restored_guest,  # noqa: E402
                    snapshot, start_vmsnap, vmsnap)

POINTS = hook_points("snapshot-", "source-")
# From here on the image has its name.
PUBLISHED = "snapshot-committed"
# What is reached only with more on the command line.
ARGS = {"snapshot-live-armed": ("--precopy", "1"), "snapshot-precopied": ("--precopy", "2")}
# Here the worker may finish the image by itself before it notices that the guardian has died.
MAY_FINISH = ("snapshot-saved", "snapshot-released", "snapshot-finished", PUBLISHED)


class Bench:
    """One guest that many snapshots are tried on, and a directory for their images."""

    def __init__(self, t, **shape):
        self.t = t
        self.directory = t.path("images")
        os.mkdir(self.directory)
        self.image = os.path.join(self.directory, "image")
        self.guest = Guest(t, **{"rate": 4000, "interval": 50, **shape}).boot_up()
        self.mergeable = "mg" in self.guest.smaps()["VmFlags"]

    def start(self, *args, hooks=None, image=None):
        return start_vmsnap(self.t, "snapshot", "--qmp", self.guest.qmp_path, *args,
                            image or self.image, hooks=hooks)

    def check_unharmed(self, what, published=False):
        """The guest runs as before, and the image is whole or not there at all."""
        try:
            wait_until(lambda: self.guest.qmp.status() == "running", 10, "running")
            self.guest.check_goes_on()
            flags = self.guest.smaps()["VmFlags"]
            self.t.equal("mg" in flags, self.mergeable, "memory is mergeable by KSM as before")
            self.t.check(not {"um", "uw", "ui"} & flags, f"no userfaultfd is left: {flags}")
            there = os.listdir(self.directory)
            self.t.check(there in ([], ["image"]), f"litter: {there}")
            if published is not None:
                self.t.equal(there, ["image"] if published else [], "what lies in the directory")
        except Failed as error:
            raise Failed(f"{what}: {error}") from error
        if there:
            self.t.equal(vmsnap(self.t, "verify", self.image).code, 0, f"{what}: verify")
            os.unlink(self.image)


def kill_worker(bench, point, nth=1):
    """The worker ends by SIGKILL at the point; the guardian puts things in order."""
    t = bench.t
    log, _, _ = pause_log(t)
    process = bench.start(*ARGS.get(point, ()),
                          hooks={"kill_at": f"{point}:{nth}", "pause_log": log})
    result = finish(t, process)
    with open(log, encoding="ascii") as f:
        t.check(f.read().startswith(point + " "), f"{point} is reached")
    published = point == PUBLISHED
    t.equal(result.code, 3 if published else 1, f"{point}: exit status ({result.text()})")
    if not published:
        t.equal(result.error["exit_code"], 1, "exit_code")
        t.check("kill" in result.error["message"], f"the cause is named: {result.error}")
    bench.check_unharmed(f"worker killed at {point}", published)


def kill_guardian(bench, point):
    """The guardian ends by SIGKILL while the worker is at the point; the worker gives up, or
    finishes, by itself."""
    t = bench.t
    log, reached, go = pause_log(t)
    process = bench.start(*ARGS.get(point, ()), hooks={"pause_at": point, "pause_log": log})
    worker = reached(point)
    t.check(worker != process.pid, "worker and guardian are two processes")
    process.kill()
    process.wait(10)
    go()
    wait_until(lambda: not is_alive(worker), 20, f"{point}: the worker ends, too")
    bench.check_unharmed(f"guardian killed at {point}", None if point in MAY_FINISH else False)


def point_tests(name, kill, times, labels, timeout):
    half = (len(POINTS) + 1) // 2
    for number, points in enumerate((POINTS[:half], POINTS[half:]), 1):
        @case(f"qemu.killed.{name}-{number}", labels, timeout)
        def run(t, points=points):
            bench = Bench(t)
            for point in points:
                for _ in range(times):
                    kill(bench, point)
            t.say(f"{len(points)} points, {times} times each")
            bench.guest.check_whole()


point_tests("worker-at-points", kill_worker, 1, "qemu", 150)
point_tests("guardian-at-points", kill_guardian, 1, "qemu", 150)
point_tests("worker-at-points-10", kill_worker, 10, "qemu,slow", 900)
point_tests("guardian-at-points-10", kill_guardian, 10, "qemu,slow", 900)


def paused_guest_at_points(t, points):
    """A guest that was paused stays paused, whatever happens to the worker."""
    bench = Bench(t)
    bench.guest.qmp.command("stop")
    for point in points:
        log, _, _ = pause_log(t)
        finish(t, bench.start(hooks={"kill_at": point, "pause_log": log}))
        t.equal(bench.guest.qmp.status(), "paused", f"{point}: status")
        bench.guest.check_stands(0.2)
        if os.path.exists(bench.image):
            os.unlink(bench.image)
        check_no_litter(bench.directory)
    bench.guest.qmp.command("cont")
    bench.guest.check_whole()


@case("qemu.killed.paused-guest", "qemu", 90)
def paused_guest(t):
    paused_guest_at_points(t, [p for p in POINTS if p.startswith("source-") or p in (
        "snapshot-paused", "snapshot-state-saved", "snapshot-armed")])


def random_moments(t, times, seed):
    """SIGKILL for one of vmsnap's processes at a random moment of a snapshot."""
    bench = Bench(t)
    began = time.monotonic()
    snapshot(t, bench.guest, bench.image)
    wall = time.monotonic() - began
    os.unlink(bench.image)
    t.say(f"seed {seed}; a snapshot takes {wall:.2f} s")
    chance = random.Random(seed)
    for number in range(times):
        process = bench.start()
        delay = chance.uniform(0, wall * 1.1)
        time.sleep(delay)
        below = descendants(process.pid)
        victim = chance.choice([process.pid, *below])
        if process_state(victim) not in (None, "Z"):
            os.kill(victim, signal.SIGKILL)
        for one in [process.pid, *below]:
            wait_until(lambda one=one: not is_alive(one), 20, f"process {one} ends")
        process.wait(5)
        bench.check_unharmed(f"{number}: killed {victim - process.pid} after {delay:.3f} s", None)
    bench.guest.check_whole()


@case("qemu.killed.random-5", "qemu", 120)
def random_5(t):
    random_moments(t, 5, random.randrange(1 << 30))


@case("qemu.killed.random-50", "qemu,slow", 900)
def random_50(t):
    random_moments(t, 50, random.randrange(1 << 30))


@case("qemu.killed.interrupted", "qemu", 120)
def interrupted(t):
    """Ctrl-C and SIGTERM at points before and after the instant: exit status 130 and 143."""
    bench = Bench(t)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        for point in ("snapshot-registered", "snapshot-armed", "snapshot-sweeping"):
            log, reached, go = pause_log(t)
            process = bench.start(hooks={"pause_at": point, "pause_log": log})
            reached(point)
            os.killpg(process.pid, number) # as a terminal does
            go()
            result = finish(t, process)
            t.equal(result.code, code, f"exit status at {point}: {result.text()}")
            bench.check_unharmed(f"{number.name} at {point}")


# ---- stopped, suspended, starved: the guest must not wait for longer than --max-stall

MAX_STALL_SECONDS = 1.0
SLACK_SECONDS = 2.0 # for a busy machine, and to notice


def check_stall(bench, mark):
    """No wait of the guest since `mark` was longer than --max-stall allows."""
    bench.guest.check_goes_on()
    gap = bench.guest.longest_gap_ms(mark) / 1000
    bench.t.say(f"the guest's longest gap was {gap * 1000:.0f} ms")
    bench.t.check(gap <= MAX_STALL_SECONDS + SLACK_SECONDS, f"the guest waited {gap:.1f} s")


def stop_at(t, point, number, whom):
    """Stops vmsnap (`whom` of it) by signal `number` at a point where memory is protected."""
    bench = Bench(t)
    log, reached, go = pause_log(t)
    mark = bench.guest.console.size()
    process = bench.start("--max-stall", f"{MAX_STALL_SECONDS:.0f}s",
                          hooks={"pause_at": point, "pause_log": log})
    worker = reached(point)
    whom(process.pid, worker, number)
    go()
    check_stall(bench, mark)
    if process_state(process.pid) == "T":
        time.sleep(MAX_STALL_SECONDS + SLACK_SECONDS)
        check_stall(bench, mark)
        os.kill(process.pid, signal.SIGCONT)
    result = finish(t, process)
    t.check(result.code in (0, 1), f"exit status: {result.text()}")
    bench.check_unharmed("after the stop", result.code == 0)
    bench.guest.check_whole()


def only_worker(_, worker, number):
    os.kill(worker, number)


def only_guardian(guardian, _, number):
    os.kill(guardian, number)


def whole_group(guardian, _, number):
    os.killpg(guardian, number)


for _point in ("snapshot-armed", "snapshot-sweeping"):
    for _name, _number, _whom in (("sigstop-worker", signal.SIGSTOP, only_worker),
                                  ("sigstop-guardian", signal.SIGSTOP, only_guardian),
                                  ("ctrl-z", signal.SIGTSTP, whole_group)):
        @case(f"qemu.stalled.{_name}-{_point.split('-')[1]}",
              "qemu" if _point == "snapshot-armed" else "qemu,slow", 90)
        def stopped(t, point=_point, number=_number, whom=_whom):
            """Within --max-stall the guest runs free again."""
            stop_at(t, point, number, whom)


def gives_up(bench, process, mark, cause):
    """vmsnap must fail by itself with exit status 1, and the guest run free in time."""
    t = bench.t
    check_stall(bench, mark)
    result = finish(t, process, timeout=MAX_STALL_SECONDS + 20)
    t.equal(result.code, 1, f"exit status: {result.text()}")
    t.equal(result.error["guest_state"], "running", "guest_state")
    t.check(cause in result.error["message"], f"the cause is named: {result.error}")
    check_stall(bench, mark)


@case("qemu.stalled.unread-pipe", "qemu", 90)
def unread_pipe(t):
    """The image goes to a pipe that nobody reads."""
    bench = Bench(t, rate=0, mib=128)
    mark = bench.guest.console.size()
    out, into = os.pipe()
    process = start_vmsnap(t, "snapshot", "--qmp", bench.guest.qmp_path, "--max-stall",
                           f"{MAX_STALL_SECONDS:.0f}s", "--buffer", "16MiB", "-", stdout=into)
    os.close(into)
    time.sleep(MAX_STALL_SECONDS)
    gives_up(bench, process, mark, "")
    os.close(out)
    bench.check_unharmed("unread pipe")
    bench.guest.check_whole()


@case("qemu.stalled.frozen-file-system", "qemu", 120)
def frozen_file_system(t):
    """The image's file system is frozen in the middle."""
    volume, where = t.path("volume"), t.path("mounted")
    os.mkdir(where)
    with open(volume, "wb") as f:
        f.truncate(512 << 20)
    t.need(t.run(["mkfs.ext4", "-q", "-F", volume]).returncode == 0, "no mkfs.ext4")
    t.need(t.run(["mount", "-o", "loop", volume, where]).returncode == 0, "no loop mount here")
    t.defer(subprocess.run, ["umount", where])
    bench = Bench(t, rate=0, mib=192)
    mark = bench.guest.console.size()
    log, reached, go = pause_log(t)
    process = bench.start("--max-stall", f"{MAX_STALL_SECONDS:.0f}s", "--buffer", "16MiB",
                          image=os.path.join(where, "image"),
                          hooks={"pause_at": "snapshot-armed", "pause_log": log})
    reached("snapshot-armed")
    t.equal(t.run(["fsfreeze", "-f", where]).returncode, 0, "fsfreeze")
    t.defer(t.run, ["fsfreeze", "-u", where]) # fails when it was undone already
    go()
    check_stall(bench, mark)
    time.sleep(MAX_STALL_SECONDS + SLACK_SECONDS)
    check_stall(bench, mark)
    t.equal(t.run(["fsfreeze", "-u", where]).returncode, 0, "fsfreeze -u")
    result = finish(t, process)
    t.equal(result.code, 1, f"exit status: {result.text()}")
    check_no_litter(where, "lost+found")
    bench.guest.check_whole()


# ---- a restorer is killed: its guest waits, and never reads zeros

RESTORE_POINTS = hook_points("restore-")


def kill_restorer(t, source, image, hit, what):
    """Kills the restorer by hit(restore) once the VM runs from it. The guest may stand still for
    want of pages, but must say nothing wrong, now or later."""
    restored = restored_guest(t, source, image, "--no-fill", "--prefetch", "none")
    guest = restored.guest
    hit(restored)
    time.sleep(1)
    guest.check_alive()
    guest.check_no_errors()
    held = [os.readlink(f"/proc/{guest.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{guest.pid}/fd")
            if os.path.islink(f"/proc/{guest.pid}/fd/{fd}")]
    t.check(any("userfaultfd" in name for name in held),
            f"{what}: the VMM keeps its userfaultfd, so that it waits")
    mark = guest.console.size()
    time.sleep(1)
    guest.check_no_errors()
    silent = guest.console.size() == mark
    t.check(not silent or "handle_userfault" in where_it_hangs(guest.pid),
            f"{what}: a guest that says nothing waits for a page: {where_it_hangs(guest.pid)}")
    t.say(f"{what}: it {'waits' if silent else 'runs on'}, no error")
    os.kill(guest.pid, signal.SIGKILL)
    guest.qmp.close()


@case("qemu.killed.restorer", "qemu", 120)
def restorer(t):
    source = Guest(t, mib=128, interval=50).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()

    def servers(restored):
        return [p for p in [restored.process.pid, *descendants(restored.process.pid)]
                if p != restored.pid and p not in descendants(restored.pid)]

    def kill_all(restored):
        for pid in servers(restored):
            os.kill(pid, signal.SIGKILL)

    def kill_later(restored):
        time.sleep(0.3)
        kill_all(restored)
    kill_restorer(t, source, image, kill_all, "killed as soon as the guest ran")
    kill_restorer(t, source, image, kill_later, "killed a little later")


# Until then the VMM does not outlive its restorer.
BEFORE_RUNNING = {"restore-forked", "restore-launched", "restore-attached", "restore-registered",
                  "restore-state-loaded"}


def stale_directories():
    """Those of restores whose socket is gone with them."""
    with open("/proc/net/unix", encoding="utf-8") as f:
        bound = f.read()
    return {path for path in glob.glob("/run/vmsnap-restore-*") if f"{path}/qmp" not in bound}


def vmms_of(target):
    """The processes whose command line names a socket of the guest's, vmsnap's own aside."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                line = f.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if target.test_qmp_path.encode() in line and b"vmsnap-restore-" in line:
            found.append(int(pid))
    return found


def check_nothing_left(t, target, process, directories, point):
    process.wait(5)
    wait_until(lambda: not vmms_of(target), 5, f"{point}: the VMM is gone")
    wait_until(lambda: not stale_directories() - directories, 5,
               f"{point}: the private directory is gone")


def restore_points(t, times):
    """SIGKILL for the server at every named point of a restore. Before the guest is to run nothing is left
    of the VM; after that another server takes over, and the guest finds all its pages right."""
    source = Guest(t, mib=64).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    for point in RESTORE_POINTS:
        for number in range(times):
            log, _, _ = pause_log(t)
            target = Guest(t, name="re", **source.shape())
            directories = stale_directories()
            restored = Restore(t, image, target, hooks={"kill_at": point, "pause_log": log})
            wait_until(lambda log=log: os.path.exists(log), 20, f"{point} is reached")
            if point in BEFORE_RUNNING:
                check_nothing_left(t, target, restored.process, directories, point)
                target.check_no_errors()
            else:
                restored.wait_running()
                target.check_whole()
                t.equal(restored.end().code, 0, f"{point}: exit status")
            t.say(f"{point}, {number}: no error")
    t.equal(vmsnap(t, "verify", image).code, 0, "the image is whole")


@case("qemu.killed.restore-points", "qemu", 120)
def restore_points_once(t):
    restore_points(t, 1)


@case("qemu.killed.restore-points-20", "qemu,slow", 1500)
def restore_points_20(t):
    restore_points(t, 20)


if __name__ == "__main__":
    main()
