"""Demand faults of a restored minivm, as its guest sees them, against a floor that only puts in what lies
ready; with and without the fill beside them."""

import os
import time

from case import end_process
from figures import at_most
from floor import MissingFloor
from measure import NoFigure, slowest
from mini_experiments import placed
from mini_restores import RATE, Source, Worker, restored
from minivm import Incoming, MiniVm
from restores import PAGE_BYTES, middle, speed_of_decode
from rounds import in_turns, remove, values

CLUSTER_BYTES = 16384
FRACTIONS = [i / 200 for i in range(1, 200)]


class Frozen:
    """One instant of a guest, as the floor needs it and as vmsnap does."""

    def __init__(self, source):
        self.source = source
        source.vm.wait_for_writes(1000)
        source.vm.stop()
        self.state, self.memory, self.image = source.vm.save_state(), source.dump(), source.image()
        source.end()

    def remove(self):
        remove(self.memory)
        remove(self.image)


def floor_restore(frozen, unit_bytes, cpus, n_writes):
    """The same guest, restored by a program that only puts in what lies ready."""
    source, began = frozen.source, time.monotonic()
    incoming = Incoming(source.t)
    vm = MiniVm(source.t, *source.shape, accel=source.accelerator, incoming=incoming)
    for task in os.listdir(f"/proc/{vm.pid}/task"):
        os.sched_setaffinity(int(task), {cpus[0]})
    floor = placed(cpus[1], lambda: MissingFloor(source.t, vm.pid, vm.ram["hva"], frozen.memory,
                                                 unit_bytes))()
    try:
        vm.load_state(frozen.state)
        vm.cont()
        reads = Worker(vm, n_writes).reads
        end_process(vm.process) # before its memory is left alone
        return {"reads": reads, "faults": floor.end()["faults"],
                "wall": time.monotonic() - began}
    finally:
        end_process(vm.process)
        end_process(floor.process)


def faults(t, run):
    """The VMM on one CPU, vmsnap or the floor on the other, as for a snapshot's faults."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        run.figures.none("restore-faults", "one CPU alone")
        return
    frozen = Frozen(Source(t, run, "random"))
    n_writes = 10000 if run.quick else 20000

    def by_vmsnap(*options):
        return placed(cpus[1], lambda: restored(
            run, frozen.image, frozen.source, options, n_writes, ["taskset", "-c", str(cpus[0])],
            before=lambda _, guest: guest.cont())) # it was stopped, and comes back so
    results = in_turns(t, run, {
        "vmsnap": by_vmsnap("--prefetch", "none", "--no-fill"),
        "floor, one page": lambda: floor_restore(frozen, PAGE_BYTES, cpus, n_writes),
        "floor, a cluster": lambda: floor_restore(frozen, CLUSTER_BYTES, cpus, n_writes),
        "decode": placed(cpus[1], lambda: speed_of_decode(t, frozen.image, 1)),
        "vmsnap, filling": by_vmsnap("--prefetch", "none")})
    frozen.remove()
    report(run.figures, f"minivm ({frozen.source.accelerator}) 1 GiB, random {RATE}/s, placed",
           results)
    plot(run.figures, results)


def quantiles(results, method, fraction):
    return values(results, method, lambda r: slowest(r["reads"], r["faults"], fraction)[0] * 1e-9)


def plus(first, second):
    """The sums, round by round."""
    for one in (first, second):
        if isinstance(one, NoFigure):
            return one
    return [a + b for a, b in zip(first, second)] or NoFigure("not run")


def report(figures, case, results):
    for name, fraction, factor in (("p50", 0.5, 1.5), ("p99", 0.99, 3.0)):
        ours = quantiles(results, "vmsnap", fraction)
        decode = values(results, "decode", lambda r, key=name + "_ns": r[key] * 1e-9)
        figures.add(f"demand fault seen by the guest, {name}", case, ours,
                    plus(quantiles(results, "floor, one page", fraction), decode),
                    "floor, one page, plus decode of a cluster", "us", f"<= {factor:.2f} of it",
                    at_most(factor))
        for other in ("floor, one page", "floor, a cluster"):
            figures.add(f"demand fault seen by the guest, {name}", case, ours,
                        quantiles(results, other, fraction), other, "us")
        figures.add(f"  of it: a cluster read, checked, decoded, {name}", case, decode, unit="us")
        figures.add(f"demand fault beside the fill, {name}", case,
                    quantiles(results, "vmsnap, filling", fraction), ours, "vmsnap, no fill", "us")


def plot(figures, results):
    for method in (m for m in results if m != "decode"):
        one = middle(results, method, lambda r: slowest(r["reads"], r["faults"], 0.5)[0])
        if one and one["faults"]:
            points = slowest(one["reads"], one["faults"], *FRACTIONS)
            figures.plot("faults-restore-minivm", method,
                         list(zip((ns / 1000 for ns in points), FRACTIONS)))
