#!/usr/bin/python3
"""How a restore ends: signals, the terminal, a VMM that dies, wrappers; what the caller sees."""

import fcntl
import contextlib
import glob
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, descendants, is_alive, main, tool, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import (Restore, environment, finish, json_lines, pause_log, snapshot,  # noqa: E402
                    start_vmsnap)


def make_image(t):
    source = Guest(t, boot="firmware", memory_mib=64, boot_pages=2048).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    return source, image


def state(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        return f.read().rsplit(")", 1)[1].split()[0]


def check_exit(t, result, code):
    """vmsnap's status is the VMM's, and the last object says it."""
    t.equal(result.code, code, f"exit status ({result.text()})")
    t.equal(result.objects[-1]["type"], "exit", "type of the last object")
    t.equal(result.objects[-1]["exit_status"], code, "exit_status")


def ended(restored, seconds=20):
    restored.process.wait(seconds)
    wait_until(lambda: restored.result().of_type("exit"), 5, "the object `exit`")
    return restored.result()


@case("qemu.restore-ends.sigterm", "qemu", 60)
def sigterm(t):
    """SIGTERM goes to the VMM, which ends as it does by itself."""
    source, image = make_image(t)
    restored = Restore(t, image, Guest(t, name="re", **source.shape())).wait_running()
    restored.process.terminate()
    check_exit(t, ended(restored), 0)
    t.check(not is_alive(restored.pid), "the VMM has ended")


@case("qemu.restore-ends.vmm-killed", "qemu", 60)
def vmm_killed(t):
    source, image = make_image(t)
    restored = Restore(t, image, Guest(t, name="re", **source.shape()), "--no-fill").wait_running()
    os.kill(restored.pid, signal.SIGKILL)
    check_exit(t, ended(restored), 137)


@case("qemu.restore-ends.stuck-vmm", "qemu", 60)
def stuck_vmm(t):
    """A VMM that does not heed SIGTERM is killed by the second one."""
    source, image = make_image(t)
    restored = Restore(t, image, Guest(t, name="re", **source.shape())).wait_running()
    restored.wait_complete()
    os.kill(restored.pid, signal.SIGSTOP)
    restored.process.terminate()
    time.sleep(0.5)
    t.check(is_alive(restored.process.pid), "vmsnap outlives SIGTERM until its VMM has ended")
    restored.process.terminate()
    check_exit(t, ended(restored), 137)


@case("qemu.restore-ends.before-it-runs", "qemu", 60)
def before_it_runs(t):
    """Interrupted while the VMM comes up: the VMM is ended, the status is of the signal."""
    source, image = make_image(t)
    guest = Guest(t, name="re", **source.shape())
    slow = ["-chardev", f"socket,id=w,path={t.path('w')},server=on,wait=on", "-serial", "chardev:w"]
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        guest.extra = slow
        restored = Restore(t, image, guest)
        wait_until(lambda: os.path.exists(t.path("w")), 20, "QEMU waits for a client")
        restored.process.send_signal(number)
        t.equal(restored.process.wait(20), code, "exit status")
        # QEMU may have been cut off in the middle of a line: the error need not begin one.
        wait_until(lambda: '"guest_state":"not-started"' in restored.result().text(), 5,
                   "an error that says what became of the guest")
        os.unlink(t.path("w"))


def open_files(pid):
    """{descriptor: name}, without those that the process closes meanwhile."""
    names = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            names[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return names


@case("qemu.restore-ends.inherited", "qemu", 60)
def inherited(t):
    """A recorded line gets none of the caller's descriptors but those that it names."""
    source, image = make_image(t)
    secret, named = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    t.defer(os.close, secret)
    t.defer(os.close, named)
    # Numbers that no line has by chance, but for the one that is given as an id.
    os.dup2(secret, 733)
    os.dup2(named, 731)
    t.defer(os.close, 733)
    t.defer(os.close, 731)
    extra = ["-add-fd", "fd=731,set=1"]
    guest = Guest(t, name="re", **source.shape())
    for recorded in (False, True):
        line = [] if recorded else ["--", *guest.argv(), *extra]
        # Paused: a QEMU that runs closes what is idle in a set when the last monitor client goes.
        restored = start_vmsnap(t, "restore", "--paused", "--allow", "disks", image, *line,
                                pass_fds=(731, 733))
        running = json.loads(restored.stdout.readline())
        names = open_files(running["vmm_pid"])
        t.equal("733" in names, not recorded, f"recorded: {recorded}: 733 is in {names}")
        if not recorded:
            t.check("/dev/zero" in names.values(), f"the one that the line names is in {names}")
        restored.terminate()
        restored.wait(20)


# What an interactive shell does with a job.
SHELL = """
import os, signal, sys, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    while os.tcgetpgrp(0) != os.getpid():
        time.sleep(0.01)
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
os.tcsetpgrp(0, os.setpgid(job, job) or job)
while True:
    status = os.waitpid(job, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(1)
    os.killpg(job, signal.SIGCONT)
"""


def on_terminal(t, image, guest):
    """A restore as the foreground job of a terminal with a shell that continues it a second after it
    was stopped; returns (the shell's process, master fd, pid of the VMM)."""
    master, slave = os.openpty()
    t.defer(os.close, master)

    def take_terminal():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    process = t.spawn([sys.executable, "-c", SHELL, tool("vmsnap"), "restore", "--json", image, "--",
                       *guest.argv()], stdin=slave, stdout=subprocess.PIPE, stderr=slave, env=environment(None),
                      preexec_fn=take_terminal)
    os.close(slave)
    text = b""
    while b'"running"' not in text:
        data = os.read(process.stdout.fileno(), 65536)
        if not data:
            raise Failed(f"restore ended: {text}")
        text += data
    pid = json_lines(text.decode())[0]["vmm_pid"]
    return process, master, pid


@case("qemu.restore-ends.ctrl-c", "qemu", 60)
def ctrl_c(t):
    source, image = make_image(t)
    process, master, pid = on_terminal(t, image, Guest(t, name="re", **source.shape()))
    os.write(master, b"\x03")
    out = process.communicate(timeout=20)[0].decode()
    t.equal(process.returncode, 0, "exit status: QEMU's after SIGINT")
    t.equal(json_lines(out)[-1]["type"], "exit", "type of the last object")
    t.check(not is_alive(pid), "the VMM has ended")


@case("qemu.restore-ends.ctrl-z", "qemu", 60)
def ctrl_z(t):
    """Ctrl-Z stops the whole job and it goes on; a stop signal for vmsnap alone is not heeded."""
    source, image = make_image(t)
    process, master, pid = on_terminal(t, image, Guest(t, name="re", **source.shape()))
    os.write(master, b"\x1a")
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        vmsnap = int(f.read().rsplit(")", 1)[1].split()[1])
    wait_until(lambda: state(vmsnap) == "T" and state(pid) == "T", 10, "both are stopped")
    wait_until(lambda: state(vmsnap) != "T" and state(pid) != "T", 10, "both go on")
    os.write(master, b"\x03")
    t.equal(process.wait(20), 0, "exit status")

    apart = Restore(t, image, Guest(t, name="re", **source.shape()), wrapper=("setsid", "--wait"))
    apart.wait_running()
    apart.process.send_signal(signal.SIGTSTP)
    time.sleep(0.3)
    t.check(state(apart.process.pid) != "T", "vmsnap is not stopped while a guest needs it")
    apart.guest.check_goes_on()
    t.equal(apart.end().code, 0, "exit status")


@case("qemu.restore-ends.wrappers", "qemu", 120)
def wrappers(t):
    """The VMM is found behind wrappers that become it, wait for it, or leave it; its status comes
    through."""
    source, image = make_image(t)
    for wrapper in (("env", "-i", "PATH=/usr/bin"), ("sh", "-c", '"$@"; exit $?', "sh"),
                    ("sh", "-c", '"$@" & sleep 0.2', "sh")):
        t.say(" ".join(wrapper))
        restored = Restore(t, image, Guest(t, name="re", **source.shape()), wrapper=wrapper)
        restored.wait_running()
        t.equal(os.readlink(f"/proc/{restored.pid}/exe").rsplit("/", 1)[1][:12], "qemu-system-",
                "what vmm_pid is")
        restored.guest.check_goes_on()
        check_exit(t, restored.end(), 0)
    restored = Restore(t, image, Guest(t, name="re", **source.shape()),
                       wrapper=("sh", "-c", '"$@"; exit 7', "sh")).wait_running()
    check_exit(t, restored.end(), 7)


@case("qemu.restore-ends.detached-lets-go", "qemu", 60)
def detached_lets_go(t):
    """Nothing of --detach keeps the caller's pipes open; what QEMU says before it fails comes
    through."""
    source, image = make_image(t)
    guest = Guest(t, name="re", **source.shape())
    done = t.run([tool("vmsnap"), "restore", "--json", "--detach", "--pidfile", t.path("pid"), image,
                  "--", *guest.argv()], timeout=20, env=environment(None))
    t.equal(done.returncode, 0, f"exit status ({done.stderr})")
    pid = json.loads(done.stdout)["vmm_pid"]
    t.defer(os.kill, pid, signal.SIGKILL)
    with open(t.path("pid"), encoding="utf-8") as f:
        t.equal(int(f.read()), pid, "--pidfile")
    guest.pid = pid
    guest.connect()
    guest.check_goes_on()
    other = Guest(t, name="re", **source.shape(extra=("-nonsense",)))
    failed = t.run([tool("vmsnap"), "restore", "--json", "--detach", image, "--", *other.argv()],
                   timeout=20, env=environment(None))
    t.equal(failed.returncode, 16, "exit status of a restore that fails")
    t.check("-nonsense" in failed.stderr, f"QEMU's own words: {failed.stderr}")
    t.check('"exit_code":16' in failed.stderr, f"the error: {failed.stderr}")


@case("qemu.restore-ends.stubborn", "qemu", 60)
def stubborn(t):
    """A VMM that does not obey SIGTERM while it starts is killed soon, whatever --timeout says."""
    _, image = make_image(t)
    ready = t.path("ready")
    line = ("import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
            "open(sys.argv[1], 'w').close(); time.sleep(300)")
    process = start_vmsnap(t, "restore", "--timeout", "200s", image, "--",
                           sys.executable, "-c", line, ready)
    wait_until(lambda: os.path.exists(ready), 20, "the VMM starts")
    vmms = [pid for pid in descendants(process.pid) if is_alive(pid)]
    t.check(vmms, "there is a VMM")
    process.terminate()
    result = finish(t, process, 30)
    t.equal(result.code, 143, f"exit status: {result.text()}")
    wait_until(lambda: not any(is_alive(pid) for pid in vmms), 5, "the VMM is gone, and all of vmsnap")


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def parent(pid):
    return int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])


