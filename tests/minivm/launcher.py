#!/usr/bin/python3
"""What a launcher of many guests asks for: clones of one image side by side, progress, a word to the service
manager."""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, main, tool, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from vmsnap import Restore, json_lines, pause_log, report_lines, start_vmsnap, vmsnap  # noqa: E402

SIZES = ("--memory", "64M", "--populate", "48M", "--rate", "20000")
QUIET = (*SIZES[:-1], "200") # a guest that demands little
CLONES = 8
MIB = 1 << 20
PROGRESS = {"type", "schema_version", "done_bytes", "total_bytes", "bytes_per_second", "remaining_ns",
            "elapsed_ns", "demand_faults", "pages_on_demand", "pages_prefetched", "pages_ahead",
            "pages_filled", "pages_discarded", "clusters_damaged", "vmm_pid", "guest_state"}


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def parent(pid):
    return int(read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()[1])


def status_bytes(pid, field):
    for line in read(f"/proc/{pid}/status").split("\n"):
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


@case("minivm.launcher.clones", "kernel", 60)
def clones(t):
    """Many guests from one image at once, each with a command line of its own: all are right, each goes its own
    way, and what a restore takes does not grow with their number."""
    image = take_image(t, *SIZES, writes=100)
    before = digest(image)
    places = [MiniVmPlace(t, *SIZES) for _ in range(CLONES)]
    restores = [Restore(t, image, place, "--threads", "1") for place in places]
    for restored in restores:
        restored.wait_running()
    for restored in restores:
        summary = restored.wait_complete()
        t.equal(summary["clusters_damaged"], 0, "clusters_damaged")
    t.equal(len({r.pid for r in restores}), CLONES, "processes")
    for restored, place in zip(restores, places):
        server = parent(restored.pid)
        peak, names = status_bytes(server, "VmHWM"), os.listdir(f"/proc/{server}/fd")
        t.check(peak <= 64 * MIB, f"a server's memory: {peak / MIB:.1f} MiB")
        t.check(len(names) <= 32, f"a server's descriptors: {names}")
        place.wait_for_writes(1000)
        place.stop()
        place.check_right("a clone")
    states = {hashlib.sha256(b"".join(place.peek(page) for page in range(1, place.pages, 64))).digest()
              for place in places}
    t.check(len(states) > 1, "the clones have gone different ways")
    for restored in restores:
        t.equal(restored.end().code, 0, "exit status")
    t.equal(digest(image), before, "the image")


@case("minivm.launcher.progress", "kernel", 60)
def progress(t):
    """SIGUSR1 asks for progress at any time: in the foreground a line on stderr, of a detached server an object
    in its report."""
    image = take_image(t, *SIZES, writes=100)
    log, reached, go = pause_log(t)
    foreground = Restore(t, image, MiniVmPlace(t, *SIZES), "--no-fill",
                         hooks={"pause_at": "restore-launched", "pause_log": log})
    reached("restore-launched")
    foreground.process.send_signal(signal.SIGUSR1)
    go()
    foreground.wait_running()
    t.check("does not run yet" in foreground.result().err, f"before: {foreground.result().err}")
    foreground.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "vmsnap: filled " in foreground.result().err, 10, "a line of progress")
    t.equal(foreground.result().of_type("progress"), [], "stdout is for results")
    t.equal(foreground.end().code, 0, "exit status")

    whole = Restore(t, image, MiniVmPlace(t, *SIZES)).wait_running()
    whole.wait_complete()
    whole.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "(100 %)" in whole.result().err, 10, "a line when all is in")
    t.equal(whole.end().code, 0, "exit status")

    path, place = t.path("report"), MiniVmPlace(t, *SIZES)
    detached = Restore(t, image, place, "--detach", "--no-fill", "--prefetch", "none", "--report", path)
    detached.wait_running()
    t.equal(detached.process.wait(10), 0, "exit status of --detach")
    server = parent(detached.pid)
    for n in (1, 2):
        place.wait_for_writes(100)
        os.kill(server, signal.SIGUSR1)
        wait_until(lambda wanted=n: len(report_lines(path, "progress")) == wanted, 10, f"object {n}")
    first, second = report_lines(path, "progress")
    t.equal(set(second), PROGRESS, "its keys")
    t.equal(second["vmm_pid"], detached.pid, "vmm_pid")
    t.check(0 < first["done_bytes"] <= second["done_bytes"] <= second["total_bytes"], f"{first}, {second}")
    t.check(40 * MIB <= second["total_bytes"] <= 64 * MIB, f"{second}")
    t.check(all(isinstance(v, (int, str)) or v is None for v in second.values()), f"{second}")
    os.kill(server, signal.SIGUSR1) # asked once, answered once
    place.qmp.command("quit")
    wait_until(lambda: not is_alive(server), 10, "the server has gone")
    t.equal(len(report_lines(path, "summary")), 1, "summaries")


