#!/usr/bin/python3
"""What a VMM says is not believed: garbage over the control socket, before and in the pause and at a
restore, ends in the published exit codes, and no VM is left paused that could be continued."""

import ctypes
import json
import mmap
import os
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from fakes import FakeServer  # noqa: E402
from minivm import MiniVm, end_and_wait  # noqa: E402
from qmp import Qmp, QmpError  # noqa: E402
from vmsnap import check_no_litter, vmsnap  # noqa: E402

GREETING = b'{"QMP": {"version": {"vmsnap-vmm": 1, "package": "x"}, "capabilities": []}}\r\n'
LIAR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "liar.py")
MIB = 1 << 20


def reply_line(request, answer):
    reply = answer if "error" in answer else {"return": answer}
    return json.dumps({**reply, "id": request.get("id")}).encode() + b"\r\n"


def refused(t, what, result, code, *texts):
    t.equal(result.code, code, f"{what}: exit status ({result.text()})")
    t.equal(result.error["exit_code"], code, f"{what}: exit_code")
    for text in texts:
        t.check(text in result.error["message"], f"{what}: '{text}' in: {result.error}")
    check_no_litter(t.path("out"))


def attempt(t, path, *args):
    os.makedirs(t.path("out"), exist_ok=True)
    return vmsnap(t, "snapshot", "--qmp", path, *args, t.path("out/image"), timeout=30)


# ---- answers that make no sense: this test's own process is "the VMM"

def own_memory(t):
    """Two pages' worth of memory of this process, with nothing mapped behind them."""
    room = mmap.mmap(-1, 4 * MIB)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    libc = ctypes.CDLL(None)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    t.equal(libc.munmap(address + 2 * MIB, MIB), 0, "munmap")
    t.keep = room
    return address


def block(**changes):
    return {**{"name": "ram", "bytes": MIB, "gpa": 0}, **changes}


def blocks(*items):
    return lambda at: {"memory": [{"hva": at, **item} for item in items]}


def broken_file(_):
    """A block of memory that is a file on disk: this interpreter's own code."""
    with open("/proc/self/maps", encoding="ascii") as f:
        for line in f:
            if "/" in line and "r-xp" in line:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                return {"memory": [{"name": "ram", "hva": start, "bytes": end - start, "gpa": 0}]}
    raise AssertionError("no mapping of a file")


# what -> (laid over a good query-vm, exit status, what is said)
NONSENSE = {
    "no-object": (lambda at: [1], 10, "vmm"),
    "vmm-missing": (lambda at: {"vmm": None}, 10, "vmm"),
    "vmm-empty": (lambda at: {"vmm": ""}, 10, "vmm"),
    "vmm-qemu": (lambda at: {"vmm": "qemu"}, 10, "QEMU"),
    "vmm-long": (lambda at: {"vmm": "x" * 300}, 10, "vmm"),
    "version-number": (lambda at: {"version": 3}, 10, "version"),
    "name-control": (lambda at: {"name": "a\x1b[2Jb"}, 10, "name"),
    "name-c1": (lambda at: {"name": "a\x9bb"}, 10, "name"),
    "accelerator-list": (lambda at: {"accelerator": []}, 10, "accelerator"),
    "cpus-none": (lambda at: {"cpus": 0}, 10, "cpus"),
    "cpus-many": (lambda at: {"cpus": 1 << 40}, 10, "cpus"),
    "cpus-text": (lambda at: {"cpus": "2"}, 10, "cpus"),
    "memory-none": (lambda at: {"memory": []}, 10, "memory"),
    "memory-number": (lambda at: {"memory": 7}, 10, "memory"),
    "memory-many": (lambda at: {"memory": [block(hva=at)] * 5000}, 10, "too many"),
    "memory-texts": (lambda at: {"memory": ["ram"]}, 10, "block 0"),
    "block-nameless": (blocks(block(name="")), 10, "block 0"),
    "block-long-name": (blocks(block(name="n" * 256)), 10, "block 0"),
    "block-control": (blocks(block(name="r\nm")), 10, "block 0"),
    "bytes-none": (blocks(block(bytes=0)), 10, "'ram'"),
    "bytes-negative": (blocks(block(bytes=-4096)), 10, "'ram'"),
    "bytes-odd": (blocks(block(bytes=5000)), 10, "'ram'"),
    "bytes-float": (blocks(block(bytes=4096.0)), 10, "'ram'"),
    "bytes-huge": (blocks(block(bytes=(1 << 63) - 4096)), 10, "'ram'"),
    "bytes-more-than-mapped": (blocks(block(bytes=3 * MIB)), 10, "ram"),
    "hva-missing": (lambda at: {"memory": [block()]}, 10, "'ram'"),
    "hva-null": (lambda at: {"memory": [block(hva=0)]}, 10, "'ram'"),
    "hva-odd": (lambda at: {"memory": [block(hva=at + 8)]}, 10, "'ram'"),
    "hva-kernel": (lambda at: {"memory": [block(hva=(1 << 63) - (1 << 20))]}, 10, "'ram'"),
    "hva-unmapped": (lambda at: {"memory": [block(hva=at + 2 * MIB)]}, 10, "ram"),
    "hva-into-hole": (lambda at: {"memory": [block(hva=at + MIB, bytes=2 * MIB)]}, 10, "ram"),
    "gpa-float": (blocks(block(gpa=4096.5)), 10, "'ram'"),
    "gpa-negative": (blocks(block(gpa=-4096)), 10, "'ram'"),
    "gpa-far": (blocks(block(gpa=(1 << 52) - 4096)), 10, "'ram'"),
    "gpa-beyond-any-number": (blocks(block(gpa=1 << 64)), 10, "JSON"),
    "gpa-odd": (blocks(block(gpa=1)), 10, "'ram'"),
    "same-name": (lambda at: {"memory": [block(hva=at), block(hva=at + MIB, gpa=MIB)]}, 10,
                  "twice"),
    "same-hva": (blocks(block(), block(name="b", gpa=MIB)), 10, "'b' overlaps"),
    "same-gpa": (lambda at: {"memory": [block(hva=at), block(name="b", hva=at + MIB)]}, 10,
                 "'b' overlaps"),
    "of-a-file": (broken_file, 14, "ram"),
}


