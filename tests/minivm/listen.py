#!/usr/bin/python3
"""`vmsnap restore --listen`: VMs that hand their memory over as Firecracker does; each gets every byte right, or
is refused by name, and none of them harms another."""

import contextlib
import fcntl
import glob
import hashlib
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import (Failed, case, descendants, end_process, is_alive, main, open_files,  # noqa: E402
                  tool, wait_until)
from launcher import Manager, need_library  # noqa: E402
from minivm import PAGE, MiniVm, end_and_wait, kvm_works, need_huge_pages  # noqa: E402
from rawvm import HUGE, RawVm  # noqa: E402
from vmsnap import broken, hook_points, json_lines, start_vmsnap, vmsnap  # noqa: E402

try:
    from imagefile import damage_cluster, stored_clusters
except ImportError: # no python3-xxhash
    damage_cluster = None

SIZES = ("--memory", "24M", "--populate", "16M", "--cpus", "2")
CLUSTER = 4 * PAGE
MIB = 1 << 20


def saved(t, *options, accel="threads", writes=4000):
    """(state, memory file, image) of a VM that has worked for a while."""
    vm = MiniVm(t, *SIZES, *options, accel=accel)
    vm.wait_for_writes(writes)
    vm.stop()
    state, memory = vm.save_files()
    end_and_wait(vm)
    return state, memory, imported(t, memory)


def imported(t, memory):
    image = memory + ".vmsnap"
    t.equal(vmsnap(t, "import", "firecracker", memory, image).code, 0, "import")
    return image


