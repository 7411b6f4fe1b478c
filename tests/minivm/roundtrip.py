#!/usr/bin/python3
"""A VMM of one's own, whole round trips (docs/vmm.md): a live snapshot over its control socket while the
guest writes; the exported memory is one instant; the VM goes on; it is restored on demand, goes on, and
every page is right."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, open_files, wait_until  # noqa: E402
from minivm import (PAGE, MiniVm, MiniVmPlace, end_and_wait, judge_memory, kvm_works, need_huge_pages)  # noqa: E402
from vmsnap import Restore, broken, vmsnap  # noqa: E402

SIZES = ("--memory", "32M", "--populate", "24M", "--cpus", "2")


def snapshot(t, vm, image, *args, expect=0, **options):
    result = vmsnap(t, "snapshot", "--qmp", vm.control, *args, image, **options)
    t.equal(result.code, expect, f"the snapshot's exit status: {result.text()}")
    return result


def check_free(t, vm):
    """Nothing of vmsnap is left in the VM's process."""
    flags = set(vm.mapping()[1]["VmFlags"].split())
    t.check(not {"um", "uw", "ui"} & flags, f"its memory is registered nowhere: {flags}")
    held = open_files(vm.pid)
    t.check(not any("userfaultfd" in name for name in held), f"descriptors: {held}")


def check_goes_on(t, vm, what, n=2000):
    t.equal(vm.qmp.status(), "running", f"{what}: status")
    vm.wait_for_writes(n)


def check_whole(t, vm, what):
    """Stops the VM for a look at all its memory."""
    vm.stop()
    vm.check_right(what)
    vm.cont()


def exported(t, image, region="ram"):
    path = t.path(t.unique("raw"))
    result = vmsnap(t, "export", "--format", "raw", "--region", region, image, path)
    t.equal(result.code, 0, f"export: {result.text()}")
    with open(path, "rb") as f:
        data = bytearray(f.read())
    os.unlink(path)
    return data


def judge_image(t, image):
    """The image holds one instant; and the judge would have seen if it did not."""
    data = exported(t, image)
    t.equal(judge_memory(data), [], "what speaks against the image as one instant")
    page = 2500
    for other in (data[(page + 1) * PAGE:(page + 2) * PAGE], bytes(PAGE)):
        damaged = data[:page * PAGE] + other + data[(page + 1) * PAGE:]
        t.check(judge_memory(damaged), "the judge sees one wrong page")


def take(t, vm, image, *args):
    """A snapshot of a VM at work, judged."""
    vm.wait_for_writes(20000)
    summary = snapshot(t, vm, image, *args).summary
    t.say(f"paused {summary['pause_ns'] / 1e6:.2f} ms (stop {summary['stop_ns'] / 1e6:.2f}, state "
          f"{summary['state_ns'] / 1e6:.2f}), {summary['write_faults']} write faults")
    t.equal(summary["accelerator"], vm.description["accelerator"], "accelerator")
    t.equal(summary["ram_bytes"], vm.ram["bytes"], "ram_bytes")
    t.equal(summary["guest_state"], "running", "guest_state")
    # So little memory may all be saved before the guest gets a CPU.
    t.check(summary["write_faults"] > 0 or vm.pages <= 4096, "the guest wrote meanwhile")
    t.check(0 < summary["pause_ns"] < 2e9, "pause_ns")
    check_goes_on(t, vm, "after the snapshot")
    check_free(t, vm)
    check_whole(t, vm, "after the snapshot")
    t.equal(vmsnap(t, "verify", image).code, 0, "verify")
    judge_image(t, image)
    return summary


def take_over(t, image, place, *args, **options):
    """Restores into a MiniVmPlace, judged."""
    restored = Restore(t, image, place, *args, **options).wait_running()
    check_goes_on(t, place, "restored")
    check_whole(t, place, "on demand") # looks at every page, whoever brings it in
    return restored


