#!/usr/bin/python3
"""`vmsnap snapshot --api`: a VM behind Firecracker's API, taken while it runs, served to another one by `restore
--listen`, and taken again from that; minivm stands for Firecracker. What may go wrong: fc_snapshot_fails.py."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, main, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import MiniVm, MiniVmPlace, end_and_wait, judge_memory, need_huge_pages  # noqa: E402
from rawvm import RawVm  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

SIZES = ("--memory", "32M", "--populate", "24M", "--cpus", "2")


def with_api(t, *options):
    path = t.path(t.unique("api") + ".sock")
    vm = MiniVm(t, *options, "--api", path)
    vm.api = path
    return vm


def started(t, *options):
    vm = with_api(t, *SIZES, "--pattern", "random", *options)
    vm.wait_for_writes(5000)
    return vm


def take(t, vm, stem, *options, expect=0, api=None, **more):
    """`snapshot --api`: (Result, image, state file)."""
    image, state = t.path(stem + ".img"), t.path(stem + ".state")
    result = vmsnap(t, "snapshot", "--api", api or vm.api, "--vmstate", state, *options, image, **more)
    t.equal(result.code, expect, f"{stem}: {result.text()}")
    t.check(expect in (0, 3) or result.error["hint"], f"{stem}: what to do is not said: {result.text()}")
    return result, image, state


def check_no_litter(t):
    """Nothing of ours lies where the VMM's files were, and no FIFO holds it."""
    mine = [n for d in ("/dev/shm", "/run", "/tmp", "/") for n in os.listdir(d) if n.startswith(".vmsnap-")
            and not is_alive(int(n.split("-")[1]))]
    t.equal(mine, [], "litter")


def check_runs(t, vm, what):
    t.equal(Api(t, vm.api).get("/")["state"], "Running", f"{what}: state")
    vm.wait_for_writes(500)


def serve(t, image, state, *options):
    """(the VM that goes on from there, the listener); its memory is complete."""
    listener = Listener(t, image)
    vm = with_api(t, "--vmstate", state, "--uffd-backend", listener.path, *options)
    wait_until(lambda: listener.of_type("summary"), 30, f"the last page is in: {listener.text()}")
    return vm, listener


def check_whole(t, vm, what):
    vm.wait_for_writes(2000)
    vm.stop()
    vm.check_right(what)
    vm.cont()


def region_maps(vm):
    """--map for each block, in the order of offsets."""
    found = []
    for block in vm.description["memory"]:
        found += ["--map", f"{block['hva']:#x}:{block['bytes']}"]
    return found


@case("minivm.firecracker.generations", "kernel", 60, lock="firecracker-places")
def generations(t):
    """Taken while it runs; served to a second VM; that one taken and served to a third. Every page right, the
    state file in the image the same as the one beside it."""
    vm = started(t)
    for n in (1, 2):
        result, image, state = take(t, vm, f"generation{n}")
        t.check(result.summary["pause_ns"] < 5e9, f"{result.summary}")
        t.equal((result.summary["vm_name"], result.summary["warnings"]), ("anonymous-instance", []), "summary")
        check_runs(t, vm, f"generation {n}")
        again = t.path("again")
        t.equal(vmsnap(t, "export", "--overwrite", "--format", "vmstate", image, again).code, 0, "export")
        with open(state, "rb") as a, open(again, "rb") as b:
            t.check(a.read() == b.read(), "the state file and that in the image")
        check_whole(t, vm, f"the VM that generation {n} was taken of")
        end_and_wait(vm)
        vm, _ = serve(t, image, state)
        check_whole(t, vm, f"generation {n}, served")
    check_no_litter(t)


@case("minivm.firecracker.memory-file", "kernel", 60, lock="firecracker-places")
def memory_file(t):
    """The image is what Firecracker would have written itself: the memory of one instant."""
    vm = started(t)
    _, image, _ = take(t, vm, "one")
    t.equal(vmsnap(t, "export", "--format", "raw", image, t.path("mem")).code, 0, "export")
    with open(t.path("mem"), "rb") as f:
        t.equal(judge_memory(f.read()), [], "the memory")


