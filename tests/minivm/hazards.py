#!/usr/bin/python3
"""A VMM of one's own, and what the kernel shows of its memory that is a hazard to a snapshot: refused by name, or taken
care of."""

import ctypes
import mmap
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from minivm import MiniVm  # noqa: E402
from roundtrip import SIZES, check_goes_on, check_whole, snapshot  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

PR_SET_MEMORY_MERGE = 67 # Linux 6.4


@case("minivm.hazards.shared", "kernel", 60)
def shared(t):
    """Guest memory that another process (this one) maps: refused by name, nothing is touched."""
    vm = MiniVm(t, *SIZES, "--kind", "memfd")
    line, _ = vm.mapping()
    span = line.split()[0]
    start, end = (int(x, 16) for x in span.split("-"))
    with open(f"/proc/{vm.pid}/map_files/{start:x}-{end:x}", "r+b") as f:
        ours = mmap.mmap(f.fileno(), end - start)
    result = snapshot(t, vm, t.path("image"), expect=14)
    t.check("shared-memory" in result.error["message"], f"by its name: {result.error}")
    t.check(f"{os.getpid()}" in result.error["message"], f"who it is: {result.error}")
    check_goes_on(t, vm, "refused")
    listed = vmsnap(t, "check", "--qmp", vm.control)
    t.equal(listed.code, 14, f"check: {listed.text()}")
    ours.close()
    t.equal(vmsnap(t, "check", "--qmp", vm.control).code, 0, "check without it")
    snapshot(t, vm, t.path("image"))


@case("minivm.hazards.ksm", "kernel", 60)
def ksm(t):
    """Memory that KSM may merge (here since its whole process is so: prctl(2)) is taken from KSM for
    the time of the snapshot, also when the worker dies."""
    libc = ctypes.CDLL(None)
    t.need(libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) == 0, "no PR_SET_MEMORY_MERGE here")
    vm = MiniVm(t, *SIZES)
    libc.prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0)

    def is_mergeable():
        return "mg" in vm.mapping()[1]["VmFlags"].split()
    t.need(is_mergeable(), "this kernel does not hand it on to another program")
    listed = vmsnap(t, "check", "--qmp", vm.control)
    item = [o for o in listed.objects if o.get("name", "").endswith("ksm")]
    t.check(item and "taken from KSM" in item[0]["reason"], f"check says so: {listed.text()}")
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, t.path("image"),
                           hooks={"pause_at": "snapshot-registered", "pause_log": log})
    reached("snapshot-registered")
    t.check(not is_mergeable(), "it is taken from KSM")
    go()
    t.equal(finish(t, process).code, 0, "exit status")
    t.check(is_mergeable(), "it is given back")
    result = snapshot(t, vm, t.path("killed"), expect=1, hooks={"kill_at": "snapshot-armed"})
    t.check("kill" in result.error["message"], f"the worker died: {result.error}")
    t.check(is_mergeable(), "it is given back by the guardian")
    check_whole(t, vm, "after both")


@case("minivm.hazards.two-at-once", "kernel", 60)
def two_at_once(t):
    vm = MiniVm(t, *SIZES)
    log, reached, go = pause_log(t)
    first = start_vmsnap(t, "snapshot", "--qmp", vm.control, t.path("first"),
                         hooks={"pause_at": "snapshot-registered", "pause_log": log})
    reached("snapshot-registered")
    second = snapshot(t, vm, t.path("second"), expect=11)
    t.check("being snapshotted" in second.error["message"], f"why: {second.error}")
    go()
    t.equal(finish(t, first).code, 0, "the first one")
    check_whole(t, vm, "after both")


if __name__ == "__main__":
    main()
