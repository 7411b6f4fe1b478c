"""A guest in minivm (tools/minivm), which measures its own writes, and what can be done to it."""

import os
import signal
import time

from case import Failed, end_process, wait_until
from machine import free_bytes
from measure import AFTER_SECONDS, BEFORE_SECONDS, MemoryWatch, NoFigure, observe, wait_seconds
from minivm import MiniVm
from qmp import QmpError
from rounds import remove
from vmsnap import finish, start_vmsnap

SNAPSHOT_SECONDS = 180
SPARE_BYTES = 2 << 30


class MiniGuest:
    """minivm with one vCPU. `memory_mib` of it is populated, whole, and worked on."""

    def __init__(self, t, work_dir, memory_mib, pattern, *options):
        self.t, self.work_dir, self.pattern = t, work_dir, pattern
        try:
            self.vm = MiniVm(t, "--memory", f"{memory_mib}M", "--populate", f"{memory_mib}M",
                             "--pattern", pattern, *options, seconds=60.0)
        except Failed as why:
            raise NoFigure(str(why)) from why
        self.qmp = self.vm.qmp
        self.accelerator, self._ram = self.vm.description["accelerator"], self.vm.ram

    def pid(self):
        return self.vm.pid

    def memory(self):
        return self._ram["hva"], self._ram["hva"] + self._ram["bytes"]

    def pin(self, cpu):
        """All threads of the VMM on one CPU."""
        for task in os.listdir(f"/proc/{self.vm.pid}/task"):
            os.sched_setaffinity(int(task), {cpu})

    def end(self):
        self.qmp.close()
        end_process(self.vm.process)

    def _stats(self):
        return self.vm.stats(full=True)

    def watched(self, take):
        """Calls take() while the guest is watched; adds `seen` (Observation) and `pause`."""
        time.sleep(BEFORE_SECONDS + 0.2)
        self.qmp.take_events()
        before, begin = self._stats(), time.monotonic()
        result = {"resumed": before, **take()}
        end = max(time.monotonic(), begin + result["wall"]) + AFTER_SECONDS
        time.sleep(max(0.0, end - time.monotonic()))
        after = self._stats()
        if after["wrong_pages"]:
            raise Failed(f"{after['wrong_pages']} pages of the guest are wrong")
        stamps = {e["event"]: e["data"]["monotonic_ns"] for e in self.qmp.take_events(wait=0.2)
                  if e["event"] in ("STOP", "RESUME")}
        result["pause"] = (stamps["RESUME"] - stamps["STOP"]) * 1e-9 if len(stamps) == 2 else None
        result["seen"] = observation(result.pop("resumed"), after, begin, end)
        return result

    def vmsnap(self, *options):
        image = os.path.join(self.work_dir, "image")

        def take():
            began = time.monotonic()
            process = start_vmsnap(self.t, "snapshot", "--qmp", self.vm.control, "--overwrite", *options,
                                   image)
            memory = MemoryWatch(process.pid)
            resumed = self._wait_resumed(process)
            result = finish(self.t, process, SNAPSHOT_SECONDS)
            wall = time.monotonic() - began
            if result.code not in (0, 3):
                raise NoFigure(f"vmsnap: {result.error['message']}")
            return {"wall": result.summary["wall_ns"] / 1e9, "command": wall,
                    "bytes": os.path.getsize(image), "peak": memory.end(),
                    "summary": result.summary, "path": image, "resumed": resumed}
        return self.watched(take)

    def pause_alone(self):
        """A snapshot that is interrupted once the guest runs again: only its pause is wanted, by the
        VMM's own stamps, and the rest of 16 GiB takes its time."""
        time.sleep(BEFORE_SECONDS)
        self.qmp.take_events()
        began = time.monotonic()
        process = start_vmsnap(self.t, "snapshot", "--qmp", self.vm.control, "--overwrite",
                               os.path.join(self.work_dir, "image"))
        self._wait_resumed(process)
        process.send_signal(signal.SIGINT)
        result = finish(self.t, process, SNAPSHOT_SECONDS)
        if result.code not in (0, 3, 130):
            raise NoFigure(f"vmsnap: {result.error['message']}")
        stamps = {e["event"]: e["data"]["monotonic_ns"] for e in self.qmp.take_events(wait=0.2)
                  if e["event"] in ("STOP", "RESUME")}
        if len(stamps) != 2:
            raise NoFigure("there was no pause")
        return {"wall": time.monotonic() - began,
                "pause": (stamps["RESUME"] - stamps["STOP"]) * 1e-9}

    def _wait_resumed(self, process):
        """What the guest had measured when it went on after the pause: the writes that live arming
        let through before saved nothing, and are no faults of the snapshot."""
        while not self._seen("RESUME") and process.poll() is None:
            self.qmp.command("query-status") # events come in with its answer
            time.sleep(0.01)
        return self._stats()

    def _seen(self, event):
        return any(e["event"] == event for e in self.qmp.events)

    def nothing(self):
        """What the guest sees when nobody takes a snapshot: what the machine's load does to it."""
        return self.watched(wait_seconds)

    def fork_dump(self, compress):
        """fork(), and the child writes the memory of that moment, as it is or by zstd -1 -T0."""
        need = 2 * self._ram["bytes"] + SPARE_BYTES
        if free_bytes() + self._ram["bytes"] < need:
            raise NoFigure("not enough memory is free: fork may need twice the guest's")
        path = os.path.join(self.work_dir, "forked")

        def take():
            began = time.monotonic()
            try:
                self.qmp.command("x-fork-dump", timeout=60, path=path, compress=compress)
            except QmpError as error:
                raise NoFigure(str(error)) from error
            wait_until(self._dump_over, SNAPSHOT_SECONDS, "the dump is complete", every=0.02)
            return {"wall": time.monotonic() - began, "bytes": os.path.getsize(path)}
        try:
            return self.watched(take)
        finally:
            remove(path)

    def _dump_over(self):
        self.qmp.command("query-status")
        return self._seen("X_FORK_DUMP_DONE")


def slices(stats):
    """(end of the slice in monotonic seconds, writes so far, longest gap in seconds)."""
    found, total = [], 0
    columns = list(zip(*stats["series"]))
    for one, following in zip(columns, columns[1:]): # the last slice is not over
        total += sum(vcpu[1] for vcpu in one)
        found.append((following[0][0] * 1e-9, total, max(vcpu[3] for vcpu in one) * 1e-9))
    return found


def observation(resumed, after, begin, end):
    """What the guest noticed from begin to end; latencies of the writes since it was resumed."""
    found = slices(after)
    gaps = [gap for t, _, gap in found if begin <= t <= end]
    if not gaps:
        raise NoFigure("the guest wrote nothing for the whole snapshot")
    there = dict(map(tuple, resumed["write"]["buckets"]))
    buckets = [(ns, n - there.get(ns, 0)) for ns, n in after["write"]["buckets"]
               if n > there.get(ns, 0)]
    return observe([(t, total) for t, total, _ in found], begin, end, max(gaps), buckets)