@case("minivm.launcher.report", "kernel", 60)
def report(t):
    """The report of a detached server: progress once a second, unasked, that comes nearer to the whole."""
    image, path, place = take_image(t, *QUIET, writes=100), t.path("report"), MiniVmPlace(t, *QUIET)
    rate = os.path.getsize(image) // 2 # what is read of the image, per second
    detached = Restore(t, image, place, "--detach", "--prefetch", "none", "--bwlimit", str(rate),
                       "--report", path)
    detached.wait_running()
    wait_until(lambda: report_lines(path, "summary"), 30, "all memory is in")
    found, summary = report_lines(path, "progress"), report_lines(path, "summary")[0]
    t.say(f"{found[-1:]}")
    t.check(2 <= len(found) <= summary["complete_ns"] / 1e9 + 1, f"{len(found)} objects")
    for key in ("done_bytes", "elapsed_ns", "pages_filled"):
        values = [o[key] for o in found]
        t.check(values == sorted(set(values)), f"{key} rises: {values}")
    t.check(found[-1]["remaining_ns"] < found[0]["remaining_ns"], f"remaining_ns falls: {found}")
    t.check(MIB < found[-1]["bytes_per_second"] < 200 * MIB, f"{found[-1]}")
    place.qmp.command("quit")


@case("minivm.launcher.files", "kernel", 60)
def files(t):
    """Neither a report nor a pidfile that somebody uses, nor a file that is none, is written to; a full disk is
    noticed before anything is started, and after that it is said what runs."""
    image = take_image(t, *QUIET, writes=100)
    report_path, pidfile, small = t.path("report"), t.path("pid"), t.path("small")

    def detach(*args, code, says):
        """It is refused; `says`: in the error's message."""
        done = vmsnap(t, "restore", "--detach", "--no-fill", *args, image, "--", *MiniVmPlace(t, *QUIET).argv())
        t.equal(done.code, code, done.text())
        t.check(says in done.error["message"], f"{done.error}, should say {says!r}")
        t.check(done.error["hint"] or code == 18, f"{done.error}: no hint")

    with open(report_path, "w", encoding="utf-8") as f:
        f.write("of an earlier run\n")
    place = MiniVmPlace(t, *QUIET)
    first = Restore(t, image, place, "--detach", "--no-fill", "--report", report_path, "--pidfile", pidfile)
    first.wait_running()
    t.equal(first.process.wait(10), 0, "exit status of --detach")
    wait_until(lambda: report_lines(report_path, "running"), 10, "the report")
    before = read(report_path)
    t.check("earlier" not in before, f"the report begins anew: {before}")
    detach("--report", report_path, code=11, says=report_path)
    detach("--pidfile", pidfile, "--report", t.path("other"), code=11, says=f"process {first.pid}")
    t.equal((read(report_path), read(pidfile)), (before, f"{first.pid}\n"), "the files of the first")
    t.check(not os.path.exists(t.path("other")), "a report of nothing")
    place.qmp.command("quit")
    wait_until(lambda: not os.path.exists(pidfile), 10, "the pidfile goes")

    with open(t.path("list"), "w", encoding="utf-8") as f:
        f.write("1 2 3\n")
    for path in (t.path("list"), "/dev/null"):
        detach("--pidfile", path, code=1, says=path)
    t.equal(read(t.path("list")), "1 2 3\n", "what is no pidfile")

    detach("--report", "/dev/full", code=18, says="/dev/full")
    os.mkdir(small)
    if t.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small]).returncode == 0:
        t.defer(t.run, ["umount", small])
        with open(os.path.join(small, "full"), "wb") as f, contextlib.suppress(OSError):
            f.write(bytes(1 << 20))
        for option in ("--pidfile", "--report"):
            detach(option, os.path.join(small, "new"), code=18, says="No space")
        t.equal(os.listdir(small), ["full"], "left behind")

    place = MiniVmPlace(t, *QUIET)
    done = t.run(["sh", "-c", 'exec "$@" >/dev/full', "sh", tool("vmsnap"), "restore", "--json", "--detach",
                  image, "--", *place.argv()])
    place.connect()
    t.equal(done.returncode, 3, f"exit status ({done.stderr})")
    error = json_lines(done.stderr)[-1]
    t.equal((error["exit_code"], error["guest_state"]), (3, "running"), "what is said")
    pid = int(error["hint"].split()[-1])
    t.check(place.control in read(f"/proc/{pid}/cmdline"), f"{error}: the VMM's process")
    place.qmp.command("quit")


