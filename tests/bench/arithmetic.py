"""The benchmark's arithmetic: a figure that is computed wrong would still look like one."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "bench"))
from case import case, main # noqa: E402
import restore_fill # noqa: E402
import restore_launch # noqa: E402
import restore_redis # noqa: E402
from figures import Figures, at_least, at_most # noqa: E402
from measure import NoFigure, Observation, cumulative_at, observe, slowest # noqa: E402
from restore_faults import plus # noqa: E402
from restores import middle # noqa: E402
from rounds import chosen_by, in_turns, values # noqa: E402


def near(t, there, wanted, what):
    t.check(abs(there - wanted) < 1e-9, f"{what}: {there}, wanted {wanted}")


@case("bench.work-lost", "cli", 20)
def work_lost(t):
    """100 steps per second, none for one second, then half for two: two seconds of work."""
    samples = [(0.0, 0), (10.0, 1000), (11.0, 1000), (13.0, 1100), (20.0, 1800)]
    seen = observe(samples, 10.0, 14.0, 0.5, [])
    near(t, seen.rate, 100, "the rate before")
    near(t, seen.steps, 200, "steps in four seconds")
    near(t, seen.lost, 2.0, "seconds lost")
    near(t, seen.speed, 0.5, "what is left")
    near(t, cumulative_at(samples, -1), 0, "before the first sample")
    near(t, cumulative_at(samples, 99), 1800, "after the last")


@case("bench.slowest-steps", "cli", 20)
def slowest_steps(t):
    """The quantiles are those of the slowest steps alone."""
    seen = Observation(1, 1, 1, 0, [(100, 1000), (20000, 50), (90000, 50)], [])
    t.equal(seen.slowest(100, 0.0, 0.25, 0.75, 1.0), [20000, 20000, 90000, 90000], "100 faults")
    t.equal(seen.slowest(50, 0.0), [90000], "50 faults")
    t.equal(seen.slowest(101, 0.0), [100], "one more than was slow")
    t.equal(seen.slowest(0, 0.5, 0.9), [0, 0], "no fault")


@case("bench.restore-sums", "cli", 20)
def restore_sums(t):
    """What restores are compared with is put together round by round; without a part there is none."""
    t.equal(slowest([[90, 2], [10, 5]], 3, 0.0, 0.5), [10, 90], "pairs as minivm gives them")
    none = NoFigure("it ended")
    t.equal(plus([1, 2, 3], [10, 20]), [11, 22], "as many as there are of both")
    t.check(plus([1], none) is none and plus(none, [1]) is none, "one is missing")
    near(t, restore_fill.one_after_the_other({"decode": [1e9], "copy": [3e9]})[0], 0.75e9,
         "decoded and copied")
    t.check(restore_fill.one_after_the_other({"decode": [1e9], "copy": none}) is none, "no copy")
    runs = {"warm": [{"times": [0.3], "launch": 0.2}, {"times": [0.2], "launch": 0.0}],
            "vmsnap, learned": [{"launch": 1.0}, {"launch": 2.0}]}
    found = restore_redis.resident_and_launch(runs, "warm")
    near(t, found[0], 1.125, "a quarter more than warm, and the launch")
    near(t, found[1], 2.25, "the next round")
    t.check(restore_redis.resident_and_launch({**runs, "warm": none}, "warm") is none, "never warm")
    t.equal(middle({"a": [{"n": 3}, {"n": 1}, {"n": 2}, {"n": 9}]}, "a", lambda r: r["n"]), {"n": 2},
            "the round in the middle")
    t.equal(middle({"a": none}, "a", lambda r: r["n"]), None, "no round")


@case("bench.restore-parts", "cli", 20)
def restore_parts(t):
    """Of what -vv says the lines with a duration."""
    text = "vmsnap: debug: VMM started: 2500 us\nvmsnap: what: x us\nrunning: 12 us\n"
    t.equal(restore_launch.launch_parts(text), {"VMM started": 0.0025, "running": 1.2e-05}, "parts")


@case("bench.names", "cli", 20)
def names(t):
    """--only takes a name, or what several begin with."""
    there = ["speed", "restore-hot", "restore-fill", "restored"]
    t.equal(chosen_by("restore", there), ["restore-hot", "restore-fill"], "a kind")
    t.equal(chosen_by("restore-hot", there), ["restore-hot"], "one")
    t.equal(chosen_by("rest", there), [], "no name")


@case("bench.verdicts", "cli", 20)
def verdicts(t):
    figures = Figures()
    figures.add("a", "", [1.0, 3.0, 2.0], [4.0], "b", "s", "<= 0.5 of it", at_most(0.5))
    figures.add("a", "", [2.1], [4.0], "b", "s", "<= 0.5 of it", at_most(0.5))
    figures.add("a", "", [2.1], [4.0], "b", "s", "", at_most(0.25, or_plus=-1.5))
    figures.add("a", "", [3.2], [4.0], "b", "s", "", at_least(0.8))
    figures.add("a", "", [3.1], [4.0], "b", "s", "", at_least(0.8))
    figures.add("a", "", [3.1], NoFigure("it ended"), "b", "s", "", at_least(0.8))
    figures.none("c", "nothing there")
    t.equal([row.get("reached") for row in figures.rows],
            [True, False, True, True, False, None, None], "reached")
    t.equal(figures.rows[0]["vmsnap"], {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}, "spread")
    table = figures.table().split("\n")
    for text, line in (("2.00 s (1.00-3.00)", table[2]), ("no figure: it ended", table[7]),
                       ("no figure", table[8]), ("nothing there", table[8])):
        t.check(text in line, f"{text!r} should be in {line!r}")


class Run:
    rounds, until = 3, float("inf")


@case("bench.turns", "cli", 20)
def turns(t):
    """Each method once per round, another one first each time; who fails is left out, the others
    are not."""
    order = []

    def method(name, fails_at=None):
        def run():
            order.append(name)
            if order.count(name) == fails_at:
                raise NoFigure("no more")
            return {"n": order.count(name)}
        return run
    t.quiet = True
    results = in_turns(t, Run(), {"a": method("a"), "b": method("b", 2), "c": method("c")})
    t.equal("".join(order), "abc" "bca" "ca", "order")
    t.equal(values(results, "a", lambda r: r["n"]), [1, 2, 3], "values")
    t.check(isinstance(values(results, "b", lambda r: r["n"]), NoFigure), "b has no figure")
    t.check(isinstance(values(results, "a", lambda r: r["gone"]), NoFigure), "nor has what is not there")


if __name__ == "__main__":
    main()
