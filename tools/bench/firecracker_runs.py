"""One VM that is started from Firecracker's two files, and whoever serves its page faults: vmsnap, or what
Firecracker's example handlers do."""

import os
import time

from case import Failed, end_process, tool, wait_until
from floor import Handler
from listener import Listener
from measure import MemoryWatch, NoFigure, family, memory_bytes, runs
from mini_restores import Source
from minivm import MiniVm
from qmp import QmpError, QmpGone
from restores import VmmWatch, prepare_cache, sibling
from rounds import remove
from vmsnap import vmsnap

IMPORT_SECONDS = 120
RUN_SECONDS = 60
LOOK_SECONDS, MEMORY_SECONDS = 0.05, 0.25
LEARNED_TOUCHES, LEARN_RATE = 10000, 20000
TICKS = os.sysconf("SC_CLK_TCK")


class Files:
    """What a snapshot of a guest leaves, all of whose memory is populated: the state, the memory file, and the
    image that vmsnap makes of that; and by another name the same image with a learned set beside it."""

    def __init__(self, t, run, name, memory_mib, pattern):
        self.t, self.run = t, run
        source = Source(t, run, pattern, memory_mib=memory_mib)
        source.vm.wait_for_writes(1000)
        source.vm.stop()
        self.accelerator, self.bytes = source.accelerator, source.bytes
        self.state, self.memory, self.image = (os.path.join(run.work_dir, f"{name}.{what}")
                                               for what in ("vmstate", "memory", "image"))
        source.vm.save_files(self.state, self.memory)
        source.end()
        began = time.monotonic()
        done = vmsnap(t, "import", "firecracker", "--overwrite", self.memory, self.image,
                      timeout=IMPORT_SECONDS)
        if done.code != 0:
            raise NoFigure(f"vmsnap import: {done.text()}")
        self.import_seconds = time.monotonic() - began
        self.learned = self._learn()

    def _learn(self):
        """What the guest touches first, in a run that is not measured."""
        path = sibling(self.t, self.run, self.image)
        with Vmsnap(self.t, path, "--no-fill", "--learn") as server:
            vm = start_vm(self, server.path, "--rate", str(LEARN_RATE))
            wait_until(lambda: vm.writes() >= LEARNED_TOUCHES, RUN_SECONDS, "what is to be learned",
                       every=0.01)
            end_vm(vm)
            server.end()
        if not os.path.exists(path + ".workset"):
            raise NoFigure("nothing was learned")
        return path

    def remove(self):
        for path in (self.state, self.memory, self.image):
            remove(path)


def start_vm(files, socket, *options, **more):
    try:
        return MiniVm(files.t, "--vmstate", files.state, "--uffd-backend", socket, *options,
                      seconds=RUN_SECONDS, **more)
    except (Failed, QmpError, QmpGone) as why:
        cause = f" ({why.__cause__})" if why.__cause__ else ""
        raise NoFigure(str(why).strip().replace("\n", ", ") + cause) from why


def end_vm(vm):
    vm.qmp.close()
    end_process(vm.process)


def cpu_seconds(pid):
    """Of a process, its threads, and those below it that have ended."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / TICKS


class Vmsnap:
    """`vmsnap restore --listen`, for any number of VMs. `file`: what it reads from."""

    def __init__(self, t, image, *options):
        self.file, self.fills = image, "--no-fill" not in options
        self.watch = MemoryWatch(os.getpid(), os.path.realpath(tool("vmsnap")), MEMORY_SECONDS)
        try:
            self.listener = Listener(t, image, *options)
        except Failed:
            self.watch.end()
            raise
        self.path = self.listener.path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.watch.end()
        for pid in reversed(family(self.listener.pid)):
            if pid != self.listener.pid and runs(pid, os.path.realpath(tool("vmsnap"))):
                os.kill(pid, 9)
        end_process(self.listener.process)

    def paths(self, n):
        return [self.path] * n

    def wait_in(self, n):
        """Until all memory of n VMs is in; when that was, in seconds since each one's handoff."""
        if not self.fills:
            return None
        wait_until(lambda: len(self._summaries()) >= n or self._failure(), RUN_SECONDS,
                   "all memory is in")
        return [s["complete_ns"] * 1e-9 for s in self._summaries()]

    def _summaries(self):
        return [s for s in self.listener.of_type("summary") if "vmm_pid" in s]

    def _failure(self):
        for error in self.listener.of_type("error"):
            raise NoFigure(str(error.get("message", error)))

    def memory(self):
        """PSS, RSS, and what is no file's: the largest that were seen."""
        self.watch.end()
        return {"pss": self.watch.peak, "rss": self.watch.peak_rss, "own": self.watch.peak_own}

    def end(self):
        """The VMs have ended. Faults and CPU time of all together."""
        wait_until(lambda: not self.listener.children(), 20, "the sessions have ended")
        cpu = cpu_seconds(self.listener.pid)
        code = self.listener.end()
        if code != 0:
            raise NoFigure(f"vmsnap ended with {code}: {self.listener.text()[-300:]}")
        return {"faults": sum(s["demand_faults"] for s in self._summaries()), "cpu": cpu}


