"""The benchmark's floor resolves every fault, and leaves the VM as it was, whatever becomes of it."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "bench"))
from case import case, main, tool # noqa: E402
from floor import Floor # noqa: E402
from minivm import MiniVm # noqa: E402

CLUSTER_BYTES = 16 << 10


def armed(t, busy=0):
    """A minivm under the floor, and running."""
    vm = MiniVm(t, "--memory", "64M", "--populate", "32M", "--pattern", "random")
    floor = Floor(t, vm.pid, vm.ram["hva"], vm.ram["bytes"], busy)
    vm.stop()
    floor.protect()
    t.check("uw" in vm.mapping()[1]["VmFlags"].split(), "its memory is write-protected")
    vm.cont()
    return vm, floor


def check_free(t, vm):
    """It goes on, nothing is wrong, nobody watches its memory."""
    vm.wait_for_writes(1000)
    vm.stop()
    vm.check_right("after the floor")
    t.check("uw" not in vm.mapping()[1]["VmFlags"].split(), "its memory is free")


@case("bench.floor", "kernel", 60)
def floor_serves(t):
    vm, floor = armed(t)
    vm.wait_for_writes(20000)
    summary = floor.end()
    t.equal(summary["failures"], 0, "failures")
    # 64 KiB are released at a time, so there are fewer faults than clusters.
    t.check(100 <= summary["faults"] <= vm.ram["bytes"] // CLUSTER_BYTES, f"faults: {summary}")
    check_free(t, vm)


@case("bench.floor-killed", "kernel", 60)
def floor_killed(t):
    vm, floor = armed(t, busy=2)
    vm.wait_for_writes(100)
    floor.process.kill()
    floor.process.wait(10)
    check_free(t, vm)


@case("bench.floor-refuses", "kernel", 30)
def floor_refuses(t):
    for argv in ([], ["floor", "1"], ["floor", "0", "1000", "4096", "0"],
                 ["floor", "1", "x", "4096", "0"], ["floor", "1", "1001", "4096", "0"],
                 ["floor", "1", "1000", "4095", "0"], ["floor", "1", "1000", "0", "0"],
                 ["floor", "1", "1000", "4096", "65"]):
        run = t.run([tool("vmsnap-bench"), *argv])
        t.equal(run.returncode, 2, f"{argv}: exit code")
        t.check(run.stderr.startswith("usage: "), f"{argv}: {run.stderr}")
    run = t.run([tool("vmsnap-bench"), "floor", str(os.getpid()), "1000", "4096",
                 "0"])
    t.equal(run.returncode not in (0, 2), True, f"no memory there: {run.stderr}")


if __name__ == "__main__":
    main()
