#!/usr/bin/python3
"""What people get wrong at first: the wrong socket, the wrong file, a directory that can't be written. vmsnap says
soon what is wrong, and what to do about it. minivm stands for Firecracker."""

import errno
import os
import shutil
import signal
import socket
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import MiniVm, MiniVmPlace, end_and_wait, take_image  # noqa: E402
from vmsnap import json_lines, vmsnap  # noqa: E402

try:
    from imagefile import damage_clusters, stored_clusters
except ImportError: # no python3-xxhash
    damage_clusters = None

SIZES = ("--memory", "16M", "--populate", "8M")
SOON = 5 # seconds; --timeout is 30


def with_api(t):
    """A minivm that goes by Firecracker's name."""
    path = t.path(t.unique("api") + ".sock")
    vm = MiniVm(t, *SIZES, "--api", path, name="firecracker")
    vm.qmp.close() # minivm's control socket takes one client
    return vm, path


def soon(t, what, *args):
    """The command's result, which must not take long."""
    began = time.monotonic()
    result = vmsnap(t, *args)
    took = time.monotonic() - began
    t.check(took < SOON, f"{what}: took {took:.1f} s: {result.text()}")
    return result


@case("minivm.mistakes.sockets", "kernel", 60)
def sockets(t):
    """--qmp with Firecracker's API socket, and --api with a QMP socket."""
    vm, api = with_api(t)
    image = t.path("never.img")
    for option, path, words in (("--qmp", api, ("HTTP", "--api")),
                                ("--api", vm.control, ("no HTTP", "--qmp"))):
        result = soon(t, option, "snapshot", option, path, image)
        error = result.error
        t.equal((result.code, error["guest_state"]), (10, "untouched"), f"{option}: {result.text()}")
        t.check(words[0] in error["message"] and words[1] in error["hint"], f"{option}: {error}")
        result = soon(t, f"check {option}", "check", option, path)
        refused = [o for o in result.of_type("item") if o["refused"]]
        t.equal((result.code, [o["name"] for o in refused]), (10, [option[2:]]), result.text())
        t.check(all(w in refused[0]["reason"] for w in words), f"check {option}: {refused}")
    t.check(not os.path.exists(image), "no image")


@case("minivm.mistakes.listener", "kernel", 60)
def listener_socket(t):
    """The socket of `restore --listen` is no VMM's; and no image."""
    image, _, _ = saved(t)
    listener = Listener(t, image)
    for option in ("--qmp", "--api"):
        result = soon(t, option, "snapshot", option, listener.path, t.path("never.img"))
        t.equal(result.code, 10, result.text())
        t.check("vmsnap and no VMM" in result.error["message"] and "--api-sock" in result.error["hint"],
                f"{option}: {result.error}")
        result = soon(t, f"check {option}", "check", option, listener.path)
        t.check("vmsnap and no VMM" in result.text(), f"check {option}: {result.text()}")
    refused(t, 1, "--listen SOCK, then IMAGE", "restore", "--listen", image, listener.path)
    t.equal(listener.of_type("error"), [], "errors of the listener")


@case("minivm.mistakes.not-yet", "kernel", 60)
def not_yet(t):
    """A VMM that greets late is not taken for anything else."""
    vm, _ = with_api(t)
    os.kill(vm.pid, signal.SIGSTOP)
    threading.Timer(2.5, os.kill, (vm.pid, signal.SIGCONT)).start()
    result = vmsnap(t, "snapshot", "--qmp", vm.control, t.path("late.img"))
    t.equal(result.code, 0, result.text())


def small_place(t, name, size):
    """A tmpfs of that size."""
    place = t.path(name)
    os.mkdir(place)
    t.need(t.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place]).returncode == 0,
           "no tmpfs can be mounted here")
    t.defer(t.run, ["umount", "-l", place])
    return place