class Manager:
    """Stands for a service manager: what is sent to its socket, as texts, and by which processes."""

    def __init__(self, t):
        self.path = t.path("notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.settimeout(0.05)
        t.defer(self._socket.close)
        self.told, self.pids = [], set()
        os.environ["NOTIFY_SOCKET"] = self.path
        t.defer(os.environ.pop, "NOTIFY_SOCKET")

    def listen(self):
        """Takes what is there; a barrier's descriptor is closed at once."""
        with contextlib.suppress(socket.timeout):
            while True:
                data, control, _, _ = self._socket.recvmsg(4096, 256)
                self.told.append(data.decode())
                for _, kind, value in control:
                    if kind == socket.SCM_CREDENTIALS:
                        self.pids.add(struct.unpack("=iII", value[:12])[0])
                    elif kind == socket.SCM_RIGHTS:
                        os.close(struct.unpack("=i", value[:4])[0])
        return self.told

    def wait_for(self, t, text):
        try:
            wait_until(lambda: any(text in told.split("\n") for told in self.listen()), 20, text)
        finally:
            t.say(f"told: {self.told}")


def need_library(t):
    try:
        ctypes.CDLL("libsystemd.so.0")
    except OSError:
        t.skip("there is no libsystemd.so.0 here")


@case("minivm.launcher.readiness", "kernel", 60)
def readiness(t):
    """READY=1 comes when the guest runs and not before; the VMM can't send it; of --detach the VMM becomes
    the unit's main process."""
    need_library(t)
    image, manager = take_image(t, *SIZES, writes=100), Manager(t)
    log, reached, go = pause_log(t)
    place = MiniVmPlace(t, *SIZES)
    held = Restore(t, image, place, hooks={"pause_at": "restore-let-live", "pause_log": log})
    reached("restore-let-live")
    time.sleep(0.1)
    told = manager.listen()
    t.check(told and not any("READY" in text for text in told), f"not ready yet: {told}")
    go()
    held.wait_running()
    manager.wait_for(t, "READY=1")
    held.wait_complete()
    manager.wait_for(t, "STATUS=all memory is in")
    environ = read(f"/proc/{held.pid}/environ")
    t.check("NOTIFY_SOCKET" not in environ and "PATH=" in environ, f"the VMM's environment: {environ}")
    t.equal(held.end().code, 0, "exit status")
    manager.wait_for(t, "STOPPING=1")
    if os.geteuid() == 0:
        t.equal(manager.pids, {held.process.pid}, "in whose name it was told: of the unit's main process")

    manager.told.clear()
    place = MiniVmPlace(t, *SIZES)
    process = start_vmsnap(t, "restore", "--detach", image, "--", *place.argv())
    manager.wait_for(t, "READY=1")
    pid = json.loads(process.stdout.readline())["vmm_pid"]
    t.equal([text for text in manager.told if "READY" in text], [f"MAINPID={pid}\nREADY=1"], "of --detach")
    t.equal(process.wait(10), 0, "exit status of --detach")
    place.connect()
    place.qmp.command("quit")


@case("minivm.launcher.waits", "kernel", 60)
def waits(t):
    """The unit's status says that the guest waits, and what to do about it, until it does no more: for a
    server, since servers fail over and over."""
    need_library(t)
    image, manager = take_image(t, *SIZES, writes=100), Manager(t)
    restored = Restore(t, image, MiniVmPlace(t, *SIZES), "--prefetch", "none", "--no-fill").wait_running()
    os.rename(image, image + ".moved")
    os.kill(parent(restored.pid), signal.SIGKILL)
    wait_until(lambda: "WAITS" in manager.listen()[-1] and "is served no more" in restored.result().err, 20,
               "it is told")
    t.equal(manager.told[-1], f"STATUS=guest WAITS for memory; 'vmsnap restore --resume {restored.pid} [IMAGE]' "
            "tries it again", "the last word")
    restored.give_up()


@case("minivm.launcher.nobody-listens", "kernel", 30)
def nobody_listens(t):
    """A service manager that is not there is no reason to fail."""
    image = take_image(t, *SIZES, writes=100)
    os.environ["NOTIFY_SOCKET"] = t.path("nobody")
    t.defer(os.environ.pop, "NOTIFY_SOCKET")
    restored = Restore(t, image, MiniVmPlace(t, *SIZES)).wait_running()
    restored.wait_complete()
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.launcher.clock", "kernel", 60)
def clock(t):
    """--sync-clock where there is no agent: exit status 3 of --detach, and the guest runs; where the server has
    died meanwhile, its successor says that it does not know."""
    image = take_image(t, *SIZES, writes=100)
    for hooks, synced, words in ((None, False, "no guest agent"),
                                 ({"kill_at": "restore-running"}, None, "has died")):
        place = MiniVmPlace(t, *SIZES)
        result = vmsnap(t, "restore", "--detach", "--sync-clock", image, "--", *place.argv(), hooks=hooks)
        t.equal(result.code, 3, f"exit status: {result.text()}")
        running = result.of_type("running")[0]
        t.equal(running["clock_synced"], synced, "clock_synced")
        t.check(words in running["warnings"][0], f"{running['warnings']}")
        place.connect()
        place.wait_for_writes(100)
        place.qmp.command("quit")


@case("minivm.launcher.clock-kept", "kernel", 60)
def clock_kept(t):
    """What came of --sync-clock a later successor knows, and says nothing that it does not know; it tells the
    VM and the accelerator as the first one did."""
    image = take_image(t, *SIZES, writes=100)
    restored = Restore(t, image, MiniVmPlace(t, *SIZES), "--sync-clock", "--no-fill").wait_running()
    wait_until(lambda: restored.result().of_type("clock"), 10, "what came of the clock")
    os.kill(parent(restored.pid), signal.SIGKILL)
    wait_until(lambda: len(restored.result().of_type("running")) == 2, 20, "a takeover")
    first, second = restored.result().of_type("running")
    t.equal((second["clock_synced"], second["clock_behind_ns"]), (False, None), f"of the clock: {second}")
    t.check("before this one" in second["warnings"][0], f"{second['warnings']}")
    for key in ("accelerator", "vm_name"):
        t.equal(second[key], first[key], key)
    result = restored.end()
    t.equal(result.summary["accelerator"], first["accelerator"], "in the summary")


if __name__ == "__main__":
    main()
