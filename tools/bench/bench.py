#!/usr/bin/python3
"""tools/bench.sh runs this: options, the experiments one after the other, and what comes of them."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "tests", "lib")]

import firecracker_experiments  # noqa: E402
import linux_experiments  # noqa: E402
import machine  # noqa: E402
import mini_experiments  # noqa: E402
import pause_experiments  # noqa: E402
import restore_faults  # noqa: E402
import restore_fill  # noqa: E402
import restore_launch  # noqa: E402
import restore_redis  # noqa: E402
import restore_touches  # noqa: E402
import speed  # noqa: E402
from case import TOP, run_function  # noqa: E402
from figures import Figures  # noqa: E402
from rounds import chosen_by, say  # noqa: E402


QUICK_SECONDS, FULL_SECONDS = 290, 38 * 60
LEAST_SECONDS = 10


class Run:
    """What all experiments are given."""

    def __init__(self, options):
        quick = options.quick
        self.quick, self.cold = quick, options.cold
        self.rounds = options.rounds or (1 if quick else 3)
        self.linux_mib = 1024 if quick else 4096
        self.mini_mib = 1024 if quick else 2048
        self.mini_gib = (1, 2) if quick else (1, 2, 4, 8, 16)
        self.out = options.out
        self.figures = Figures()
        self.work_dir = None
        self.t = None
        self.until = 0.0 # monotonic: when the experiment that runs should be done
        self.ends = time.monotonic() + (QUICK_SECONDS if quick else FULL_SECONDS)


def experiments(quick):
    """{name: (function, seconds)}; a quick run has fewer workloads."""
    found = {"disks": (pause_experiments.disks, 200), "kvm": (pause_experiments.kvm, 200),
             "speed": (speed.speed, 240),
             "pause-memory": (mini_experiments.pause_against_memory, 900)}
    found["faults"] = (mini_experiments.placed_faults, 200)
    for pattern in ("idle", "random") if quick else linux_experiments.PATTERNS:
        found[f"qemu-{pattern}"] = (
            lambda t, run, p=pattern: linux_experiments.linux_guest(t, run, p), 600)
    for pattern in ("random",) if quick else mini_experiments.PATTERNS:
        found[f"minivm-{pattern}"] = (
            lambda t, run, p=pattern: mini_experiments.mini(t, run, p), 400)
    return found | restore_experiments(quick)


def restore_experiments(quick):
    found = {"restore-faults": (restore_faults.faults, 200), "restore-fill": (restore_fill.fill, 200),
             "restore-launch": (restore_launch.launch, 200),
             "restore-redis": (restore_redis.redis, 300)}
    for pattern in ("hot",) if quick else mini_experiments.PATTERNS:
        found[f"restore-{pattern}"] = (
            lambda t, run, p=pattern: restore_touches.touches(t, run, p), 200)
    return found | firecracker_experiments.experiments(quick)


def choose(options):
    """What is to be run. A quick run has fewer of each kind, but any that is named itself."""
    few, all_ = experiments(options.quick), experiments(False)
    if not options.only:
        return few
    names = {n for name in options.only for n in chosen_by(name, few) or chosen_by(name, all_)}
    return {n: e for n, e in all_.items() if n in names}


def parse(all_names):
    parser = argparse.ArgumentParser(prog="tools/bench.sh", description=__doc__)
    parser.add_argument("--quick", action="store_true",
                        help="small guests, fewer workloads, one round: under 5 minutes")
    parser.add_argument("--cold", action="store_true",
                        help="what is restored is not in the page cache (vmsnap's images, QEMU's "
                             "streams)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each (default 3)")
    parser.add_argument("--only", action="append", metavar="NAME", default=[],
                        help="may be repeated, and be what several names begin with (restore): "
                             f"{', '.join(all_names)}")
    parser.add_argument("--out", metavar="DIR", default=os.path.join(TOP, "build", "bench"),
                        help="results and images go there (default build/bench); images are "
                             "removed")
    options = parser.parse_args()
    for name in options.only:
        if not chosen_by(name, all_names):
            parser.error(f"no experiment '{name}'; there are: {', '.join(all_names)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


def run_one(run, name, function, seconds):
    """True unless it was interrupted."""
    say(f"{name}:")

    def call(t):
        run.t = t
        function(t, run)
    left = run.ends - time.monotonic()
    if left < LEAST_SECONDS:
        run.figures.none(name, "the run as a whole had no time left")
        return True
    seconds = min(seconds, int(left))
    run.until = time.monotonic() + 0.8 * seconds
    status, verdict = run_function(call, name, seconds, sys.stderr, passed="DONE")
    if status == 130:
        return False
    if status != 0:
        run.figures.none(name, verdict)
    return True


def write_results(run, options, about, names):
    with open(os.path.join(options.out, "results.json"), "w", encoding="utf-8") as f:
        f.write(run.figures.json(about, {"quick": run.quick, "cold": run.cold, "rounds": run.rounds,
                                         "experiments": names}) + "\n")
    text = (f"{machine.line(about)}; {os.getloadavg()[0]:.1f} at the end; rounds: {run.rounds}"
            f"{'; images not in the page cache' if run.cold else ''}\n\n{run.figures.text()}\n")
    with open(os.path.join(options.out, "table.md"), "w", encoding="utf-8") as f:
        f.write(text)
    import plots # slow to load, and of no use before
    drawn = plots.draw(run.figures, options.out)
    print(text)
    say(f"in {options.out}: results.json table.md {' '.join(drawn)}")


def run_all(run, chosen):
    """False: it was interrupted."""
    def interrupted(_number, _frame):
        raise KeyboardInterrupt
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    run.work_dir = tempfile.mkdtemp(prefix="work-", dir=run.out)
    try:
        return all(run_one(run, name, *what) for name, what in chosen.items())
    except KeyboardInterrupt:
        return False
    finally:
        shutil.rmtree(run.work_dir, ignore_errors=True)


def main():
    options = parse(list(experiments(False)))
    run = Run(options)
    os.makedirs(options.out, exist_ok=True)
    about = machine.describe(options.out)
    say(machine.line(about))
    chosen = choose(options)
    began = time.monotonic()
    about["interrupted"] = not run_all(run, chosen)
    about["seconds"] = round(time.monotonic() - began)
    if run.figures.rows or run.figures.tables:
        write_results(run, options, about, list(chosen))
    if about["interrupted"]:
        say("interrupted: the figures are those of what was done before")
        sys.exit(130)


if __name__ == "__main__":
    main()