@case("qemu.restore-ends.pidfile", "qemu", 60)
def pidfile(t):
    """--pidfile names the VMM for as long as it lives; a file that says something else by then is
    somebody else's."""
    source, image = make_image(t)
    path = t.path("pid")

    def start(*args):
        restored = Restore(t, image, Guest(t, name="re", **source.shape()), "--pidfile", path, *args)
        restored.wait_running()
        t.equal(read(path), f"{restored.pid}\n", "the file")
        return restored

    def kill(restored):
        os.kill(restored.pid, signal.SIGKILL)
        restored.process.wait(20)
    kill(start())
    t.check(not os.path.exists(path), "it goes with the VMM")

    restored = start()
    with open(path, "w", encoding="utf-8") as f:
        f.write("2000000000\n")
    kill(restored)
    t.equal(read(path), "2000000000\n", "a file that was written since")

    restored = start()
    os.rename(path, t.path("old"))
    with open(path, "w", encoding="utf-8") as f:
        f.write(f"{restored.pid}\n")
    kill(restored)
    t.check(os.path.exists(path), "another file of that name stays")

    kill(start("--detach", "--no-fill")) # its server still serves
    wait_until(lambda: not os.path.exists(path), 10, "it goes with the VMM, detached")

    restored = start("--detach")
    server = parent(restored.pid)
    wait_until(lambda: read(f"/proc/{server}/comm") == "vmsnap-pidfile\n", 20, "all is filled")
    wait_until(lambda: set(open_files(server).values()) == {"/dev/null", "anon_inode:[pidfd]", path},
               5, "the process that waits has nothing else open")
    t.equal(read(path), f"{restored.pid}\n", "the file of a VMM that runs")
    t.say(re.search("VmRSS.*", read(f"/proc/{server}/status")).group())
    kill(restored)
    wait_until(lambda: not os.path.exists(path), 10, "it goes with the VMM, all filled")
    wait_until(lambda: not is_alive(server), 5, "the process that waited is gone")