def random_memory(t, size, seed=1):
    """A memory file in which no page is like another, a quarter of them holes; and its image."""
    path, chance = t.path(t.unique("memory")), random.Random(seed)
    data = b"".join(bytes(CLUSTER) if chance.random() < 0.25 else chance.randbytes(CLUSTER)
                    for _ in range(size // CLUSTER))
    with open(path, "wb") as f:
        f.write(data)
    return data, imported(t, path)


class Listener:
    """A `vmsnap restore --listen`, and what it has said so far."""

    def __init__(self, t, image, *args, hooks=None, path=None):
        self.t = t
        self.path = path or t.path(t.unique("listen") + ".sock")
        self.out, self.err = t.path(t.unique("out")), t.path(t.unique("err"))
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = start_vmsnap(t, "restore", "--listen", self.path, image, *args, hooks=hooks,
                                        stdout=out, stderr=err)
        t.defer(self.kill_all)
        wait_until(lambda: self.of_type("listening") or self.process.poll() is not None, 10, "it listens")
        t.check(self.of_type("listening"), f"it listens: {self.text()}")

    def text(self):
        text = ""
        for path in (self.out, self.err):
            with open(path, encoding="utf-8") as f:
                text += f.read()
        return text

    def of_type(self, name, pid=None):
        return [o for o in json_lines(self.text())
                if o.get("type") == name and (pid is None or o.get("vmm_pid") == pid)]

    def wait_for(self, name, pid=None, n=1, seconds=20):
        """The nth object of that type (of that VM)."""
        try:
            return wait_until(lambda: self.of_type(name, pid)[n - 1:], seconds, f"{name} of {pid}")[0]
        except Failed as late:
            raise Failed(f"{late}: {self.text()}") from late

    def processes(self):
        """All but the listener itself: of each VM its supervisor and its server."""
        return [p for p in descendants(self.process.pid) if is_alive(p)]

    def servers(self):
        return [p for p in self.processes() if comm(p) == "vmsnap-server"]

    def kill_all(self):
        for pid in [self.process.pid, *self.processes()]:
            kill(pid)

    def end(self, number=signal.SIGTERM, seconds=10):
        """Its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def check_served(self, vms, refused=0):
        """A signal ends it when all memory is in; nothing is left of it."""
        self.t.equal(self.end(), 0, f"exit status: {self.text()}")
        total = self.of_type("summary")[-1]
        self.t.equal((total["vms"], total["handoffs_refused"], total["vms_left"]), (vms, refused, 0),
                     "in the summary")
        self.t.check(not os.path.exists(self.path), "the socket is removed")


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii") as f:
            return f.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def guest(t, state, listener, *options):
    return MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, *options)


def check_guest(t, vm, what, writes=500):
    """It goes on, and all of its memory is right, for itself and for its VMM."""
    vm.wait_for_writes(writes)
    vm.stop()
    vm.check_right(what)
    vm.cont()


def check_left(t, pid, what):
    """Nothing of vmsnap's is left in the VMM; its own userfaultfd is, and has nothing registered."""
    def gone():
        return not any("vmsnap-restore" in link for link in open_files(pid))
    wait_until(gone, 30, f"{what}: the record is gone")
    t.check(any("userfaultfd" in link for link in open_files(pid)), f"{what}: it keeps its userfaultfd")
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as f:
        t.check(" um" not in f.read(), f"{what}: nothing is registered")


def check_content(t, vm, data, what, zero=()):
    """All of a RawVm's memory; `zero`: [(offset, length)] that it has given back."""
    wanted = bytearray(data)
    for offset, length in zero:
        wanted[offset:offset + length] = bytes(length)
    pages = [hashlib.sha256(wanted[at:at + PAGE]).hexdigest()[:16] for at in range(0, len(wanted), PAGE)]
    there = vm.pages(0, len(wanted))
    wrong = [i for i, (a, b) in enumerate(zip(there, pages)) if a != b]
    t.equal(wrong, [], f"{what}: wrong pages")


# ---- served

@case("minivm.listen.served", "kernel", 60)
def served(t):
    """One VM after the other, from versions old and new, each to its end."""
    state, _, image = saved(t, "--regions", "2")
    listener = Listener(t, image)
    t.equal(stat.S_IMODE(os.stat(listener.path).st_mode), 0o600, "mode of the socket")
    for options in ((), ("--handoff-form", "page_size_kib", "--handoff-closes"),
                    ("--handoff-form", "none", "--handoff-closes", "--no-remove-events"),
                    ("--handoff-early-empty",)):
        vm = guest(t, state, listener, *options)
        check_guest(t, vm, f"{options}")
        listener.wait_for("running", vm.pid)
        summary = listener.wait_for("summary", vm.pid)
        t.check(summary["complete_ns"] and summary["demand_faults"], f"{options}: {summary}")
        check_left(t, vm.pid, f"{options}")
        check_guest(t, vm, f"{options}, afterwards")
        end_and_wait(vm)
        listener.wait_for("exit", vm.pid)
    t.equal(listener.of_type("error"), [], "errors")
    listener.check_served(4)


@case("minivm.listen.many", "kernel", 60)
def many(t):
    """Many VMs of one image at once."""
    state, _, image = saved(t)
    listener = Listener(t, image)
    vms = [guest(t, state, listener) for _ in range(8)]
    for vm in vms:
        check_guest(t, vm, "one of many")
    for vm in vms:
        t.check(listener.wait_for("summary", vm.pid)["complete_ns"], "all memory is in")
        check_left(t, vm.pid, "one of many")
    for vm in vms:
        end_and_wait(vm)
    listener.check_served(8)


@case("minivm.listen.kvm", "kvm", 40)
def kvm(t):
    t.need(kvm_works(), "no /dev/kvm here")
    state, _, image = saved(t, accel="kvm")
    listener = Listener(t, image)
    vm = guest(t, state, listener)
    t.equal(vm.description["accelerator"], "kvm", "accelerator")
    check_guest(t, vm, "KVM")
    listener.wait_for("summary", vm.pid)
    end_and_wait(vm)
    listener.check_served(1)


@case("minivm.listen.no-fill", "kernel", 40)
def no_fill(t):
    """Each page comes when it is touched, and only then; also in pieces, and two VMs on one connection."""
    data, image = random_memory(t, 8 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 8 * MIB)
    vm.hand_over(listener.path, pieces=9)
    check_content(t, vm, data, "on demand")
    vm.kill()
    summary = listener.wait_for("summary", n=1)
    t.equal((summary["pages_filled"], summary["complete_ns"]), (0, None), f"{summary}")
    listener.check_served(1)


@case("minivm.listen.empty-first", "kernel", 40)
def empty_first(t):
    """An empty message before the one that counts; another VM's handoff on the same connection."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path, text="[]", fds=[])
    vm.hand_over(listener.path, again=True)
    check_content(t, vm, data, "after an empty message")
    listener.wait_for("summary", vm.pid)
    vm.discard(0, 4 * MIB) # all is in: it is emptied and registered anew
    vm.hand_over(listener.path, again=True)
    listener.wait_for("summary", vm.pid, n=2)
    check_content(t, vm, data, "handed over once more")
    listener.check_served(2)


@case("minivm.listen.huge", "kernel", 60, lock="hugepages")
def huge(t):
    """Huge pages of 2 MiB: a guest, and one that gives a page back."""
    need_huge_pages(t, 20)
    state, _, image = saved(t, "--hugetlb")
    listener = Listener(t, image)
    vm = guest(t, state, listener, "--hugetlb")
    check_guest(t, vm, "huge pages")
    listener.wait_for("summary", vm.pid)
    check_left(t, vm.pid, "huge pages")
    end_and_wait(vm)
    listener.check_served(1)
    data, image = random_memory(t, 8 * HUGE)
    listener = Listener(t, image, "--bwlimit", "4M")
    vm = RawVm(t, 8 * HUGE, huge=True)
    vm.hand_over(listener.path)
    vm.digest(3 * HUGE, PAGE)
    vm.discard(3 * HUGE, HUGE)
    vm.discard(6 * HUGE, HUGE)
    check_content(t, vm, data, "given back", zero=[(3 * HUGE, HUGE), (6 * HUGE, HUGE)])
    listener.wait_for("summary", vm.pid)
    check_content(t, vm, data, "all in", zero=[(3 * HUGE, HUGE), (6 * HUGE, HUGE)])


# ---- what the guest gives back

@case("minivm.listen.discards", "kernel", 60)
def discards(t):
    """Given back before, while and after it comes in, under load: it stays zero, and nothing else is."""
    size = 32 * MIB
    data, image = random_memory(t, size)
    for features in (("--bwlimit", "64M"), ()):
        listener = Listener(t, image, *features)
        vm = RawVm(t, size)
        chance = random.Random(7)
        places = list(range(0, size // PAGE, 4))
        chance.shuffle(places)
        zero = [(page * PAGE, chance.randint(1, 4) * PAGE) for page in places[:600]]
        vm.hand_over(listener.path)
        vm.discard_all(zero[:300], 0.0005)
        vm.discard_all(zero[300:], 0.0005)
        vm.read_all([chance.randrange(size) for _ in range(2000)])
        vm.join()
        check_content(t, vm, data, "while it comes in", zero)
        summary = listener.wait_for("summary", vm.pid)
        t.check(summary["pages_discarded"] > 0, f"{summary}")
        check_content(t, vm, data, "all in", zero)
        vm.discard(0, 16 * PAGE)
        check_content(t, vm, data, "afterwards", zero + [(0, 16 * PAGE)])
        vm.kill()
        listener.check_served(1)


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


@case("minivm.listen.discards-untold", "kernel", 40)
def discards_untold(t):
    """A VMM that does not tell what it gives back: zeros, as without vmsnap, never a hang."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path, features=0)
    check_content(t, vm, data, "before")
    vm.discard(MIB, MIB)
    check_content(t, vm, data, "after", zero=[(MIB, MIB)])
    vm.kill()
    listener.check_served(1)


# ---- refused

def message(*regions):
    return "[" + ",".join('{"base_host_virt_addr":%s,"size":%s,"offset":%s,"page_size":%s}' % r
                          for r in regions) + "]"


BAD = (
    ("no userfaultfd", {"fds": []}, ("without a userfaultfd",)),
    ("a file", {"fds": ["/dev/null"]}, ("no userfaultfd",)),
    ("of other memory", {"fds": ["other"]}, ("not registered", "0x")),
    ("not registered", {"register": False}, ("not registered",)),
    ("garbage", {"text": "GET / HTTP/1.1\r\n\r\n"}, ("message",)),
    ("half", {"text": '[{"base_host'}, ("closed in the middle",)),
    ("a size that is not there", {"text": message(("@AT@", "16777216", "0", "4096"))}, ("image",)),
    ("less than the image", {"text": message(("@AT@", "2097152", "0", "4096"))}, ("has 2 MiB", "image 4 MiB")),
    ("an offset beyond", {"text": message(("@AT@", "@SIZE@", "4096", "4096"))}, ("image",)),
    ("an address that is not mapped", {"text": message(("65536", "@SIZE@", "0", "4096"))}, ("not mapped",)),
    ("huge pages that are none", {"text": message(("@AT@", "@SIZE@", "0", "2097152"))}, ()),
    ("pages of 3000 bytes", {"text": message(("@AT@", "@SIZE@", "0", "3000"))}, ()),
    ("too long", {"text": "[" + " " * 70000 + "]"}, ()),
)


@case("minivm.listen.refused", "kernel", 60)
def refused(t):
    """What is no handoff, or does not fit: an error that says so, the connection closed, the listener alive."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--timeout", "5s")
    for n, (what, how, words) in enumerate(BAD, 1):
        vm = RawVm(t, 4 * MIB)
        vm.hand_over(listener.path, close=what in ("half", "no userfaultfd"), **how)
        error = listener.wait_for("error", n=n)
        for word in words:
            t.check(word in error["message"], f"{what}: '{word}' in {error['message']}")
        t.check(error["hint"] and error["guest_state"] == "waiting", f"{what}: {error}")
        t.equal(error["exit_code"] in (10, 15), True, f"{what}: {error}")
        if "close" not in how and what not in ("half", "no userfaultfd"):
            t.check(vm.closed(5), f"{what}: the connection is closed")
        vm.kill()
    t.equal(listener.processes(), [], "processes that are left")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "after all of them")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1, refused=len(BAD))


@case("minivm.listen.twice", "kernel", 40)
def twice(t):
    """The same memory handed over again before its first page is in: refused, and served on. What is given
    back stays zero."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("running", vm.pid)
    vm.hand_over(listener.path, fds=["uffd-again"])
    error = listener.wait_for("error")
    t.equal((error["exit_code"], error["guest_state"]), (11, "running"), f"{error}")
    vm.discard(MIB, MIB)
    check_content(t, vm, data, "handed over twice", zero=[(MIB, MIB)])
    t.equal(len(listener.of_type("running")), 1, "servers")
    vm.kill()
    listener.check_served(1, refused=1)


@case("minivm.listen.silent", "kernel", 40)
def silent(t):
    """Who connects and says nothing is sent away; who shares his memory is refused."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--timeout", "500ms")
    mute = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mute.connect(listener.path)
    error = listener.wait_for("error")
    t.equal(error["exit_code"], 17, f"{error}")
    mute.settimeout(5)
    t.equal(mute.recv(1), b"", "the connection")
    vm = RawVm(t, 4 * MIB, shared=True)
    vm.hand_over(listener.path)
    t.check("private" in listener.wait_for("error", n=2)["message"], "shared memory")
    vm.kill()
    listener.check_served(0, refused=2)


# ---- the socket, the end

@case("minivm.listen.socket", "kernel", 40)
def socket_file(t):
    """In use: refused by name; left by the dead: replaced; no socket: not touched; another's: not removed."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    result = vmsnap(t, "restore", "--listen", listener.path, image)
    t.equal((result.code, "in-use" in result.error["message"]), (14, True), f"{result.text()}")
    kill(listener.process.pid)
    listener.process.wait(5)
    t.check(os.path.exists(listener.path), "it is left there")
    second = Listener(t, image, path=listener.path)
    os.unlink(second.path)
    with open(second.path, "w", encoding="ascii") as f:
        f.write("precious")
    t.equal(second.end(), 0, "exit status")
    with open(second.path, encoding="ascii") as f:
        t.equal(f.read(), "precious", "the file that another has put there")
    result = vmsnap(t, "restore", "--listen", second.path, image)
    t.equal(result.code, 1, f"no socket: {result.text()}")
    t.equal(vmsnap(t, "restore", "--listen", "/tmp/" + "x" * 120, image).code, 2, "too long")
    t.equal(vmsnap(t, "restore", "--listen", t.path("s"), image + ".none").code, 1, "no image")
    t.check(not os.path.exists(t.path("s")), "no socket without an image")


@case("minivm.listen.signals", "kernel", 60)
def signals(t):
    """Ctrl-C: who is served is served on until all is in; nobody else is taken. Twice: it leaves at once, and who
    is served is served on."""
    data, image = random_memory(t, 8 * MIB)
    for times in (1, 2):
        listener = Listener(t, image, "--bwlimit", "4M", "--prefetch", "none")
        vm = RawVm(t, 8 * MIB)
        vm.hand_over(listener.path)
        listener.wait_for("running", vm.pid)
        mute = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mute.connect(listener.path)
        os.killpg(listener.process.pid, signal.SIGINT)
        wait_until(lambda path=listener.path: not os.path.exists(path), 5, "the socket is removed")
        t.equal(listener.process.poll(), None, f"it ends before its VMs: {listener.text()}")
        if times == 2:
            servers = listener.processes()
            listener.process.send_signal(signal.SIGTERM)
            t.equal(listener.process.wait(5), 143, "exit status")
            t.check(all(is_alive(p) for p in servers), "its servers live")
            t.equal(listener.of_type("summary")[-1]["vms_left"], 1, "vms_left")
        mute.settimeout(5)
        try:
            t.equal(mute.recv(1), b"", "the connection of one that has said nothing")
        except ConnectionResetError: # it was not even accepted
            pass
        check_content(t, vm, data, f"{times} times")
        listener.wait_for("summary", vm.pid)
        if times == 1:
            t.equal(listener.process.wait(10), 0, "exit status")
        vm.kill()


@case("minivm.listen.in-flight", "kernel", 40)
def in_flight(t):
    """Told to end while a handoff is half read, or lies in the socket: that VM is served."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    vm = RawVm(t, 4 * MIB)
    vm.begin("hand_over", listener.path, pieces=2, pause=0.5)
    wait_until(lambda: listener.processes(), 5, "its process", every=0.01)
    time.sleep(0.2)
    for pid in [listener.process.pid, *listener.processes()]:
        kill(pid, signal.SIGTERM)
    vm.end()
    check_content(t, vm, data, "half read")
    t.equal(listener.process.wait(10), 0, "exit status")
    t.equal(listener.of_type("summary")[-1]["vms"], 1, "vms")
    listener = Listener(t, image)
    kill(listener.process.pid, signal.SIGSTOP)
    second = RawVm(t, 4 * MIB)
    second.hand_over(listener.path)
    kill(listener.process.pid, signal.SIGTERM)
    kill(listener.process.pid, signal.SIGCONT)
    check_content(t, second, data, "not yet accepted")
    t.equal(listener.process.wait(10), 0, "exit status")


@case("minivm.listen.no-process", "kernel", 40)
def no_process(t):
    """No process can be had: a VM that connects waits for one; one on another's connection is counted, and the
    listener ends all the same."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, hooks={"fail_at": "listen-fork"})
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "it had to wait")
    t.check("has to wait" in listener.text(), f"it is said: {listener.text()}")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1)
    listener = Listener(t, image, hooks={"fail_at": "listen-fork-next"})
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("summary", vm.pid)
    vm.hand_over(listener.path, again=True)
    t.check(vm.closed(5), "the connection is closed")
    listener.check_served(1, refused=1)


