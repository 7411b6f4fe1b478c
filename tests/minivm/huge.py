#!/usr/bin/python3
"""Huge pages of a VM that writes all over its memory while a snapshot is taken: split meanwhile, huge
again when the command ends. The image does not wait for that; an interrupt, or the VMM's end, ends it
and no more."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from minivm import MiniVm, kvm_works  # noqa: E402
from vmsnap import broken, finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

MIB = 1 << 20
SIZE = 64 * MIB
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def start_vm(t, accel="threads", **options):
    with open(THP, encoding="ascii") as f:
        t.need("[never]" not in f.read(), f"{THP} is never")
    t.need(accel != "kvm" or kvm_works(), "no /dev/kvm here")
    vm = MiniVm(t, "--memory", str(SIZE), "--populate", str(SIZE), "--kind", "thp", "--pattern",
                "random", accel=accel, **options)
    vm.wait_for_writes(1000)
    t.need(huge(vm) > SIZE // 2, "the host has no huge pages to give")
    return vm


def huge(vm):
    """Bytes on huge pages, as the kernel counts them. While memory is under a userfaultfd it may be
    more than one mapping."""
    total, inside = 0, False
    with open(f"/proc/{vm.pid}/smaps", encoding="ascii", errors="replace") as f:
        for line in f:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                start = int(first.split("-")[0], 16)
                inside = vm.ram["hva"] <= start < vm.ram["hva"] + vm.ram["bytes"]
            elif inside and first == "AnonHugePages:":
                total += int(line.split()[1]) * 1024
    return total


def start_snapshot(t, vm, image, point, hooks=None):
    """A snapshot that stands at `point`."""
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, image,
                           hooks={"pause_at": point, "pause_log": log, **(hooks or {})})
    reached(point)
    return process, go


def again(t, accel):
    vm = start_vm(t, accel)
    before = huge(vm)
    process, go = start_snapshot(t, vm, t.path("image"), "snapshot-released")
    meanwhile = huge(vm)
    go()
    result = finish(t, process)
    t.equal(result.code, 0, result.text())
    after = huge(vm)
    t.say(f"huge: {before} before, {meanwhile} meanwhile, {after} after")
    t.check(meanwhile < before, "the snapshot splits huge pages, or there is nothing to see here")
    t.check(after >= before, f"{after} bytes are huge after the snapshot, {before} were before it")
    t.equal(result.summary["huge_bytes_before"], before, "huge_bytes_before")
    t.equal(result.summary["huge_bytes_after"], before, "huge_bytes_after")
    vm.stop()
    vm.check_right("after the snapshot")


@case("minivm.huge.again-kvm", "kvm", 60)
def again_kvm(t):
    again(t, "kvm")


@case("minivm.huge.again-threads", "kernel", 60)
def again_threads(t):
    again(t, "threads")


@case("minivm.huge.left-split", "kernel", 60)
def left_split(t):
    """What the tests before this look for is not there by itself."""
    vm = start_vm(t)
    before = huge(vm)
    with broken("huge-left-split"):
        result = vmsnap(t, "snapshot", "--qmp", vm.control, t.path("image"))
    t.equal(result.code, 0, result.text())
    after = huge(vm)
    t.check(after < before, "huge pages that are left split show")
    t.check(result.summary["huge_bytes_after"] < before, "and the summary says so")


@case("minivm.huge.interrupted", "kernel", 60)
def interrupted(t):
    """The image has its name while huge pages are still split; then a signal ends the wait."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        vm = start_vm(t)
        image = t.path(t.unique("image"))
        process, go = start_snapshot(t, vm, image, "huge-collapsing")
        wait_until(lambda: os.path.exists(image), 20, "the image does not wait for huge pages")
        t.equal(vmsnap(t, "verify", image).code, 0, "it is whole")
        t.check(process.poll() is None, "vmsnap waits for huge pages")
        time.sleep(0.5) # it notes that the image is there: before that it is a snapshot that ends
        process.send_signal(sig)
        time.sleep(0.5) # by way of the guardian
        go()
        result = finish(t, process, timeout=10)
        t.equal(result.code, 0, f"{sig.name}: {result.text()}")
        found = result.summary
        t.check(found["huge_bytes_after"] < found["huge_bytes_before"], f"{sig.name}: {found}")
        vm.wait_for_writes(1000)


@case("minivm.huge.stdout", "kernel", 60)
def stdout(t):
    """Who reads an image from stdout waits for the command's end: it does not wait for huge pages, and
    for a call that hangs for two seconds only."""
    vm = start_vm(t)
    image = t.path("image")
    log, reached, go = pause_log(t)
    with open(image, "wb") as out:
        process = start_vmsnap(t, "snapshot", "-v", "--qmp", vm.control, "-", stdout=out,
                               hooks={"pause_at": "huge-collapsing", "pause_log": log})
    reached("huge-collapsing")
    result = finish(t, process, timeout=9)
    go()
    t.equal(result.code, 0, result.text())
    t.check("hangs in the kernel" in result.err, f"the thread is left alone: {result.text()}")
    t.check(result.summary["huge_bytes_after"] < result.summary["huge_bytes_before"], "and says so")
    t.equal(vmsnap(t, "verify", image).code, 0, "the image is whole")
    vm.wait_for_writes(1000)


@case("minivm.huge.vmm-ends", "kernel", 60)
def vmm_ends(t):
    vm = start_vm(t)
    image = t.path("image")
    process, go = start_snapshot(t, vm, image, "huge-collapsing")
    wait_until(lambda: os.path.exists(image), 20, "the image has its name")
    vm.process.kill()
    vm.process.wait(10)
    go()
    result = finish(t, process, timeout=10)
    t.equal(result.code, 0, result.text())
    t.equal(vmsnap(t, "verify", image).code, 0, "the image is whole")


@case("minivm.huge.killed", "kernel", 60)
def killed(t):
    """The worker dies between two huge pages: the guest's memory is right."""
    vm = start_vm(t)
    log, _, _ = pause_log(t)
    image = t.path("image")
    result = vmsnap(t, "snapshot", "--qmp", vm.control, image,
                    hooks={"kill_at": "huge-collapsing:2", "pause_log": log})
    t.check(result.code in (1, 3), result.text())
    t.equal(os.path.exists(image), result.code == 3, "an image under its name")
    vm.wait_for_writes(1000)
    vm.stop()
    vm.check_right("after the worker's death")


if __name__ == "__main__":
    main()
