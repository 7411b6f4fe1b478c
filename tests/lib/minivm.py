"""The reference VMM (tools/minivm) in a test: its process, its control socket, its memory."""

import os
import socket
import struct
import subprocess
import time

import huge_pages
from case import Failed, tool, wait_until
from qmp import Qmp
from vmsnap import snapshot

PAGE = 4096
MARK_WORDS = (128, 256, 384, 511) # tools/minivm/guest.h: guest_mark_word()


class Incoming(Qmp):
    """The side that a VMM with --vmsnap-incoming connects to."""

    def __init__(self, t, timeout=10.0):
        self.timeout = timeout
        self.events = []
        self._buffer = b""
        self._socket = None
        self.path = t.path(t.unique("incoming"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        t.defer(self._listener.close)

    def accept(self):
        self._listener.settimeout(self.timeout)
        self._socket, _ = self._listener.accept()
        self._read_object(time.monotonic() + self.timeout)
        self.command("qmp_capabilities")


class MiniVm:
    """A running minivm. `options`: its command line; --control is added. With an Incoming, its
    commands go over that connection. `seconds`: for its start and each command. `serve`: called once it
    has been started; without what that does it does not answer. `server` is its result. `name`: its process's."""

    def __init__(self, t, *options, accel="auto", incoming=None, seconds=10.0, serve=None,
                 name=None):
        self.t = t
        self.control = self.qmp_path = t.path(t.unique("minivm") + ".sock")
        self.log_path = self.control + ".log"
        program = tool("minivm")
        if name:
            program = t.path(name)
            os.symlink(tool("minivm"), program)
        argv = [program, "--accel", accel, "--control", self.control, *options]
        if incoming:
            argv += ["--vmsnap-incoming", incoming.path]
        with open(self.log_path, "wb") as log:
            self.process = t.spawn(argv, stderr=log)
        self.pid = self.process.pid
        self.server = serve() if serve else None
        if incoming:
            incoming.accept()
            self.qmp = incoming
        else:
            try:
                self.qmp = Qmp(self.control, seconds)
            except Exception as error:
                raise Failed(f"minivm does not answer: {self.log()}") from error
            t.defer(self.qmp.close)
        self.description = self.qmp.command("query-vm")
        self.ram = self.description["memory"][0]
        self.pages = self.ram["bytes"] // PAGE

    def log(self):
        with open(self.log_path, encoding="utf-8") as f:
            return f.read()

    def stop(self):
        self.qmp.command("stop")

    def cont(self):
        self.qmp.command("cont")

    def stats(self, full=False, reset=False):
        return self.qmp.command("x-stats", full=full, reset=reset)

    def writes(self):
        return self.stats()["writes"]

    def wait_for_writes(self, n, seconds=10):
        """Until the guest has written n pages more."""
        until = self.writes() + n
        wait_until(lambda: self.writes() >= until, seconds, f"{n} writes more")

    def wrongs(self):
        """x-check's verdict: what is wrong, by kind; empty if nothing is. The VM is stopped."""
        found = self.qmp.command("x-check", timeout=60)
        return {k: found[k] for k in ("wrong_pages", "wrong_steps", "stale_shares") if found[k]}

    def check_right(self, what):
        """Everything is as the guest left it, for it and for the VMM. The VM is stopped."""
        self.t.equal(self.wrongs(), {}, f"{what}: wrong in memory")
        self.t.equal(self.stats()["wrong_pages"], 0, f"{what}: wrong pages that the guest found")

    def peek(self, page, offset=0, length=PAGE):
        with open(f"/proc/{self.pid}/mem", "rb", 0) as f:
            f.seek(self.ram["hva"] + page * PAGE + offset)
            return f.read(length)

    def poke(self, page, data, offset=0):
        with open(f"/proc/{self.pid}/mem", "r+b", 0) as f:
            f.seek(self.ram["hva"] + page * PAGE + offset)
            f.write(data)

    def save_state(self):
        """The state of the vCPUs as a file that was read from nowhere yet."""
        path = self.t.path(self.t.unique("state"))
        with open(path, "wb") as f:
            self.qmp.command("save-state", fds=[f.fileno()])
        return path

    def load_state(self, path):
        with open(path, "rb") as f:
            self.qmp.command("load-state", fds=[f.fileno()])

    def save_files(self, state=None, memory=None):
        """The two files that Firecracker writes for a full snapshot. The VM is stopped."""
        state = state or self.t.path(self.t.unique("vmstate"))
        memory = memory or self.t.path(self.t.unique("memory"))
        self.qmp.command("x-save-files", timeout=60, vmstate=state, memory=memory)
        return state, memory

    def balloon(self, **arguments):
        """x-balloon: {pages, discarded, reused}."""
        return self.qmp.command("x-balloon", **arguments)

    def wait_for_reuse(self, n, seconds=10, before=None):
        """Until the guest has taken back n pages more that the VMM discarded. `before`: more than balloon() told
        then; else than now, by when some of what was just discarded may have been taken back."""
        until = (before or self.balloon())["reused"] + n
        wait_until(lambda: self.balloon()["reused"] >= until, seconds, f"{n} pages reused")

    def copy_memory_to(self, other):
        """All pages that hold anything, by way of /proc."""
        step = 256
        for page in range(0, self.pages, step):
            data = self.peek(page, length=min(step, self.pages - page) * PAGE)
            if data.count(0) != len(data):
                other.poke(page, data)

    def mapping(self):
        """The smaps entry of the guest's RAM: (first line, {field: value})."""
        with open(f"/proc/{self.pid}/smaps", encoding="ascii", errors="replace") as f:
            lines = f.read().split("\n")
        wanted = f"{self.ram['hva']:x}-{self.ram['hva'] + self.ram['bytes']:x} "
        for i, line in enumerate(lines):
            if line.startswith(wanted):
                fields = {}
                for field in lines[i + 1:]:
                    name, colon, value = field.partition(":")
                    if not colon or not name[0].isupper() or " " in name:
                        break
                    fields[name] = value.strip()
                return line, fields
        raise Failed(f"no mapping is exactly {wanted}")


class _NoConsole:
    """A minivm prints nothing that a test would read."""

    def size(self):
        return 0


class MiniVmPlace(MiniVm):
    """A minivm that `vmsnap restore` is going to start (vmsnap.Restore): its command line, and,
    once it runs, its socket. `control`: the socket of a recorded line."""

    def __init__(self, t, *options, accel="auto", control=None): # pylint: disable=super-init-not-called
        self.t = t
        self.control = control or t.path(t.unique("place") + ".sock")
        self.options = options
        self.accel = accel
        self.console = _NoConsole()
        self.pid = self.qmp = None

    def wrapper(self):
        return []

    def argv(self):
        return [tool("minivm"), "--accel", self.accel, "--control", self.control, *self.options]

    def stderr(self):
        return ""

    def connect(self):
        self.qmp = Qmp(self.control)
        self.t.defer(self.qmp.close)
        self.description = self.qmp.command("query-vm")
        self.ram = self.description["memory"][0]
        self.pages = self.ram["bytes"] // PAGE


def guest_mix(x):
    """tools/minivm/guest.h"""
    mask = (1 << 64) - 1
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & mask
    x = (x ^ x >> 27) * 0x94d049bb133111eb & mask
    return x ^ x >> 31


def guest_check(number, gen):
    """tools/minivm/guest.h"""
    return guest_mix(number * 0x9e3779b97f4a7c15 + gen & (1 << 64) - 1) if gen else 0


_STATE = struct.Struct("<Q4I12Q") # struct guest_state
STATE_MAGIC = 0x3145544154534d56
SEQUENTIAL = 2


def judge_memory(data):
    """Is this copy of the guest's RAM one instant? What speaks against it, as texts; [] if nothing.
    The arithmetic is minivm's own check (tools/minivm/check.c), done over again from outside."""
    found = []
    cpus = struct.unpack_from("<QII", data)[2]
    for cpu in range(cpus):
        (magic, number, _, pattern, _, _, _, first, n, _, _, _, _, total, pending, old,
         new) = _STATE.unpack_from(data, cpu * PAGE)
        if magic != STATE_MAGIC or number != cpu:
            return [f"vCPU {cpu}: no state page"]
        gens, added = [], 0
        for page in range(first, first + n):
            there, gen, check = struct.unpack_from("<3Q", data, page * PAGE)
            if page == pending: # being written at the instant: of before, of after, or in between
                continue
            wanted = guest_check(page, gen)
            marks = [struct.unpack_from("<Q", data, page * PAGE + 8 * w)[0] for w in MARK_WORDS]
            if (check != wanted or there != (page if gen else 0)
                    or marks != [wanted + i + 1 & (1 << 64) - 1 if gen else 0 for i in range(4)]):
                found.append(f"page {page}: torn")
            added += wanted
            gens.append(gen)
        sums = [added + guest_check(pending, g) if pending else added for g in (old, new)]
        if total not in [s & (1 << 64) - 1 for s in sums]:
            found.append(f"vCPU {cpu}: a page is old")
        if pattern == SEQUENTIAL and torn_steps(gens):
            found.append(f"vCPU {cpu}: {torn_steps(gens)} wrong steps")
    return found


def generation(page):
    """Of a page's bytes."""
    return struct.unpack_from("<Q", page, 8)[0]


def torn_steps(generations):
    """In a sequential guest's pages of one instant there is at most one step, of one, down: how
    many are there too many?"""
    downs = wrong = 0
    for before, after in zip(generations, generations[1:]):
        downs += before == after + 1
        wrong += before not in (after, after + 1)
    return wrong + max(0, downs - 1)


def end_and_wait(vm, seconds=5):
    """`quit`; the exit status."""
    vm.qmp.command("quit")
    try:
        return vm.process.wait(seconds)
    except subprocess.TimeoutExpired as stuck:
        raise Failed("minivm does not end") from stuck


def take_image(t, *options, writes=20000, path=None, accel="auto"):
    """The image of a minivm of these options that had written so many pages, and has ended."""
    source = MiniVm(t, *options, accel=accel)
    path = path or t.path(t.unique("image"))
    source.wait_for_writes(writes)
    snapshot(t, source, path)
    t.equal(end_and_wait(source), 0, "the source's exit status")
    return path


def kvm_works():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def need_huge_pages(t, n):
    """`n` huge pages more than there were, for as long as the case takes. It has the lock
    "hugepages"."""
    held = huge_pages.lend(n)
    t.need(held is not None, f"{n} huge pages can't be had")
    t.defer(os.close, held)
