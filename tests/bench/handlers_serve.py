"""The benchmark's stand-ins for Firecracker's example handlers give the guest its memory back, each in
its own way, and count what they did."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools",
                                "bench"))
from case import case, main, tool # noqa: E402
from floor import Handler # noqa: E402
from minivm import PAGE, MiniVm, end_and_wait, need_huge_pages # noqa: E402

MIB = 1 << 20
HUGE = 2 << 20
KINDS = ("on_demand", "on_demand_lazy", "fault_all")


def saved(t, *options):
    """The two files of a guest whose memory is all populated: (state, memory)."""
    vm = MiniVm(t, "--memory", "32M", "--populate", "32M", "--pattern", "random", *options)
    vm.wait_for_writes(1000)
    vm.stop()
    files = vm.save_files()
    end_and_wait(vm)
    return files


def served(t, kind, state, memory, *options):
    """(a minivm whose memory comes from a handler, the handler)."""
    handler = Handler(t, kind, memory)
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", handler.path, *options)
    return vm, handler


def judged(t, vm, handler, what):
    """Everything is right; the handler's summary."""
    vm.wait_for_writes(2000)
    vm.stop()
    vm.check_right(what) # touches all that is left
    summary = handler.end()
    t.check(summary["connected_ns"] <= summary["mapped_ns"] <= summary["first_ns"]
            <= summary["complete_ns"], f"{what}: times: {summary}")
    t.equal(summary["copied_bytes"], 32 * MIB, f"{what}: bytes put in")
    end_and_wait(vm)
    return summary


@case("bench.handlers", "kernel", 60)
def handlers_serve(t):
    files = saved(t, "--regions", "3")
    for kind in KINDS:
        vm, handler = served(t, kind, *files)
        summary = judged(t, vm, handler, kind)
        pages = 32 * MIB // PAGE
        if kind == "fault_all":
            t.check(1 <= summary["faults"] <= 2, f"one fault brings all: {summary}")
        else:
            t.check(pages <= summary["faults"] <= pages + 16, f"a fault per page: {summary}")


@case("bench.handlers-huge", "kernel", 60, lock="hugepages")
def huge(t):
    """Pages of 2 MiB. The kernel takes one more for a while where the source is not mapped yet."""
    need_huge_pages(t, 18)
    files = saved(t)
    for kind in KINDS:
        vm, handler = served(t, kind, *files, "--hugetlb")
        summary = judged(t, vm, handler, kind)
        t.check(summary["faults"] <= 32 * MIB // HUGE + 2, f"a fault per huge page: {summary}")


@case("bench.handlers-balloon", "kernel", 60)
def balloon(t):
    """What was given back reads as zeros, and is right for the guest."""
    state, memory = saved(t, "--balloon", "8M")
    vm, handler = served(t, "on_demand", state, memory)
    before = vm.balloon()
    vm.balloon(pages=500)
    vm.wait_for_reuse(500, before=before)
    vm.stop()
    vm.check_right("after the balloon")
    summary = handler.end()
    t.check(summary["removed"] >= 30, f"ranges given back: {summary}")
    t.check(summary["copied_bytes"] < 32 * MIB, f"what was given back is not put in: {summary}")


@case("bench.touches", "kernel", 30)
def touches(t):
    """When the guest did its N-th write, as the guest says it."""
    state, memory = saved(t)
    vm, handler = served(t, "on_demand", state, memory, "--rate", "20000")
    vm.wait_for_writes(1000)
    told = vm.qmp.command("x-touches", of=[1, 2, 1000, 50 * MIB])
    first, second, later, never = told["times_ns"]
    t.check(0 < told["handed_ns"] < told["loaded_ns"] < first < second < later, f"in order: {told}")
    t.equal(never, None, "a write that was not done yet")
    t.check(0.03e9 < later - first < 1.5e9, f"999 writes at 20000 per second: {told}")
    vm.wait_for_writes(18000)
    vm.stop()
    strided = vm.qmp.command("x-touches", of=[16384, 16385, 16448, 16449])["times_ns"]
    t.check(strided[0] < strided[1] == strided[2] < strided[3], f"every 64th: {strided}")
    t.check(strided[3] - strided[0] < 0.5e9, f"65 to 128 writes later: {strided}")
    handler.end()


@case("bench.handlers-refuse", "kernel", 30)
def refuse(t):
    state, memory = saved(t)
    for argv in (["handler"], ["handler", "all", t.path("s"), memory], ["handler", "on_demand", "s"]):
        run = t.run([tool("vmsnap-bench"), *argv])
        t.equal(run.returncode, 2, f"{argv}: exit code")
    with open(memory, "r+b") as f:
        f.truncate(31 * MIB)
    for path in (t.path("none"), "/dev/null"):
        run = t.run([tool("vmsnap-bench"), "handler", "on_demand", t.path("s"), path])
        t.check(run.returncode not in (0, 2) and not run.stdout, f"{path}: {run}")
    handler = Handler(t, "on_demand", memory)
    t.spawn([tool("minivm"), "--vmstate", state, "--uffd-backend", handler.path])
    t.check(handler.process.wait(10) not in (0, 2), "memory of another size")


if __name__ == "__main__":
    main()