class Handlers:
    """As many of Firecracker's example handlers as there are VMs: each serves one."""

    def __init__(self, t, kind, memory, n=1):
        self.file, self.fills = memory, False
        self.handlers = [Handler(t, kind, memory) for _ in range(n)]
        self.path = self.handlers[0].path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handler in self.handlers:
            end_process(handler.process)

    def paths(self, n):
        return [handler.path for handler in self.handlers[:n]]

    def wait_in(self, _n):
        return None # their summaries say it

    def memory(self):
        """It only grows. Looking at it takes a while, so that is done once."""
        found = [memory_bytes(handler.process.pid) for handler in self.handlers]
        return {what: sum(one[what] for one in found) for what in ("pss", "rss", "own")}

    def end(self):
        cpu = sum(cpu_seconds(handler.process.pid) for handler in self.handlers)
        told = [handler.end() for handler in self.handlers]
        found = {"faults": sum(one["faults"] for one in told), "cpu": cpu}
        if all(one["complete_ns"] for one in told):
            found["complete_at"] = [one["complete_ns"] * 1e-9 for one in told]
        return found


def cached_bytes(t, path):
    """What the page cache holds of a file."""
    done = t.run(["fincore", "--bytes", "--noheadings", "--output", "RES", path])
    if done.returncode:
        raise NoFigure(f"fincore: {done.stderr.strip()}")
    return int(done.stdout)


def touched(vm, numbers):
    """When the guest had done so many writes: seconds since its memory was handed over."""
    told = vm.qmp.command("x-touches", of=list(numbers))
    first = told["handed_ns"]
    times = [None if ns is None else (ns - first) * 1e-9 for ns in told["times_ns"]]
    return {"handed": first * 1e-9, "loaded": (told["loaded_ns"] - first) * 1e-9,
            "times": dict(zip(numbers, times))}


def check_right(vm):
    wrong = vm.stats()["wrong_pages"]
    if wrong:
        raise Failed(f"{wrong} pages of the guest are wrong")


def start_vms(vms, files, paths, options):
    """All of them at once: each is spoken to when the last one has been started. Those that answer come into
    `vms`."""
    if paths:
        vms.append(start_vm(files, paths[0], *options,
                            serve=lambda: start_vms(vms, files, paths[1:], options)))


def resident_bytes(vm):
    with open(f"/proc/{vm.pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Cache:
    """What prepare_cache() asks of a run."""

    def __init__(self, cold):
        self.cold = cold


def served(files, make_server, numbers, cold=False, n=1, options=()):
    """n VMs start at once and work until each has done the last of `numbers` writes, and all memory is in if
    it comes in by itself. make_server(): Vmsnap or Handlers. Each of `numbers`: the slowest VM's time."""
    with make_server() as server:
        prepare_cache(Cache(cold), server.file)
        vms = []
        try:
            start_vms(vms, files, server.paths(n), options)
            found = watched(server, vms, numbers, n)
        finally:
            for vm in vms:
                end_vm(vm)
        ended = server.end()
    told = found.pop("told")
    return {**found, **ended, **times_of(told, found.get("complete"), ended.get("complete_at"))}


def watched(server, vms, numbers, n):
    """The VMs until they have done what they are to do."""
    watch = VmmWatch(vms[0].pid, time.monotonic())
    wait_until(lambda: all(vm.writes() >= numbers[-1] for vm in vms), RUN_SECONDS,
               f"{numbers[-1]} pages", every=LOOK_SECONDS)
    complete = server.wait_in(n)
    wall = time.monotonic() - watch.began
    told = [touched(vm, numbers) for vm in vms]
    for vm in vms:
        check_right(vm)
    found = {**server.memory(), "wall": wall, "cached": cached_bytes(vms[0].t, server.file),
             "guests": sum(map(resident_bytes, vms)), "told": told}
    if complete:
        found["complete"] = complete
    offset = watch.began - told[0]["handed"]
    return {**found, "samples": [(s + offset, size) for s, size in watch.end()[1:]]}


def times_of(told, complete, complete_at):
    """Of the slowest of several VMs. `complete`: seconds since each handoff; `complete_at`: in the clock of
    `handed`."""
    if complete_at:
        complete = [at - one["handed"] for at, one in zip(complete_at, told)]
    found = {"first": max(one["loaded"] for one in told),
             "times": {n: max(one["times"][n] for one in told) for n in told[0]["times"]}}
    return {**found, "complete": max(complete)} if complete else found
