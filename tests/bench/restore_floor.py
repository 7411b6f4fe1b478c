"""What the benchmark compares a restore with does what it says: the floor gives the guest its memory back,
and the speeds are of all the bytes."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "bench"))
from case import case, main, tool # noqa: E402
from floor import MissingFloor, speed_of # noqa: E402
from minivm import Incoming, MiniVm # noqa: E402
from restore_faults import Frozen # noqa: E402
from mini_restores import Source # noqa: E402

MIB = 1 << 20
CLUSTER_BYTES = 16 << 10


class Run:
    """What the benchmark's experiments are given, as far as it is used here."""

    def __init__(self, t):
        self.work_dir, self.cold = t.dir, False


def frozen(t):
    return Frozen(Source(t, Run(t), "random", memory_mib=32))


def check_restored(t, there, unit_bytes):
    incoming = Incoming(t)
    vm = MiniVm(t, *there.source.shape, accel=there.source.accelerator, incoming=incoming)
    floor = MissingFloor(t, vm.pid, vm.ram["hva"], there.memory, unit_bytes)
    vm.load_state(there.state)
    vm.cont()
    vm.wait_for_writes(2000)
    vm.stop()
    vm.check_right(f"{unit_bytes} bytes at a time") # touches all that is left
    faults = floor.end()["faults"]
    t.check(faults <= vm.ram["bytes"] // unit_bytes, f"{faults} faults of {unit_bytes} bytes each")
    t.check(faults >= vm.ram["bytes"] // unit_bytes // 2, f"only {faults} faults")


@case("bench.missing-floor", "kernel", 60)
def missing_floor(t):
    there = frozen(t)
    for unit_bytes in (4096, CLUSTER_BYTES):
        check_restored(t, there, unit_bytes)


@case("bench.speeds", "kernel", 60)
def speeds(t):
    there = frozen(t)
    for threads in (1, 3):
        found = speed_of(t, "decode", there.image, threads)
        t.equal((found["bytes"], found["clusters"]), (32 * MIB, 32 * MIB // CLUSTER_BYTES),
                f"decoded by {threads}")
        t.check(0 < found["p50_ns"] <= found["p99_ns"] <= found["ns"], f"times: {found}")
        found = speed_of(t, "copy", 9 * MIB + 4096, 64 << 10, threads)
        t.equal(found["bytes"], 9 * MIB + 4096, f"copied by {threads}")


@case("bench.restore-helpers-refuse", "kernel", 30)
def refuse(t):
    for argv in (["missing", "1", "1000", "x"], ["missing", "0", "1000", "x", "4096"],
                 ["missing", "1", "1000", "x", "4097"], ["missing", "1", "1000", "x", "0"],
                 ["decode", "x"], ["decode", "x", "0"], ["copy", "4096", "4096", "0"],
                 ["copy", "4095", "4096", "1"], ["copy", "4096", "0", "1"]):
        run = t.run([tool("vmsnap-bench"), *argv])
        t.equal(run.returncode, 2, f"{argv}: exit code")
        t.check(run.stderr.startswith("usage: "), f"{argv}: {run.stderr}")
    for argv in (["missing", str(os.getpid()), "1000", "/dev/null", "4096"], ["decode", "/dev/null", "1"]):
        run = t.run([tool("vmsnap-bench"), *argv])
        t.check(run.returncode not in (0, 2), f"{argv}: {run.returncode}, {run.stderr}")
        t.check(not any(map(is_summary, run.stdout.split("\n"))), f"{argv}: {run.stdout}")


def is_summary(line):
    return line.startswith("{") and json.loads(line)["type"] != "ready"


if __name__ == "__main__":
    main()