def keepers(image):
    """The keepers of restores of the image."""
    found = []
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if read(f"{path}/comm") == "vmsnap-keeper\n" and image in read(f"{path}/cmdline"):
                found.append(int(path.rsplit("/", 1)[1]))
    return found


def private_directories():
    return set(glob.glob("/run/vmsnap-restore-??????"))


def make_old(path):
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago), follow_symlinks=False)


@case("qemu.restore-ends.stale-directories", "qemu", 60)
def stale_directories(t):
    """What a restore leaves behind when it and its keeper are killed, the next one removes; but
    nothing that is in use, or not vmsnap's."""
    source, image = make_image(t)

    def held():
        """A restore that is held while its directory is there."""
        there = private_directories()
        log, reached, go = pause_log(t)
        process = start_vmsnap(t, "restore", image, "--", *Guest(t, name="re", **source.shape()).argv(),
                               hooks={"pause_at": "restore-launched", "pause_log": log})
        server = reached("restore-launched")
        vmm = wait_until(lambda: [int(p) for p in read(
            f"/proc/{server}/task/{server}/children").split()], 5, "the VMM")
        mine = [d for d in private_directories() - there
                if f"{d}/qmp" in read(f"/proc/{vmm[0]}/cmdline")]
        t.equal(len(mine), 1, f"private directories of process {vmm[0]}")
        return process, (server, vmm[0]), mine[0], go

    def plant(letters):
        path = f"/run/vmsnap-restore-{os.getpid() % 100000:05}{letters}"
        t.defer(lambda: os.path.lexists(path) and t.run(["rm", "-r", path]))
        return path
    killed, others, stale, _ = held()
    keeper = wait_until(lambda: keepers(image), 5, "the keeper has its name")
    for pid in (*keeper, killed.pid, *others):
        os.kill(pid, signal.SIGKILL)
    killed.wait(10)
    t.check(os.path.exists(f"{stale}/qmp"), "nobody was left to remove it")
    alive, _, used, go = held()
    t.check(os.path.exists(stale), "one that is young is left alone")

    os.mkdir(t.path("aim"))
    with open(t.path("aim/qmp"), "w", encoding="ascii"):
        pass
    link, foreign, full, longer = (plant(w) for w in ("a", "b", "c", "dd"))
    os.symlink(t.path("aim"), link)
    for path in (foreign, full, longer):
        os.mkdir(path, 0o711)
    os.chown(foreign, 65534, 65534)
    with open(f"{full}/data", "w", encoding="ascii"):
        pass
    for path in (stale, used, link, foreign, full, longer, t.path("aim")):
        make_old(path)
    restored = Restore(t, image, Guest(t, name="re", **source.shape())).wait_running()
    t.check(not os.path.exists(stale), "the next restore removes it")
    for path in (used, link, foreign, f"{full}/data", longer, t.path("aim/qmp")):
        t.check(os.path.lexists(path), f"{path} is left alone")
    t.equal(restored.end().code, 0, "exit status")
    go()
    wait_until(lambda: not os.path.exists(used), 20, "the other one goes on and removes its own")
    alive.terminate()
    alive.wait(20)


if __name__ == "__main__":
    main()
