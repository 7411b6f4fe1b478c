#!/usr/bin/python3
"""`vmsnap restore --listen`: its servers are killed, or all of it; others take over, by themselves or by hand, and
find what they need in the VMM."""

import fcntl
import hashlib
import os
import random
import shutil
import signal
import stat
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, end_process, kill, main, open_files, tracer_of, wait_until  # noqa: E402
from listen import check_guest, discards, guest, saved  # noqa: E402
from listener import Listener, check_left, records  # noqa: E402
from minivm import PAGE, end_and_wait  # noqa: E402
from rawvm import MIB, RawVm, check_content, random_memory  # noqa: E402
from vmsnap import broken, hook_points, vmsnap  # noqa: E402

POINTS = ("listen-recorded", "listen-serving", "listen-left", "restore-prefetched", "restore-filled",
          "restore-released", "restore-closing", "restore-handed-off")
SERVING = hook_points("serve-")
MOST = {"serve-read": 2, "serve-releasing": 1} # so often at least that one is passed


def killed_once(t, image, data, point):
    """A server is killed there: another one follows, every byte is right, nothing stays in the VMM."""
    log = t.path(t.unique("log"))
    listener = Listener(t, image, hooks={"kill_at": point, "pause_log": log})
    vm = RawVm(t, len(data))
    vm.hand_over(listener.path)
    zero = [(64 * PAGE, 2 * PAGE), (len(data) - MIB, MIB // 2)]
    for offset, length in zero:
        vm.discard(offset, length)
    check_content(t, vm, data, f"killed at {point}", zero)
    listener.wait_for("summary", vm.pid)
    check_left(t, vm.pid, point)
    vm.kill()
    listener.check_served(1)
    return os.path.exists(log)


def killed_at_points(t, times):
    data, image = random_memory(t, 8 * MIB)
    for point in POINTS:
        for _ in range(times):
            t.check(killed_once(t, image, data, point), f"nobody came to {point}")
    chance = random.Random(times)
    for point in SERVING:
        reached = 0
        for _ in range(times):
            reached += killed_once(t, image, data, f"{point}:{chance.randint(1, MOST.get(point, 60))}")
        t.say(f"{point}: {reached} of {times}")


@case("minivm.listen.killed", "kernel", 60)
def killed(t):
    """A server is killed at each point, once."""
    killed_at_points(t, 1)


@case("minivm.listen.killed-20", "kernel,slow", 900)
def killed_20(t):
    killed_at_points(t, 20)


@case("minivm.listen.noticed", "kernel", 60)
def noticed(t):
    """These tests fail if a rule is broken that they are there for."""
    def killed_installing(inner):
        data, image = random_memory(inner, 8 * MIB)
        killed_once(inner, image, data, "serve-installing:5")
    for rule, check in (("discard-ignored", discards), ("done-before-install", killed_installing)):
        inner = t.sub()
        inner.quiet = True
        with broken(rule):
            try:
                check(inner)
            except Failed as error:
                t.check("wrong pages" in str(error), f"{rule}: red for another reason: {error}")
                inner.end()
                continue
        raise Failed(f"not noticed: {rule}")


# ---- all at once, and by hand

def all_killed(t, moments):
    """All of vmsnap is killed at once: the guest waits, reads nothing wrong, and goes on with --resume."""
    state, _, image = saved(t)
    for moment in moments:
        listener = Listener(t, image, "--bwlimit", "16M", "--prefetch", "none")
        vm = guest(t, state, listener, "--rate", "2000")
        listener.wait_for("running", vm.pid)
        wait_until(lambda pid=vm.pid: any("vmsnap-restore" in link for link in open_files(pid)), 5, "it has the record",
                   every=0.001)
        time.sleep(moment)
        listener.kill_all()
        wait_until(lambda one=listener: not one.processes(), 10, "all are gone")
        waits = not listener.of_type("summary", vm.pid)
        by_hand = vmsnap(t, "restore", "--resume", str(vm.pid))
        t.equal(by_hand.code, 0 if waits else 10, f"--resume after {moment} s: {by_hand.text()}")
        check_guest(t, vm, f"all killed after {moment} s")
        check_left(t, vm.pid, f"all killed after {moment} s")
        end_and_wait(vm)


@case("minivm.listen.resume", "kernel", 60)
def resume_by_hand(t):
    all_killed(t, (0, 0.02, 0.2))


@case("minivm.listen.resume-20", "kernel,slow", 600)
def resume_20(t):
    chance = random.Random(20)
    all_killed(t, [chance.random() for _ in range(20)])


@case("minivm.listen.served-already", "kernel", 40)
def served_already(t):
    """--resume of a VM whose own supervisor and server live: refused with 11, with its image or another, and the guest
    does not notice. Once they are dead it takes over."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("running", vm.pid)
    wait_until(lambda: records(vm.pid), 5, "it has the record")
    servers = listener.servers()
    for args in ((), (image,)):
        refused = vmsnap(t, "restore", "--resume", str(vm.pid), *args)
        t.equal((refused.code, bool(refused.error["hint"])), (11, True), f"{args}: {refused.text()}")
        t.equal((listener.servers(), len(records(vm.pid))), (servers, 1), f"{args}: servers and records")
    t.equal(vm.digest(0, PAGE), hashlib.sha256(data[:PAGE]).hexdigest(), "a page")
    t.equal(listener.of_type("takeover"), [], "takeovers")
    listener.kill_all()
    wait_until(lambda: not listener.processes(), 10, "all are gone")
    t.equal(vmsnap(t, "restore", "--resume", str(vm.pid)).code, 0, "--resume, nobody there")
    check_content(t, vm, data, "taken over")
    check_left(t, vm.pid, "taken over")


@case("minivm.listen.releasing", "kernel", 40)
def releasing(t):
    """All are killed while the server lets go of the memory: --resume finds the userfaultfd by what is still
    registered, registers nothing else, and lets go of the rest."""
    data, image = random_memory(t, 40 * MIB)
    listener = Listener(t, image, hooks={"kill_at": "serve-releasing:2", "kill_again": 9,
                                         "pause_log": t.path("log")})
    vm = RawVm(t, len(data))
    vm.hand_over(listener.path)
    wait_until(lambda: os.path.exists(t.path("log")), 10, "a piece is let go")
    wait_until(lambda: any("vmsnap-restore" in link for link in open_files(vm.pid)), 5, "it has the record")
    listener.kill_all()
    wait_until(lambda: not listener.processes(), 10, "all are gone")
    vm.discard(0, 4 * PAGE)
    by_hand = vmsnap(t, "restore", "--resume", str(vm.pid))
    t.equal(by_hand.code, 0, by_hand.text())
    check_left(t, vm.pid, "let go by hand")
    vm.discard(len(data) - 4 * PAGE, 4 * PAGE)
    check_content(t, vm, data, "let go by hand", zero=[(0, 4 * PAGE), (len(data) - 4 * PAGE, 4 * PAGE)])


# ---- the record in the VMM

@case("minivm.listen.two-in-one", "kernel", 40)
def two_in_one(t):
    """A process with the memory of two VMs: each has its record, once, however often its server dies, and --resume
    finds one after the other."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    for n in (1, 2):
        vm.hand_over(listener.path)
        wait_until(lambda wanted=n: len(records(vm.pid)) == wanted, 5, "its record")
        vm.change_memory()
    for n in range(3, 9):
        kill(listener.servers()[n % 2])
        listener.wait_for("running", vm.pid, n=n)
        time.sleep(0.05)
    t.equal(len(records(vm.pid)), 2, "records")
    listener.kill_all()
    wait_until(lambda: not listener.processes(), 10, "all are gone")
    for left in (1, 0):
        by_hand = vmsnap(t, "restore", "--resume", str(vm.pid))
        t.equal(by_hand.code, 0, f"--resume: {by_hand.text()}")
        t.equal(len(records(vm.pid)), left, "records that are left")
    for _ in range(2):
        check_content(t, vm, data, "one of two")
        vm.change_memory()


def pretend(t, content):
    """A process of another user, with a record that it has made itself. Its pid."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            fd = os.memfd_create("vmsnap-restore", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(fd, content)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            os.write(told, b"x")
            time.sleep(60)
        finally:
            os._exit(1)
    t.defer(lambda: (os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)))
    os.close(told)
    t.equal(os.read(ready, 1), b"x", "it has made its record")
    os.close(ready)
    return pid


@case("minivm.listen.record", "kernel", 40)
def record(t):
    """A VMM can only read its record; one that another user has made does not choose the image."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    there = wait_until(lambda: records(vm.pid), 5, "it has the record")[0]
    t.equal((stat.S_IMODE(os.stat(there).st_mode), os.stat(there).st_uid), (0o600, os.geteuid()), "whose it is")
    with open(there.replace("/fd/", "/fdinfo/"), encoding="ascii") as f:
        flags = int(next(line.split()[1] for line in f if line.startswith("flags")), 8)
    t.equal(flags & os.O_ACCMODE, os.O_RDONLY, "how the VMM has it open")
    with open(there, "rb") as f:
        content = f.read()
    pid = pretend(t, content)
    by_hand = vmsnap(t, "restore", "--resume", str(pid))
    t.equal((by_hand.code, "IMAGE" in by_hand.error["hint"]), (10, True), by_hand.text())
    t.check("could have written" in by_hand.error["message"], by_hand.text())
    vm.kill()
    listener.check_served(1)


@case("minivm.listen.lost", "kernel", 40)
def lost(t):
    """Killed before anything is left in the VMM: it waits, --resume says that nobody restores it, the listener
    goes on."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, hooks={"kill_at": "listen-heard", "pause_log": t.path("log")})
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    t.check(vm.closed(5), "the connection is closed")
    vm.begin("digest", 0, PAGE)
    t.check(not vm.is_done(0.3), "it waits")
    by_hand = vmsnap(t, "restore", "--resume", str(vm.pid))
    t.equal((by_hand.code, "not being restored" in by_hand.error["message"]), (10, True), by_hand.text())
    vm.kill()
    t.check("was about to serve a VM" in listener.text(), f"it is said: {listener.text()}")
    listener.check_served(0, refused=1)


@case("minivm.listen.traced", "kernel", 40)
def traced(t):
    """Nothing can be left in a VMM that is traced: a warning, and its servers follow one another all the same."""
    t.need(shutil.which("strace"), "no strace")
    data, image = random_memory(t, 8 * MIB)
    listener = Listener(t, image, "--no-fill", hooks={"kill_at": "serve-installed:20", "pause_log": t.path("log")})
    vm = RawVm(t, 8 * MIB)
    tracer = t.spawn(["strace", "-f", "-o", "/dev/null", "-p", str(vm.pid)])
    wait_until(lambda: tracer_of(vm.pid), 10, "it is traced")
    vm.hand_over(listener.path)
    check_content(t, vm, data, "traced")
    wait_until(lambda: "takeover by hand" in listener.text(), 10, "the warning")
    t.equal(len(listener.of_type("takeover")), 1, "takeovers")
    end_process(tracer)


if __name__ == "__main__":
    main()