@case("minivm.listen.detached", "kernel", 40)
def detached(t):
    """Returns once it listens; the rest is in the report."""
    data, image = random_memory(t, 4 * MIB)
    path, pidfile, report = t.path("l.sock"), t.path("pid"), t.path("report")
    result = vmsnap(t, "restore", "--listen", path, "--detach", "--pidfile", pidfile, "--report", report, image)
    t.equal(result.code, 0, result.text())
    pid = result.of_type("listening")[0]["listener_pid"]
    t.defer(kill, pid)
    with open(pidfile, encoding="ascii") as f:
        t.equal(int(f.read()), pid, "in the pidfile")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(path)
    check_content(t, vm, data, "detached")

    def told(kind):
        with open(report, encoding="utf-8") as f:
            return [o for o in json_lines(f.read()) if o["type"] == kind]
    wait_until(lambda: told("summary"), 10, "the summary")
    vm.kill()
    wait_until(lambda: told("exit"), 10, "its end")
    kill(pid, signal.SIGTERM)
    wait_until(lambda: len(told("summary")) == 2, 10, "the last summary")
    wait_until(lambda: not is_alive(pid), 10, "its end")
    t.check(not os.path.exists(path) and not os.path.exists(pidfile), "nothing is left")


@case("minivm.listen.report-again", "kernel", 40)
def report_again(t):
    """A listener that was killed is started again with the same report, while its VMs live; these go on there."""
    data, image = random_memory(t, 4 * MIB)
    path, pidfile, report = t.path("l.sock"), t.path("pid"), t.path("report")
    argv = ("restore", "--listen", path, "--detach", "--pidfile", pidfile, "--report", report, image)

    def started():
        result = vmsnap(t, *argv)
        t.equal(result.code, 0, result.text())
        pid = result.of_type("listening")[0]["listener_pid"]
        t.defer(kill, pid)
        return pid

    def told(kind, pid):
        with open(report, encoding="utf-8") as f:
            return [o for o in json_lines(f.read()) if o["type"] == kind and o.get("vmm_pid") == pid]
    first, vms = started(), [RawVm(t, 4 * MIB), RawVm(t, 4 * MIB)]
    vms[0].hand_over(path)
    wait_until(lambda: told("summary", vms[0].pid), 10, "the summary")
    t.equal(vmsnap(t, *argv[:2], path + "2", *argv[3:]).code, 11, "while it lives")
    kill(first)
    wait_until(lambda: not is_alive(first), 5, "its end")
    os.unlink(pidfile)
    started()
    vms[1].hand_over(path)
    check_content(t, vms[1], data, "of the second listener")
    for vm in vms:
        dead = vm.pid
        vm.kill()
        wait_until(lambda pid=dead: told("exit", pid), 10, "its end")