@case("minivm.hostile.query-vm", "kernel", 120)
def query_vm(t):
    at = own_memory(t)
    for what, (change, code, text) in NONSENSE.items():
        lie = change(at)
        good = {"vmm": "x", "version": "1", "name": "", "accelerator": "none", "cpus": 1,
                "memory": [block(hva=at)]}
        answer = {**good, **lie} if isinstance(lie, dict) else lie

        def reply(line, answer=answer):
            request = json.loads(line)
            status = {"status": "running", "running": True}
            return reply_line(request, {"query-vm": answer, "query-status": status}.get(
                request["execute"], {}))
        path = t.path(t.unique("s"))
        FakeServer(t, path, GREETING, reply)
        t.quiet = True
        refused(t, what, attempt(t, path), code, text)
        t.quiet = False
    t.say(f"{len(NONSENSE)} kinds of nonsense")


@case("minivm.hostile.greeting", "kernel", 60)
def greeting(t):
    """Versions that are not ours; states; a VMM that lacks a command."""
    def server(greeting_version, status, code, *texts):
        def reply(line):
            request = json.loads(line)
            if request["execute"] == "query-status":
                return reply_line(request, status)
            if request["execute"] == "qmp_capabilities":
                return reply_line(request, {})
            return reply_line(request, {"error": {"class": "CommandNotFound", "desc": "what?"}})
        path = t.path(t.unique("s"))
        hello = {"QMP": {"version": {"vmsnap-vmm": greeting_version}, "capabilities": []}}
        FakeServer(t, path, json.dumps(hello).encode() + b"\n", reply)
        refused(t, f"{greeting_version} {status}", attempt(t, path), code, *texts)
    running = {"status": "running", "running": True}
    server(2, running, 10, "version 2")
    server("1", running, 10, "version")
    server(None, running, 10, "version")
    server(1, {"status": "inmigrate", "running": False}, 11, "inmigrate")
    server(1, {"status": "dancing", "running": False}, 10, "dancing")
    server(1, {"status": 3}, 10, "status")
    server(1, running, 10, "query-vm", "CommandNotFound")


# ---- a real VM, behind somebody who changes what it says

class Proxy:
    """Passes commands on to a VM, but for those in `lies`: a function of how often the command has
    come; it returns the answer, None to close, or Proxy.PASS."""
    PASS = object()

    def __init__(self, t, vm, lies):
        self.path = t.path(t.unique("proxy"))
        self.lies, self.counts = lies, {}
        self.qmp = Qmp(vm.control)
        self.lock = threading.Lock()
        t.defer(self.qmp.close)
        FakeServer(t, self.path, GREETING, self.reply)

    def reply(self, line):
        request = json.loads(line.split(b"\xff")[-1])
        name = request["execute"]
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + 1
            answer = self.lies.get(name, lambda n: Proxy.PASS)(self.counts[name])
            if answer is None:
                return None
            if answer is Proxy.PASS:
                try:
                    answer = self.qmp.command(name)
                except QmpError as error:
                    answer = {"error": {"class": "GenericError", "desc": str(error)}}
            events, self.qmp.events = self.qmp.events, []
        return b"".join(json.dumps(e).encode() + b"\n" for e in events) + reply_line(request, answer)


def behind(t, vm, lies, *args):
    return attempt(t, Proxy(t, vm, lies).path, "--pid", vm.pid, "--timeout", "5s", *args)


