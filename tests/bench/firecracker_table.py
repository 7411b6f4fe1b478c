"""The comparison of vmsnap with Firecracker's example handlers: each method serves a small guest, and what is said
of it is plausible."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "bench"))
from case import case, main # noqa: E402
from figures import Figures # noqa: E402
from firecracker_experiments import (FAULT_ALL, KINDS, LEARNED, NO_FILL, ON_DEMAND, PLAIN, # noqa: E402
                                     report, servers, short, steps)
from firecracker_runs import Files, served, times_of # noqa: E402
from measure import NoFigure # noqa: E402
from side_by_side import SideBySide, markdown # noqa: E402

MIB = 1 << 20
NUMBERS = (1, 1000, 4000)


class Run:
    """What the benchmark's experiments are given, as far as it is used here."""

    def __init__(self, t):
        self.work_dir, self.cold = t.dir, False


def check_plausible(t, method, found):
    times = found["times"]
    t.check(0 < found["first"] < times[1] < times[1000] < times[4000] < 30, f"{method}: {found}")
    t.check(found["cached"] > 0 and found["pss"] > 0 and found["rss"] >= found["pss"] // 2,
            f"{method}: memory: {found}")
    t.equal("complete" in found, method in (FAULT_ALL, PLAIN, LEARNED), f"{method}: all memory is in")
    if method in KINDS:
        t.check(found["rss"] >= 32 * MIB, f"{method} maps the file: {found}")
    else:
        t.check(found["rss"] < 256 * MIB, f"{method}: {found}")
    if method == FAULT_ALL:
        t.check(found["faults"] <= 2, f"{method}: {found}")
    if method == ON_DEMAND:
        t.check(found["faults"] >= 3000, f"{method}: a fault per page: {found}")


@case("bench.firecracker", "kernel", 60)
def compared(t):
    files = Files(t, Run(t), "small", 32, "random")
    results = {}
    for method, make in servers(files).items():
        results[method] = [served(files, make, NUMBERS, cold=method == PLAIN)]
        check_plausible(t, method, results[method][0])
    # 32 MiB have 2048 clusters; what was learned is all of them but a few
    t.check(results[LEARNED][0]["faults"] < results[NO_FILL][0]["faults"], "faults left by the prefetch")
    figures = Figures()
    report(figures, "case", results, NUMBERS)
    lines = markdown(figures.tables[0].data())
    never = next(line for line in lines if "all memory in" in line)
    t.equal(never.count("never"), 3, f"on_demand, mapped lazily and without fill: {never}")


@case("bench.firecracker-crowd", "kernel", 60)
def crowd(t):
    """Several VMs at once."""
    files = Files(t, Run(t), "crowd", 16, "random")
    makes = servers(files, 3)
    for method in (ON_DEMAND, FAULT_ALL, PLAIN):
        found = served(files, makes[method], NUMBERS, n=3, options=("--rate", "20000"))
        t.check(0 < found["first"] < found["times"][1] < found["times"][4000], f"{method}: {found}")
        t.check(found["guests"] > 3 * 8 * MIB, f"{method}: memory of three VMs: {found}")


@case("bench.side-by-side", "cli", 20)
def side_by_side(t):
    """Medians with least and most; the slowest of several VMs."""
    table = SideBySide("of", ["a", "b", "c"])
    table.add("time", "ms", {"a": [0.001, 0.003, 0.002], "b": NoFigure("never")})
    table.add("count", "", {"a": [7], "b": [7, 7], "c": [1.0, 3.0]})
    t.equal(markdown(table.data())[2:], ["| time, ms | 2.00 (1.00-3.00) | never |  |",
                                         "| count | 7 | 7 | 2 (1-3) |"], "rows")
    told = [{"handed": 10.0, "loaded": 0.1, "times": {1: 0.2, 5: 0.9}},
            {"handed": 11.0, "loaded": 0.3, "times": {1: 0.4, 5: 0.5}}]
    t.equal(times_of(told, None, None), {"first": 0.3, "times": {1: 0.4, 5: 0.9}}, "the slowest")
    t.equal(times_of(told, None, [12.0, 11.5])["complete"], 2.0, "told by the clock")
    t.equal(times_of(told, [1.0, 1.5], None)["complete"], 1.5, "told since the handoff")
    t.equal(steps(3000), [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 3000], "steps")
    t.equal([str(short(found, "never")) for found in (NoFigure("the summary has no 'complete'"),
                                                       NoFigure("it ended"), [1])],
            ["never", "no figure", "[1]"], "what a cell has room for")


if __name__ == "__main__":
    main()