@case("minivm.listen.closed", "kernel", 40)
def closed(t):
    """Started with its standard descriptors closed: nothing of it takes their numbers."""
    data, image = random_memory(t, 4 * MIB)
    path, report, pidfile = t.path("l.sock"), t.path("report"), t.path("pid")
    started = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- 2>&-', "sh", tool("vmsnap"), "restore", "--listen", path,
                              "--detach", "--pidfile", pidfile, "--report", report, image], timeout=20, check=False,
                             stdout=subprocess.DEVNULL)
    t.equal(started.returncode, 0, "exit status")
    with open(pidfile, encoding="ascii") as f:
        t.defer(kill, int(f.read()))

    def told(kind):
        with open(report, encoding="utf-8") as f:
            return [o for o in json_lines(f.read()) if o["type"] == kind]
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(path)
    check_content(t, vm, data, "with closed descriptors")
    wait_until(lambda: told("summary"), 10, "the summary")
    t.equal(told("error"), [], "errors")
    vm.kill()


@case("minivm.listen.ready", "kernel", 40)
def ready(t):
    """The service manager is told once it listens, and at the end; nothing of the single VMs."""
    need_library(t)
    data, image = random_memory(t, 4 * MIB)
    manager = Manager(t)
    listener = Listener(t, image)
    manager.wait_for(t, "READY=1")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "under a service manager")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1)
    manager.wait_for(t, "STOPPING=1")
    t.equal(len([text for text in manager.told if "READY" in text]), 1, "once")
    t.check(not any("guest" in text for text in manager.told), f"{manager.told}")