def read_only_place(t, image):
    """A file system that can't be written, with a copy of the image."""
    place = small_place(t, "fixed", "64m")
    shutil.copy(image, place)
    t.equal(t.run(["mount", "-o", "remount,ro", place]).returncode, 0, "remount")
    return place


def saved(t):
    """(image, memory file, state file) of a VM that has ended."""
    vm = MiniVm(t, *SIZES)
    vm.wait_for_writes(1000)
    vm.stop()
    state, memory = vm.save_files()
    end_and_wait(vm)
    image = t.path("vm.img")
    t.equal(vmsnap(t, "import", "firecracker", "--vmstate", state, memory, image).code, 0, "import")
    return image, memory, state


def refused(t, code, hint, *args):
    """The command fails with that code and says what to do; nothing stays of it in the directory."""
    result = vmsnap(t, *args)
    t.equal(result.code, code, f"{args}: {result.text()}")
    error = result.error
    t.check(hint in error["hint"], f"{args}: {error} should say '{hint}'")


@case("minivm.mistakes.files", "kernel", 60)
def files(t):
    """Files that can't be written, exist or can't be read: each error says what to do."""
    image, memory, state = saved(t)
    full, fixed = small_place(t, "full", "64k"), read_only_place(t, image)
    _, api = with_api(t)
    with open(f"{full}/ballast", "wb") as f:
        f.write(b"x" * 65536)
    importing, writable = ("import", "firecracker"), "you may write to"
    taking = ("snapshot", "--api", api, "--vmstate")
    raw, vmstate = ("export", "--format", "raw", image), ("export", "--format", "vmstate", image)
    listening = ("restore", "--listen", t.path("never.sock"))
    for code, hint, *args in (
            (18, "make room", *importing, memory, f"{full}/a.img"),
            (1, writable, *importing, memory, f"{fixed}/a.img"),
            (1, writable, *importing, memory, t.path("none/a.img")),
            (1, "--overwrite", *importing, memory, image),
            (1, "mem_file_path", *importing, t.path("none"), t.path("a.img")),
            (1, "snapshot_path", *importing, "--vmstate", t.path("none"), memory, t.path("a.img")),
            (13, "snapshot_path", *importing, "--vmstate", t.dir, memory, t.path("a.img")),
            (13, "snapshot_path", *importing, "--vmstate", memory, memory, t.path("a.img")),
            (13, "--vmstate", *importing, state, t.path("a.img")),
            (13, "mem_file_path", *importing, image, t.path("a.img")),
            (18, "make room", *raw, f"{full}/a.mem"), (18, "make room", *vmstate, f"{full}/a.state"),
            (1, writable, *raw, f"{fixed}/a.mem"), (1, "--overwrite", *vmstate, state),
            (1, "name a file", *raw, t.dir + "/"),
            (1, "--overwrite", *taking, state, t.path("a.img")),
            (1, writable, *taking, f"{fixed}/a.state", t.path("a.img")),
            (18, "make room", *taking, t.path("a.state"), f"{full}/a.img"),
            (1, "beside the image", *listening, "--learn", f"{fixed}/vm.img"),
            (1, writable, *listening, "--detach", "--report", t.path("none/r"), image),
            (1, writable, *listening, "--detach", "--report", f"{fixed}/r", image),
            (18, "make room", *listening, "--detach", "--report", f"{full}/r", image),
            (1, writable, *listening, "--detach", "--pidfile", f"{fixed}/p", image),
            (13, "import firecracker", *listening, memory), (1, "check the path", *listening, "none"),
            (1, writable, "restore", "--listen", f"{fixed}/s", image),
            (1, writable, "restore", "--listen", t.path("none/s"), image),
            (1, "where nothing lies", "restore", "--listen", memory, image)):
        refused(t, code, hint, *args)
    t.equal([n for n in os.listdir(t.dir) if "vmsnap" in n or n.startswith("a.")], [], "litter")
    t.equal(Api(t, api).get("/")["state"], "Running", "the VM")


