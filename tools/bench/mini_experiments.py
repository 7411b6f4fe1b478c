"""Experiments with minivm: the pause against memory size, and faults against the floor and fork."""

import os
import statistics

from figures import at_least, at_most
from floor import floor_of, floors
from linux_experiments import faults_against_floor, plot
from machine import free_bytes
from measure import NoFigure
from mini_guest import MiniGuest
from rounds import in_turns, values

GIB = 1 << 30
SPARE_BYTES = 3 * GIB
PLACED_RATE = 10000
PATTERNS = {"random": "random", "sequential": "sequential", "hot": "hot:64M"}


def pause_against_memory(t, run):
    """Populated memory in pages of 4 KiB, under a writer and idle; device state included."""
    for pattern in ("random", "idle"):
        measured = {}
        for gib in run.mini_gib:
            case = f"minivm, 4K pages, {pattern}, {gib} GiB"
            if free_bytes() < gib * GIB + SPARE_BYTES:
                run.figures.none("pause against memory size", "not enough memory is free", case)
                continue
            guest = MiniGuest(t, run.work_dir, gib * 1024, pattern)
            results = in_turns(t, run, {"vmsnap": guest.pause_alone}, at_least=5)
            guest.end()
            pauses = values(results, "vmsnap", lambda r: r["pause"])
            if isinstance(pauses, NoFigure):
                run.figures.none("pause against memory size", pauses, case)
                return
            measured[gib] = pauses
            compare(run.figures, case, pauses, measured)
        line = [(gib, statistics.median(p) * 1e3) for gib, p in measured.items()]
        if line:
            run.figures.plot("pause-minivm", pattern, line)


def compare(figures, case, pauses, measured):
    least = min(measured)
    smallest = measured[least]
    figures.add("pause against memory size", case, pauses,
                smallest if pauses is not smallest else None, f"{least} GiB", "ms",
                "<= 1.20 of it or +1 ms" if pauses is not smallest else "",
                at_most(1.2, 0.001) if pauses is not smallest else None)


def mini(t, run, pattern):
    """vmsnap, fork and the floor over one guest."""
    guest = MiniGuest(t, run.work_dir, run.mini_mib, PATTERNS[pattern])
    case = f"minivm ({guest.accelerator}) {run.mini_mib / 1024:.0f} GiB, 4K pages, {pattern}"
    results = in_turns(t, run, {
        "vmsnap": guest.vmsnap,
        "nothing": guest.nothing,
        "fork and dump": lambda: guest.fork_dump(False),
        "fork and dump, zstd": lambda: guest.fork_dump(True),
        **floors(t, guest)})
    guest.end()
    if pattern != "sequential": # vmsnap outruns a sequential writer, the floor meets every fault
        faults_against_floor(run.figures, case, results)
    work(run.figures, case, pattern, results)
    run.figures.add("pause", case, values(results, "vmsnap", lambda r: r["pause"]),
                    values(results, "fork and dump", lambda r: r["pause"]), "fork and dump", "ms")
    plot(run.figures, "minivm", pattern, results)


def placed(cpu, method):
    """The method, with all that it starts on that CPU."""
    def run():
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cpu})
        try:
            return method()
        finally:
            os.sched_setaffinity(0, everywhere)
    return run


def placed_faults(t, run):
    """The VMM on one CPU, vmsnap and the floor each on the other: where the scheduler puts the
    threads decides more than what they do, 25 or 130 us on one machine. The writer's rate is one
    at which buffers do not run out."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        run.figures.none("faults", "one CPU alone")
        return
    guest = MiniGuest(t, run.work_dir, 1024, "random", "--rate", str(PLACED_RATE))
    guest.pin(cpus[0])
    results = in_turns(t, run, {
        "vmsnap": placed(cpus[1], guest.vmsnap),
        "floor": placed(cpus[1], lambda: floor_of(t, guest))})
    guest.end()
    case = f"minivm ({guest.accelerator}) 1 GiB, 4K pages, random {PLACED_RATE}/s, placed"
    faults_against_floor(run.figures, case, results, aimed=True)
    plot(run.figures, "placed", "random", results)


def work(figures, case, pattern, results):
    """Throughput, against fork's that brings the same image (compressed) and the floor's."""
    speeds = {m: values(results, m, lambda r: r["seen"].speed) for m in results}
    figures.add("longest gap in the guest, the pause included", case,
                values(results, "vmsnap", lambda r: r["seen"].gap),
                values(results, "nothing", lambda r: r["seen"].gap), "no snapshot at all, 2 s", "ms")
    for other in ("fork and dump", "fork and dump, zstd", "floor", "nothing"):
        aimed = other.startswith("fork") and pattern != "random"
        figures.add("throughput kept during the snapshot", case, speeds["vmsnap"], speeds[other],
                    other, "%", ">= 0.80 of it" if aimed else "",
                    at_least(0.8) if aimed else None)
    figures.add("time to a finished image", case, values(results, "vmsnap", lambda r: r["wall"]),
                values(results, "fork and dump, zstd", lambda r: r["wall"]),
                "fork and dump, zstd")
    figures.add("guest work lost", case, values(results, "vmsnap", lambda r: r["seen"].lost),
                values(results, "fork and dump, zstd", lambda r: r["seen"].lost),
                "fork and dump, zstd")