def round_trip(t, accel, kind, pattern, sizes=SIZES):
    options = (*sizes, "--kind", kind, "--pattern", pattern)
    source = MiniVm(t, *options, accel=accel)
    image = t.path("image")
    take(t, source, image)
    t.equal(end_and_wait(source), 0, "the source's exit status")
    place = MiniVmPlace(t, *options, accel=accel)
    restored = take_over(t, image, place)
    done = restored.wait_complete()
    t.say(f"running after {done['launch_to_running_ns'] / 1e6:.0f} ms, {done['demand_faults']} "
          f"demand faults")
    wait_until(lambda: restored.result().of_type("summary"), 10, "the summary")
    check_free(t, place)
    check_goes_on(t, place, "complete")
    check_whole(t, place, "complete")
    t.equal(restored.end().code, 0, "exit status of the restore")


def round_trips(accel, kind):
    @case(f"minivm.roundtrip.{accel}-{kind}", "kvm" if accel == "kvm" else "kernel", 90)
    def run(t):
        t.need(accel == "threads" or kvm_works(), "no /dev/kvm here")
        for pattern in ("random", "sequential"):
            inner = t.sub()
            round_trip(inner, accel, kind, pattern)
            inner.end()


for _accel in ("kvm", "threads"):
    for _kind in ("anon", "thp", "memfd"):
        round_trips(_accel, _kind)


@case("minivm.roundtrip.live", "kernel", 90)
def live(t):
    """Enough memory in small pages for protection while the guest runs; and pages that are saved
    before the instant, some of which are written again."""
    sizes = ("--memory", "160M", "--populate", "144M", "--cpus", "2")
    for pattern, args in (("random", ()), ("sequential", ("--precopy", "2"))):
        inner = t.sub()
        source = MiniVm(inner, *sizes, "--pattern", pattern)
        image = inner.path("image")
        summary = take(inner, source, image, *args)
        t.check(summary["live_passes"] > 0, f"protected while the guest ran: {summary}")
        end_and_wait(source)
        restored = take_over(inner, image, MiniVmPlace(inner, *sizes, "--pattern", pattern))
        t.equal(restored.end().code, 0, "exit status")
        inner.end()


@case("minivm.roundtrip.hugetlbfs", "kernel", 60, lock="hugepages")
def hugetlbfs(t):
    """The fault unit is the huge page."""
    need_huge_pages(t, 8)
    round_trip(t.sub(), "threads", "hugetlbfs", "random", ("--memory", "16M", "--cpus", "2"))


@case("minivm.roundtrip.regions", "kernel", 60)
def regions(t):
    """Memory in several blocks with holes between them, one of anonymous memory and one of parts of one file."""
    for kind in ("anon", "memfd"):
        inner = t.sub()
        options = (*SIZES, "--kind", kind, "--regions", "3")
        source = MiniVm(inner, *options)
        names = [m["name"] for m in source.description["memory"]]
        t.equal(names, ["ram", "ram1", "ram2"], "blocks")
        source.wait_for_writes(20000)
        image = inner.path("image")
        summary = snapshot(inner, source, image).summary
        t.equal(summary["ram_bytes"], 32 << 20, "ram_bytes")
        t.check(summary["write_faults"] > 0, "the guest wrote meanwhile")
        check_goes_on(inner, source, "after the snapshot")
        check_whole(inner, source, "after the snapshot")
        end_and_wait(source)
        data = b"".join(exported(inner, image, name) for name in names)
        t.equal(judge_memory(data), [], f"{kind}: what speaks against the image as one instant")
        restored = take_over(inner, image, MiniVmPlace(inner, *options))
        restored.wait_complete()
        t.equal(restored.end().code, 0, "exit status of the restore")
        inner.end()


@case("minivm.roundtrip.absent", "kernel", 60)
def absent(t):
    """Memory that is absent for the most part stays so: it is zero pages in the image, and is not
    made real by the snapshot."""
    options = ("--memory", "256M", "--populate", "16M", "--pattern", "idle")
    source = MiniVm(t, *options)
    image = t.path("image")
    summary = snapshot(t, source, image).summary
    t.check(summary["pages_zero"] >= 240 * 256, f"absent pages are zero pages: {summary}")
    t.check(int(source.mapping()[1]["Rss"].split()[0]) < 17 * 1024, "absent pages stay absent")
    source.stop()
    source.check_right("after the snapshot")
    end_and_wait(source)
    place = MiniVmPlace(t, *options)
    restored = Restore(t, image, place).wait_running()
    restored.wait_complete()
    place.stop()
    place.check_right("restored")
    restored.end()