@case("minivm.hostile.in-the-pause", "kernel", 90)
def in_the_pause(t):
    """Each lie fails the snapshot by its exit code, and the VM runs on."""
    vm = MiniVm(t, "--memory", "64M", "--pattern", "random", "--rate", "5000")
    error = {"error": {"class": "GenericError", "desc": "not today"}}
    running = {"status": "running", "running": True}

    def other_memory(n):
        answer = json.loads(json.dumps(vm.description))
        answer["memory"][0]["bytes"] -= 4096 if n > 1 else 0
        return answer
    for what, lies, code, texts in (
            ("memory that changes", {"query-vm": other_memory}, 10, ("changed",)),
            ("stop that does not stop", {"stop": lambda n: {}}, 17, ("STOP",)),
            ("stop refused", {"stop": lambda n: error}, 10, ("stop", "not today")),
            ("running after stop", {"query-status": lambda n: running}, 10, ("running", "after")),
            ("a state of nothing", {"save-state": lambda n: {"bytes": 0}}, 16, ("0 bytes",)),
            ("a state that was not written", {"save-state": lambda n: {"bytes": 7}}, 16, ("state",)),
            ("no state", {"save-state": lambda n: error}, 10, ("device state", "not today")),
    ):
        result = behind(t, vm, lies)
        refused(t, what, result, code, *texts)
        t.equal(result.error["guest_state"], "running", f"{what}: guest_state")
        t.equal(vm.qmp.status(), "running", f"{what}: status")
        vm.wait_for_writes(200)
    vm.stop()
    vm.check_right("after all")


@case("minivm.hostile.no-way-back", "kernel", 90)
def no_way_back(t):
    """A VM that can't be told to go on: vmsnap says so, and what to do."""
    for what, lies in (("gone in the pause", {"save-state": lambda n: None}),
                       ("cont refused", {"cont": lambda n: {"error": {"class": "GenericError",
                                                                      "desc": "no"}}})):
        vm = MiniVm(t, "--memory", "64M")
        # save-state needs a descriptor, which the proxy does not pass: only lies answer it.
        lies.setdefault("save-state", lambda n: {"bytes": 7})
        result = behind(t, vm, lies)
        t.check(result.code in (1, 10, 16), f"{what}: {result.text()}")
        t.check(result.error["guest_state"] not in ("running", "untouched"),
                f"{what}: {result.error}")
        t.check("cont" in result.error["hint"], f"{what}: the hint: {result.error}")
        t.equal(vm.qmp.status(), "paused", f"{what}: status")
        vm.cont()
        vm.wait_for_writes(1000)
        vm.stop()
        vm.check_right(what)


# ---- at a restore

@case("minivm.hostile.restore", "kernel", 120)
def restore(t):
    source = MiniVm(t, "--memory", "64M", "--cpus", "2", accel="threads")
    image = t.path("image")
    t.equal(vmsnap(t, "snapshot", "--qmp", source.control, image).code, 0, "snapshot")
    end_and_wait(source)
    ram = {"name": "ram", "hva": "here", "bytes": 64 << 20, "gpa": 1 << 32}
    error = {"error": {"class": "GenericError", "desc": "not mine"}}
    for what, lies, code, text in (
            ("a QEMU", {"greeting": {"QMP": {"version": {"qemu": {}}, "capabilities": []}}}, 15,
             "protocol"),
            ("no greeting", {"greeting": "hang"}, 17, "greeting"),
            ("no QMP", {"greeting": [1]}, 10, "QMP"),
            ("a newer one", {"greeting": {"QMP": {"version": {"vmsnap-vmm": 2}}}}, 10, "version 2"),
            ("another VMM", {"vm": {"vmm": "other"}}, 15, "other"),
            ("another accelerator", {"vm": {"accelerator": "kvm"}}, 15, "accelerator"),
            ("fewer CPUs", {"vm": {"cpus": 1}}, 15, "CPUs"),
            ("no CPUs", {"vm": {"cpus": []}}, 10, "cpus"),
            ("less memory", {"bytes": 32 << 20}, 15, "'ram'"),
            ("more blocks", {"vm": {"memory": [{**ram, "bytes": 32 << 20},
                                               {**ram, "name": "b"}]}}, 10, "'b' overlaps"),
            ("other blocks", {"vm": {"memory": [{**ram, "name": "mar"}]}}, 15, "'mar'"),
            ("memory that is not there", {"vm": {"memory": [{**ram, "hva": 4096}]}}, 10, "ram"),
            ("running already", {"query-status": {"status": "running", "running": True}}, 16,
             "running"),
            ("gone at once", {"query-vm": None}, 16, ""),
            ("state refused", {"load-state": error}, 16, "not mine"),
            ("state not taken", {"load-state": {}}, 16, "inmigrate"),
            ("gone while it loads", {"load-state": None}, 16, ""),
            ("hangs while it loads", {"load-state": "hang"}, 17, ""),
    ):
        t.quiet = True
        result = vmsnap(t, "restore", "--timeout", "3s", image, "--", sys.executable, "-B", LIAR,
                        json.dumps(lies), timeout=40)
        t.quiet = False
        t.equal(result.code, code, f"{what}: exit status ({result.text()})")
        t.check(text in result.error["message"], f"{what}: '{text}' in {result.error}")
        t.equal(result.error["guest_state"], "not-started", f"{what}: guest_state")
        t.equal(result.of_type("running"), [], f"{what}: it never ran")


if __name__ == "__main__":
    main()