@case("minivm.listen.ended", "kernel", 40)
def ended(t):
    """A VM that ends in the middle ends its own session, no other."""
    data, image = random_memory(t, 16 * MIB)
    listener = Listener(t, image, "--bwlimit", "8M")
    vms = [RawVm(t, 16 * MIB) for _ in range(2)]
    for vm in vms:
        vm.hand_over(listener.path)
        listener.wait_for("running", vm.pid)
    dead = vms[0].pid
    vms[0].kill()
    t.equal(listener.wait_for("summary", dead)["complete_ns"], None, "complete_ns")
    t.equal(listener.wait_for("exit", dead)["exit_status"], None, "exit_status")
    check_content(t, vms[1], data, "the other one")
    t.check(listener.wait_for("summary", vms[1].pid)["complete_ns"], "complete_ns")
    wait_until(lambda: not listener.servers(), 5, "the servers end")
    vms[1].kill()
    listener.check_served(2)


@case("minivm.listen.immortal", "kernel", 40)
def immortal(t):
    """A VMM that makes the server's read of its userfaultfd wait, and ends: so does its session."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("running", vm.pid)
    vm.make_blocking()
    vm.begin("digest", 0, 4 * MIB) # which is its own harm
    time.sleep(0.3)
    dead = vm.pid
    vm.kill()
    listener.wait_for("exit", dead)
    wait_until(lambda: not listener.processes(), 5, "its processes end")
    listener.check_served(1)


# ---- killed

POINTS = ("listen-recorded", "listen-serving", "listen-left", "restore-prefetched", "restore-filled", "restore-released",
          "restore-closing", "restore-handed-off")
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


def resume(t, vm, *args):
    return start_vmsnap(t, "restore", "--resume", str(vm.pid), *args)


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


def records(pid):
    """The /proc paths of the records in a process."""
    found = []
    for fd in glob.glob(f"/proc/{pid}/fd/*"):
        with contextlib.suppress(FileNotFoundError): # closed since
            if "vmsnap-restore" in os.readlink(fd):
                found.append(fd)
    return found


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
    listener = Listener(t, image, hooks={"kill_at": "serve-installed:20", "pause_log": t.path("log")})
    vm = RawVm(t, 8 * MIB)
    tracer = t.spawn(["strace", "-f", "-o", "/dev/null", "-p", str(vm.pid)])
    wait_until(lambda: tracer_of(vm.pid), 10, "it is traced")
    vm.hand_over(listener.path)
    check_content(t, vm, data, "traced")
    listener.wait_for("summary", vm.pid)
    t.check("takeover by hand" in listener.text(), f"the warning: {listener.text()}")
    t.equal(len(listener.of_type("takeover")), 1, "takeovers")
    end_process(tracer)


def tracer_of(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return int(next(line.split()[1] for line in f if line.startswith("TracerPid")))


# ---- damage

@case("minivm.listen.damage", "kernel", 60)
def damage(t):
    """stop: who touches it waits, until another copy of the image comes; poison: SIGBUS there, and nowhere else."""
    t.need(damage_cluster, "no xxhash module for Python")
    data, image = random_memory(t, 4 * MIB)
    bad = image + ".bad"
    shutil.copyfile(image, bad)
    with open(image, "rb") as f:
        cluster = sorted(stored_clusters(f.read()))[40]
    damage_cluster(bad, cluster)
    listener = Listener(t, bad)
    vms = [RawVm(t, 4 * MIB), RawVm(t, 4 * MIB)]
    for vm in vms:
        vm.hand_over(listener.path)
        error = listener.wait_for("error", n=1 + vms.index(vm))
        t.check(f"0x{cluster * CLUSTER:x}" in error["message"], f"{error}")
        t.equal(vm.digest(0, cluster * CLUSTER), hashlib.sha256(data[:cluster * CLUSTER]).hexdigest(), "before it")
        vm.begin("digest", cluster * CLUSTER, PAGE)
        t.check(not vm.is_done(0.3), "it waits at the damage")
    by_hand = resume(t, vms[0], image)
    t.check(vms[0].is_done(10), "goes on with a sound copy")
    vms[0].end()
    check_content(t, vms[0], data, "with a sound copy")
    t.equal(by_hand.wait(10), 0, "--resume with a copy")
    t.check(not vms[1].is_done(0.1), "the other one waits as before")
    listener = Listener(t, bad, "--on-damage", "poison")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    summary = listener.wait_for("summary", vm.pid)
    t.equal((summary["pages_poisoned"], summary["complete_ns"] is None), (4, False), f"{summary}")
    for page in range(cluster * 4 - 4, cluster * 4 + 8):
        t.equal(readable(vm.pid, vm.at(), page), page // 4 != cluster, f"page {page} can be read")
    poison_untold(t, bad, data, cluster * CLUSTER)


def poison_untold(t, image, data, at):
    """Poison that is given back, and the VMM does not tell: zeros."""
    listener = Listener(t, image, "--on-damage", "poison", "--bwlimit", "1M")
    vm = RawVm(t, len(data))
    vm.hand_over(listener.path, features=0)
    listener.wait_for("error")
    time.sleep(0.05)
    vm.discard(at, CLUSTER)
    vm.begin("digest", at, CLUSTER)
    t.check(vm.is_done(1.5), "it waits until all is in")
    t.equal(vm.end(), hashlib.sha256(bytes(CLUSTER)).hexdigest(), "poison that was given back")
    check_content(t, vm, data, "poison that was given back", zero=[(at, CLUSTER)])


@case("minivm.listen.asked-in-vain", "kernel", 40)
def asked_in_vain(t):
    """Who asks for a guest vanishes, and the server that gave it up can't serve it any more: another one does."""
    t.need(damage_cluster, "no xxhash module for Python")
    data, image = random_memory(t, 4 * MIB)
    bad = image + ".bad"
    shutil.copyfile(image, bad)
    with open(image, "rb") as f:
        cluster = sorted(stored_clusters(f.read()))[40]
    damage_cluster(bad, cluster)
    listener = Listener(t, bad)
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("error")
    vm.begin("digest", cluster * CLUSTER, PAGE)
    first, = listener.servers()
    wait_until(lambda: any("vmsnap-restore" in link for link in open_files(vm.pid)), 5, "it has the record")
    resource.prlimit(first, resource.RLIMIT_NOFILE, (3, 3)) # no descriptor more
    vain = vmsnap(t, "restore", "--resume", str(vm.pid), image,
                  hooks={"kill_at": "asked-for-guest", "pause_log": t.path("log"), "break": "not-supervised"})
    t.equal(vain.code, -signal.SIGKILL, f"killed: {vain.text()}")
    listener.wait_for("running", vm.pid, n=2)
    t.check(listener.servers() and first not in listener.servers(), "another server")
    by_hand = resume(t, vm, image)
    t.check(vm.is_done(10), "goes on with a sound copy")
    vm.end()
    check_content(t, vm, data, "with a sound copy")
    t.equal(by_hand.wait(10), 0, "--resume with a copy")


def readable(pid, at, page):
    with open(f"/proc/{pid}/mem", "rb", 0) as f:
        try:
            return len(os.pread(f.fileno(), PAGE, at + page * PAGE)) == PAGE
        except OSError:
            return False


# ---- options

@case("minivm.listen.learn", "kernel", 40)
def learn(t):
    """The first VM learns, the next is brought what it has touched."""
    data, image = random_memory(t, 8 * MIB)
    listener = Listener(t, image, "--learn", "--no-fill")
    first = RawVm(t, 8 * MIB)
    first.hand_over(listener.path)
    for offset in range(0, MIB, CLUSTER):
        first.digest(offset, PAGE)
    first.kill()
    t.check(listener.wait_for("summary", first.pid or None)["clusters_learned"] > 40, "clusters_learned")
    second = RawVm(t, 8 * MIB)
    second.hand_over(listener.path)
    listener.wait_for("running", second.pid)
    time.sleep(0.3)
    check_content(t, second, data, "after learning")
    dead = second.pid
    second.kill()
    summary = listener.wait_for("summary", dead)
    t.check(summary["pages_prefetched"] > 100, f"{summary}")


if __name__ == "__main__":
    main()