@case("minivm.roundtrip.can-fail", "kernel", 120)
def can_fail(t):
    """With a rule of vmsnap's broken the judge sees it in the image."""
    for rule, kind in (("release-before-save", "anon"), ("unprotected-block", "memfd")):
        for number in range(6):
            inner = t.sub()
            vm = MiniVm(inner, *SIZES, "--kind", kind, accel="threads")
            vm.wait_for_writes(20000)
            image = inner.path("image")
            with broken(rule):
                snapshot(inner, vm, image)
            wrong = judge_memory(exported(inner, image))
            inner.end()
            if wrong:
                t.say(f"{rule}: {len(wrong)} things in try {number}, {wrong[0]}")
                break
        t.check(wrong, f"{rule} is broken, and nothing was seen in 6 images")


@case("minivm.roundtrip.no-fill", "kernel", 60)
def no_fill(t):
    """Only what is touched comes in, and all of it is right; --no-fill never ends by itself."""
    source = MiniVm(t, *SIZES, "--rate", "8000")
    image = t.path("image")
    take(t, source, image)
    end_and_wait(source)
    place = MiniVmPlace(t, *SIZES, "--rate", "8000")
    restored = take_over(t, image, place, "--no-fill", "--prefetch", "none")
    t.check(not restored.result().of_type("summary"), "no summary before the last page is in")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.roundtrip.lines", "kernel", 90)
def lines(t):
    """The recorded line and a given one; --print-command, --paused, --detach; a line that is in use."""
    source = MiniVm(t, *SIZES)
    image = t.path("image")
    snapshot(t, source, image)
    refused = vmsnap(t, "restore", image)
    t.equal(refused.code, 14, f"beside the running source: {refused.text()}")
    t.check(source.control in refused.error["message"], f"the socket is named: {refused.error}")
    check_goes_on(t, source, "after the refusal")
    listed = vmsnap(t, "check", image)
    in_use = [o for o in listed.objects if o.get("name", "").endswith("in-use")]
    t.check(in_use and not in_use[0]["ok"], f"check says so, too: {listed.text()}")
    place = MiniVmPlace(t, *SIZES)
    restored = take_over(t, image, place) # by another line, with a socket of its own
    t.equal(restored.end().code, 0, "exit status of a twin")
    check_whole(t, source, "beside its twin")
    end_and_wait(source)
    t.equal(vmsnap(t, "check", image).code, 0, "check, once it has ended")
    printed = vmsnap(t, "restore", "--print-command", image, json_=False)
    t.check(source.control in printed.out and "--vmsnap-incoming" not in printed.out,
            f"the printed line: {printed.out}")

    place = MiniVmPlace(t, control=source.control)
    restored = Restore(t, image, place, recorded=True).wait_running()
    restored.wait_complete()
    check_whole(t, place, "by the recorded line")
    again = t.path("again")
    snapshot(t, place, again)
    restored.end()
    place = MiniVmPlace(t, control=source.control)
    restored = Restore(t, again, place, recorded=True).wait_running()
    check_whole(t, place, "restored, snapshotted, restored")
    restored.end()

    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--paused").wait_running()
    t.equal(place.qmp.status(), "paused", "status after --paused")
    restored.wait_complete()
    place.check_right("paused")
    t.equal(place.writes(), 0, "writes of a guest that is paused")
    place.cont()
    check_goes_on(t, place, "after cont")
    t.equal(restored.end().code, 0, "exit status")

    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--detach", "--report", t.path("report")).wait_running()
    t.equal(restored.process.wait(20), 0, "exit status of --detach")
    check_goes_on(t, place, "detached")
    check_whole(t, place, "detached")


@case("minivm.roundtrip.paused", "kernel", 60)
def paused(t):
    """A VM that was paused stays so, and is restored so."""
    source = MiniVm(t, *SIZES)
    source.wait_for_writes(5000)
    source.stop()
    image = t.path("image")
    summary = snapshot(t, source, image).summary
    t.equal((summary["guest_state"], summary["pause_ns"]), ("paused", 0), "of a paused VM")
    t.equal(source.qmp.status(), "paused", "status")
    source.check_right("paused")
    judge_image(t, image)
    end_and_wait(source)
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place).wait_running()
    t.equal(place.qmp.status(), "paused", "status of the restored VM")
    place.check_right("restored, paused")
    restored.end()


if __name__ == "__main__":
    main()
