"""vmsnap as Firecracker's page-fault handler against what Firecracker's example handlers do: the same guest,
the same two files, the same accesses."""

import os
from typing import NamedTuple

from firecracker_runs import Files, Handlers, Vmsnap, served
from machine import free_bytes
from measure import NoFigure
from restores import middle, plot_memory
from rounds import in_turns, values
from side_by_side import SideBySide

ON_DEMAND, LAZY, FAULT_ALL = "on_demand", "on_demand, mapped lazily", "fault_all"
PLAIN, LEARNED, NO_FILL = "vmsnap", "vmsnap, learned", "vmsnap, no fill"
KINDS = {ON_DEMAND: "on_demand", LAZY: "on_demand_lazy", FAULT_ALL: "fault_all"}
WARM, COLD = "in page cache", "not in page cache"
N_CROWD, CROWD_RATE = 8, 20000


class Way(NamedTuple):
    """A method, and where the file lies that it serves from."""
    method: str
    cache: str

    def __str__(self):
        return f"{self.method}, {self.cache}"


def experiments(quick):
    """{name: (function, seconds)}"""
    found = {"firecracker-random": (lambda t, run: alone(t, run, "random", 512, (WARM, COLD)), 110),
             "firecracker-crowd": (crowd, 80)}
    if not quick:
        found["firecracker-sequential"] = (
            lambda t, run: alone(t, run, "sequential", 512, (WARM,)), 60)
        found["firecracker-large"] = (
            lambda t, run: alone(t, run, "random", 2048, (WARM, COLD)), 110)
    return found


def servers(files, n=1):
    """{method: what makes its server}"""
    t = files.t
    found = {method: (lambda kind=kind: Handlers(t, kind, files.memory, n))
             for method, kind in KINDS.items()}
    return {**found, PLAIN: lambda: Vmsnap(t, files.image),
            LEARNED: lambda: Vmsnap(t, files.learned),
            NO_FILL: lambda: Vmsnap(t, files.image, "--no-fill")}


def methods_of(files, numbers, caches):
    """{Way: function}. Populated or not is one if the file lies in the page cache."""
    return {Way(method, cache): lambda make=make, cold=cache == COLD: served(files, make, numbers,
                                                                             cold)
            for cache in caches for method, make in servers(files).items()
            if (method, cache) != (LAZY, WARM)}


def steps(last):
    """1, 2, 5, 10 ... and 1000, 10000 among them; `last` is the last."""
    found, unit = [], 1
    while unit < last:
        found += [n * unit for n in (1, 2, 5) if n * unit < last]
        unit *= 10
    return [*found, last]


def alone(t, run, pattern, memory_mib, caches):
    """One VM at a time, whose guest writes page after page as fast as they come: 512 MiB as many as there are
    pages, of more memory less."""
    memory_mib = 256 if run.quick else memory_mib
    need(3 * memory_mib)
    files = Files(t, run, f"{pattern}-{memory_mib}", memory_mib, pattern)
    last = files.bytes // 4096 if memory_mib <= 512 else 100000
    if pattern == "sequential":
        last -= 1 # the first page is the vCPU's own
    numbers = steps(last)
    results = in_turns(t, run, methods_of(files, numbers, caches))
    case = f"minivm ({files.accelerator}) {memory_mib} MiB, {pattern}"
    sizes(run.figures, case, files)
    for cache in caches:
        part = {way.method: found for way, found in results.items() if way.cache == cache}
        report(run.figures, f"{case}, {cache}", part, (1000, 10000, last))
        plot(run.figures, f"{pattern}-{memory_mib}-{'cold' if cache == COLD else 'warm'}", part)
    files.remove()


def crowd(t, run):
    """Eight VMs from one image, started at once."""
    memory_mib = 128 if run.quick else 512
    need((N_CROWD + 2) * memory_mib)
    files = Files(t, run, "crowd", memory_mib, "random")
    numbers = steps(10000)
    results = in_turns(t, run, {
        method: lambda make=make: served(files, make, numbers, n=N_CROWD,
                                         options=("--rate", str(CROWD_RATE)))
        for method, make in servers(files, N_CROWD).items() if method != LAZY})
    case = (f"{N_CROWD} x minivm ({files.accelerator}) {memory_mib} MiB, random {CROWD_RATE}/s, "
            f"{WARM}")
    report(run.figures, case, results, (1000, 10000))
    plot(run.figures, f"crowd-{memory_mib}", results)
    files.remove()


def need(mib):
    if free_bytes() < (mib + 2048) << 20:
        raise NoFigure("not enough memory is free")


def sizes(figures, case, files):
    figures.add("size of what memory is served from", case, [os.path.getsize(files.image)],
                [os.path.getsize(files.memory)], "the memory file", "MiB")
    figures.add("import of the memory file", case, [files.import_seconds])


def report(figures, case, results, shown):
    """Every method, side by side."""
    table = SideBySide(case, results)

    def row(name, unit, of, lacking="-"):
        found = {m: values(results, m, of) for m in results}
        table.add(name, unit, {m: short(v, lacking) for m, v in found.items()})
    row("handoff to the first page", "ms", lambda r: r["first"])
    for n in shown:
        row(f"handoff to {n} pages touched", "ms", lambda r, n=n: r["times"][n])
    row("handoff to all memory in", "ms", lambda r: r["complete"], "never")
    row("faults answered", "", lambda r: r["faults"])
    row("handler's CPU time", "ms", lambda r: r["cpu"])
    row("handler's memory, PSS", "MiB", lambda r: r["pss"])
    row("handler's memory, RSS", "MiB", lambda r: r["rss"])
    row("page cache of its file", "MiB", lambda r: r["cached"])
    row("handler's own memory and page cache", "MiB", lambda r: r["own"] + r["cached"])
    row("memory of the VMs", "MiB", lambda r: r["guests"])
    figures.tables.append(table)
    for method, found in results.items():
        if isinstance(found, NoFigure):
            figures.none(method, found, case)


def short(found, lacking):
    """What a cell has room for. `lacking`: of what works but does not do this one."""
    if not isinstance(found, NoFigure):
        return found
    return NoFigure(lacking if str(found).startswith("the summary has no") else "no figure")


def plot(figures, name, results):
    for method in results:
        one = middle(results, method, lambda r: max(r["times"].values()))
        if one:
            figures.plot(f"touched-{name}", method,
                         [(n, seconds * 1e3) for n, seconds in one["times"].items()])
            plot_memory(figures, f"filled-firecracker-{name}", method, [(0.0, 0), *one["samples"]])