@case("minivm.mistakes.whose", "kernel", 60)
def whose(t):
    """A warning from within one of many served VMs says whose it is."""
    image, _, state = saved(t)
    with open(image + ".workset", "wb") as f:
        f.write(b"no working set")
    listener = Listener(t, image)
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path)
    wanted = f"vmsnap: warning: process {vm.pid}: what an earlier run learned is not used"
    wait_until(lambda: wanted in listener.text(), 10, f"a warning: {listener.text()}")
    end_and_wait(vm)


@case("minivm.mistakes.orphans", "kernel", 60)
def orphans(t):
    """The last words of a listener count VMs whose processes were killed: one that --resume has finished, and one
    that waits for it."""
    image, _, state = saved(t)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vms = []
    for n in (1, 2):
        vms.append(MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, "--paused"))
        wait_until(lambda n=n: len(listener.of_type("running")) == n, 10, "it is served")
    for pid in descendants(listener.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not listener.children(), 10, "they are gone")
    result = vmsnap(t, "restore", "--resume", str(vms[0].pid))
    t.equal(result.code, 0, result.text())
    t.check(isinstance(result.summary["complete_ns"], int), f"who has finished it says when: {result.summary}")
    t.equal(listener.end(), 0, "exit status")
    last = listener.of_type("summary")[-1]
    t.equal({k: last[k] for k in ("vms", "vms_complete", "vms_left", "vms_unserved")},
            {"vms": 2, "vms_complete": 1, "vms_left": 0, "vms_unserved": 1}, "its last words")


@case("minivm.mistakes.report-full", "kernel", 60)
def report_full(t):
    """The disk fills under --report: the last that is told there is that."""
    image, _, state = saved(t)
    place, listen, pidfile = small_place(t, "filling", "256k"), t.path("listen.sock"), t.path("pid")
    report = f"{place}/report"
    done = vmsnap(t, "restore", "--listen", listen, "--detach", "--report", report, "--pidfile", pidfile, image)
    t.equal(done.code, 0, done.text())
    with open(pidfile, encoding="ascii") as f:
        t.defer(os.kill, int(f.read()), signal.SIGTERM)
    try:
        with open(f"{place}/ballast", "wb", 0) as f:
            while f.write(bytes(4096)):
                pass
    except OSError as full:
        t.equal(full.errno, errno.ENOSPC, "the disk is full")

    def told():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stray:
            stray.connect(listen)
            stray.sendall(b"this is refused, which is told as well")
            stray.recv(1)
        with open(report, encoding="utf-8") as f:
            return [o for o in json_lines(f.read()) if o.get("exit_code") == 18]
    error = wait_until(told, 20, "it is told")[0]
    t.check("hardly anything more" in error["message"] and "make room" in error["hint"], f"{error}")
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", listen)
    vm.wait_for_writes(1000)
    end_and_wait(vm)


@case("minivm.mistakes.poison-detached", "kernel", 60)
def poison_detached(t):
    """A VMM that touches poisoned memory dies of it: told where a detached server tells all else."""
    t.need(damage_clusters, "no python3-xxhash")
    sizes = (*SIZES, "--accel", "threads", "--pattern", "random")
    image, report = take_image(t, *sizes), t.path("report")
    with open(image, "rb") as f:
        damage_clusters(image, sorted(stored_clusters(f.read()))[64::4]) # the VMM itself reads the first
    done = vmsnap(t, "restore", "--no-fill", "--prefetch", "none", "--on-damage", "poison", "--detach", "--report",
                  report, image, "--", *MiniVmPlace(t, *sizes).argv())
    t.equal(done.code, 0, done.text())

    def last_error():
        with open(report, encoding="utf-8") as f:
            errors = [o for o in json_lines(f.read()) if o["type"] == "error"]
        return errors and "ended by SIGBUS" in errors[-1]["message"] and errors[-1]
    error = wait_until(last_error, 20, "it is told")
    t.check(error["guest_state"] == "ended" and "sound copy" in error["hint"], f"what is told: {error}")


if __name__ == "__main__":
    main()