@case("minivm.firecracker.regions", "kernel", 60, lock="firecracker-places")
def regions(t):
    """Several regions that no layout of Firecracker's has: never guessed, but listed; taken as they are named, in
    their order, and served."""
    vm = started(t, "--regions", "2")
    refused, image, state = take(t, vm, "regions", expect=2)
    t.check(f"{vm.ram['hva']:#x}" in refused.error["message"], f"candidates: {refused.error}")
    t.check("--map" in refused.error["hint"], f"what to do: {refused.error}")
    t.equal(vmsnap(t, "check", "--api", vm.api).code, 2, "check")
    maps = region_maps(vm)
    t.equal(vmsnap(t, "check", "--api", vm.api, *maps).code, 0, "check with --map")
    for bad in (maps[:2], [*maps, "--map", "0x1000:1048576"], ["--map", "nonsense"], [*maps[:2], *maps[:2]]):
        take(t, vm, "bad", *bad, expect=2)
    take(t, vm, "regions", *maps)
    other = RawVm(t, sum(block["bytes"] for block in vm.description["memory"]))
    end_and_wait(vm)
    vm, listener = serve(t, image, state)
    check_whole(t, vm, "two regions")
    other.hand_over(listener.path)
    error = listener.wait_for("error")
    t.equal(error["exit_code"], 15, f"as much memory in one region: {error}")


@case("minivm.firecracker.huge", "kernel", 60, lock="hugepages")
def huge(t):
    """Memory in huge pages of 2 MiB."""
    need_huge_pages(t, 70)
    vm = started(t, "--hugetlb")
    _, image, state = take(t, vm, "huge")
    check_whole(t, vm, "the VM that it was taken of")
    end_and_wait(vm)
    vm, _ = serve(t, image, state, "--hugetlb")
    check_whole(t, vm, "huge pages, served")


@case("minivm.firecracker.paused", "kernel", 60, lock="firecracker-places")
def paused(t):
    """A VM that was paused before stays so, and is not held."""
    vm = started(t)
    vm.stop()
    _, image, state = take(t, vm, "paused")
    t.equal(Api(t, vm.api).get("/")["state"], "Paused", "state")
    log, _, _ = pause_log(t)
    for point in ("source-after-state", "snapshot-armed"):
        process = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                               hooks={"kill_at": point, "pause_log": log})
        t.equal(finish(t, process).code, 1, f"killed at {point}")
        t.equal(Api(t, vm.api).get("/")["state"], "Paused", f"killed at {point}: state")
    vm.check_right("a VM that was paused")
    end_and_wait(vm)
    vm, _ = serve(t, image, state)
    check_whole(t, vm, "taken of a paused VM")
    check_no_litter(t)


@case("minivm.firecracker.other-root", "kernel", 60, lock="firecracker-places")
def other_root(t):
    """A VMM with file systems of its own, and another user, as a jailed one: its paths are not ours."""
    path = t.path("jailed.sock")
    os.chmod(t.dir, 0o777)
    place = MiniVmPlace(t, *SIZES, "--api", path, accel="threads")
    argv = ["unshare", "--mount", "sh", "-c",
            'mount -t tmpfs -o mode=1777 none /dev/shm && exec setpriv --reuid=nobody --regid=nogroup '
            '--clear-groups "$@"', "sh", *place.argv()]
    process = t.spawn(argv)
    wait_until(lambda: os.path.exists(path) and os.path.exists(place.control), 10, "the VMM is there")
    place.pid, place.api = process.pid, path
    place.connect()
    with open(f"/proc/{place.pid}/status", encoding="ascii") as f:
        t.check("Uid:\t0" not in f.read(), "the VMM must not run as root")
    place.wait_for_writes(2000)
    _, image, state = take(t, place, "jailed")
    t.equal(os.listdir(f"/proc/{place.pid}/root/dev/shm"), [], "nothing is left in its root")
    check_whole(t, place, "jailed")
    end_and_wait_process(place, process)
    vm, _ = serve(t, image, state)
    check_whole(t, vm, "taken of a jailed VM")


def end_and_wait_process(vm, process):
    vm.qmp.command("quit")
    process.wait(5)


@case("minivm.firecracker.filling", "kernel", 60, lock="firecracker-places")
def filling(t):
    """Refused as long as the page-fault backend brings memory in."""
    vm = started(t)
    _, image, state = take(t, vm, "one")
    end_and_wait(vm)
    listener = Listener(t, image, "--bwlimit", "1M", "--prefetch", "none")
    vm = with_api(t, "--vmstate", state, "--uffd-backend", listener.path, "--paused")
    refused, _, _ = take(t, vm, "none", expect=11)
    t.check("bringing its memory in" in refused.error["message"], f"why: {refused.error}")
    t.equal(vmsnap(t, "check", "--api", vm.api).code, 11, "check")
    vm.cont()
    check_runs(t, vm, "refused")


if __name__ == "__main__":
    main()
