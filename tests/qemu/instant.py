#!/usr/bin/python3
"""Is an image the guest's memory at one instant? Compared byte for byte with what QEMU itself says of
a paused guest, and judged by the stepper (tests/guest/pattern.h) for a running one."""

import json
import os
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import (finish, pause_log, restored_guest, snapshot,  # noqa: E402
                    start_vmsnap, vmsnap)


def ram_ranges(guest):
    """(first, last) guest-physical addresses of main memory as the machine maps it."""
    ranges = []
    for line in guest.qmp.hmp("info mtree -f").split("\n"):
        m = re.match(r"\s+([0-9a-f]{16})-([0-9a-f]{16}) \(prio \d+, ram\): (pc\.ram|ram)\b", line)
        if m and (int(m[1], 16), int(m[2], 16)) not in ranges:
            ranges.append((int(m[1], 16), int(m[2], 16)))
    return ranges


def export(t, image):
    out = t.path(t.unique("raw"))
    result = vmsnap(t, "export", image, "--format", "raw", out)
    t.equal(result.code, 0, f"export: {result.text()}")
    return out


def pagecheck(t, path):
    result = t.run([tool("tests", "guest", "pagecheck"), path])
    t.check(result.returncode in (0, 1), f"pagecheck: {result.stdout} {result.stderr}")
    return result.returncode == 0, json.loads(result.stdout)


def same(t, raw, offset, reference):
    """Compares a part of a raw image with a file, a MiB at a time."""
    with open(raw, "rb") as a, open(reference, "rb") as b:
        a.seek(offset)
        at = offset
        while True:
            wanted = b.read(1 << 20)
            if not wanted:
                return
            there = a.read(len(wanted))
            if there != wanted:
                first = next(i for i in range(len(wanted)) if there[i:i + 1] != wanted[i:i + 1])
                t.check(False, f"exported memory differs from pmemsave at {at + first:#x}")
            at += len(wanted)


def compare_with_pmemsave(t, guest, raw, parts):
    """`parts`: (first address, file) of what pmemsave wrote."""
    for first, part in parts:
        same(t, raw, first, part)
    total = sum(os.path.getsize(part) for _, part in parts)
    t.check(total > guest.memory_mib * 0.95 * (1 << 20), f"main memory: {parts}")
    t.say(f"{total} bytes in {len(parts)} ranges are identical")


def save_reference(t, guest):
    """What QEMU itself says of the paused guest's memory: [(first address, file)]."""
    parts = []
    for first, last in ram_ranges(guest):
        part = t.path(t.unique("pmemsave"))
        guest.qmp.command("pmemsave", timeout=60, val=first, size=last + 1 - first, filename=part)
        parts.append((first, part))
    return parts


def stopped_reference(t, **shape):
    guest = Guest(t, work="selfcheck,stepper,vio", step_mib=32, mib=32, **shape).boot_up()
    guest.qmp.command("stop")
    guest.qmp.take_events()
    image = t.path("image")
    snapshot(t, guest, image)
    t.equal(guest.qmp.status(), "paused", "a guest that was paused stays so")
    events = [e["event"] for e in guest.qmp.take_events(wait=0.2)]
    t.check("RESUME" not in events, f"it did not run in between: {events}")
    guest.check_stands()
    raw = export(t, image)
    compare_with_pmemsave(t, guest, raw, save_reference(t, guest))
    guest.qmp.command("cont")
    guest.check_whole()


@case("qemu.instant.stopped-anon", "qemu", 120)
def stopped_anon(t):
    stopped_reference(t, memory_mib=512)


@case("qemu.instant.stopped-memfd", "qemu", 120)
def stopped_memfd(t):
    stopped_reference(t, memory_mib=512, ram="memfd", machine="q35")


@case("qemu.instant.stopped-6g", "qemu,slow", 240)
def stopped_6g(t):
    """The same with memory on both sides of the hole below 4 GiB."""
    stopped_reference(t, memory_mib=6144, machine="q35", phys="0x40000000")


@case("qemu.instant.stopped-stays-stopped", "qemu", 120)
def stopped_stays_stopped(t):
    """An image of a paused guest is restored paused, and goes on when told."""
    source = Guest(t).boot_up()
    source.qmp.command("stop")
    snapshot(t, source, t.path("image"))
    source.stop()
    restored = restored_guest(t, source, t.path("image"))
    t.equal(restored.guest.qmp.status(), "paused", "status of the restored guest")
    restored.guest.check_stands()
    restored.guest.qmp.command("cont")
    restored.guest.check_whole()


def first_touch(t):
    """A snapshot while the guest fills memory that it never touched before: pages that are absent
    when they are registered, and written before or after the instant."""
    source = Guest(t, work="selfcheck", mib=320, rate=500, devices=()).start()
    wait_until(lambda: any(line.startswith("GUEST ready") for line in source.console.lines()), 60,
               "the guest has booted")
    time.sleep(0.3)
    mark = source.console.size()
    image = t.path("image")
    snapshot(t, source, image)
    lines = source.console.lines(mark)
    t.say(f"filling was {'over' if any(' ready ' in line for line in lines) else 'going on'} "
          "when the snapshot was done")
    source.wait_working()
    source.check_whole()
    source.stop()
    restored = restored_guest(t, source, image)
    restored.guest.wait_working(restored.mark)
    restored.guest.check_whole()
    restored.wait_complete()
    t.equal(restored.end().code, 0, "exit status of the restore")


@case("qemu.instant.first-touch", "qemu", 120)
def first_touch_case(t):
    first_touch(t)


def discards(t):
    """A balloon takes memory from the guest while the snapshot has yet to save it: what was there at
    the instant is in the image, or the snapshot fails and says so."""
    # A kernel that clears pages before it gives them away would write to them first.
    guest = Guest(t, work="selfcheck", mib=32, dirty=200, devices=("balloon",),
                  append="init_on_alloc=0").boot_up()
    guest.qmp.command("stop")
    parts = save_reference(t, guest)
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--allow", "balloon",
                           t.path("image"), hooks={"pause_at": "snapshot-sweeping",
                                                   "pause_log": log})
    reached("snapshot-sweeping")
    guest.qmp.command("cont")
    guest.qmp.command("balloon", value=256 << 20)
    wait_until(lambda: process.poll() is not None or
               guest.qmp.command("query-balloon")["actual"] < 448 << 20, 60,
               "the balloon takes 64 MiB")
    go()
    result = finish(t, process)
    if result.code == 1:
        t.check("discard" in result.error["message"], f"the cause is named: {result.error}")
        t.check(not os.path.exists(t.path("image")), "no image is left")
        t.say(f"failed cleanly: {result.error['message']}")
    else:
        t.check(result.code in (0, 3), f"exit status: {result.text()}")
        compare_with_pmemsave(t, guest, export(t, t.path("image")), parts)
    guest.qmp.command("balloon", value=512 << 20)
    guest.check_whole()


@case("qemu.instant.discards", "qemu", 120)
def discards_case(t):
    discards(t)


def check_passes(t, summary, precopy):
    passes = summary["precopy_passes"]
    t.equal(len(passes), precopy, "precopy passes")
    for one in passes:
        t.say(f"precopy: {one['saved_bytes'] >> 20} MiB in {one['wall_ns'] / 1e6:.0f} ms, "
              f"{one['write_faults']} faults")
    t.check(not passes or passes[0]["saved_bytes"] > 64 << 20, f"the first pass saves: {passes}")
    t.check(summary["live_passes"] >= precopy, f"live passes: {summary['live_passes']}")


def series(t, count, precopy=0, **shape):
    """`count` snapshots of one running guest, each judged, and each restored."""
    guest = Guest(t, work="stepper,selfcheck,vio", step_mib=64, mib=32, **shape).boot_up()
    for number in range(count):
        image = t.path(f"image{number}")
        mark = guest.console.size()
        summary = snapshot(t, guest, image, "--precopy", str(precopy)).summary
        check_passes(t, summary, precopy)
        t.equal(vmsnap(t, "verify", image).code, 0, "verify")
        read = t.run([tool("tests", "reader", "image_reader"), "check", image])
        t.equal(read.returncode, 0, f"the other reader: {read.stderr}")
        t.say(read.stdout.strip())
        raw = export(t, image)
        right, report = pagecheck(t, raw)
        os.unlink(raw)
        t.say(f"{number + 1}/{count}: {report['stepper']['verdict']}, boundary at page "
              f"{report['stepper']['boundary']} of round {report['stepper']['first']}; paused "
              f"{summary['pause_ns'] / 1e6:.1f} ms, {summary['write_faults']} faults")
        t.check(right, f"the image is a point in time: {report}")
        t.equal(report["stepper"]["pages"], 64 * 256, "pages of the stepper")
        restored = restored_guest(t, guest, image)
        # Not the first line: it may have waited in the serial port at the instant, with a count of
        # before.
        wait_until(lambda: any(c["rounds"] >= report["stepper"]["first"] for c in
                               restored.guest.console.counters("STEPPER", restored.mark)), 60,
                   f"the stepper goes on from round {report['stepper']['first']}")
        restored.wait_complete()
        restored.guest.check_whole()
        t.equal(restored.end().code, 0, "exit status of the restore")
        os.unlink(image)
        guest.check_goes_on()
        guest.check_no_errors(mark)
    guest.check_whole()


@case("qemu.instant.series-3", "qemu", 150)
def series_3(t):
    series(t, 3)


@case("qemu.instant.precopy-2", "qemu", 150)
def precopy_2(t):
    series(t, 2, precopy=2)


@case("qemu.instant.precopy-2-memfd", "qemu,slow", 150)
def precopy_2_memfd(t):
    """Shared memory, which is armed live without being told to, too."""
    series(t, 2, precopy=2, ram="memfd", machine="q35")


@case("qemu.instant.live-memfd", "qemu", 150)
def live_memfd(t):
    series(t, 2, ram="memfd")


@case("qemu.instant.series-30", "qemu,slow", 900)
def series_30(t):
    series(t, 30, cpus=2)


@case("qemu.instant.series-30-memfd", "qemu,slow", 900)
def series_30_memfd(t):
    series(t, 30, cpus=2, ram="memfd")


@case("qemu.instant.kvm-series", "qemu,kvm", 150)
def kvm_series(t):
    """The same under KVM: the firmware guest steps by itself."""
    t.need(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    guest = Guest(t, accel="kvm", boot="firmware", memory_mib=128).boot_up()
    for number in range(5):
        image = t.path(f"image{number}")
        summary = snapshot(t, guest, image).summary
        right, report = pagecheck(t, export(t, image))
        t.say(f"{report['stepper']['verdict']}, boundary {report['stepper']['boundary']}, "
              f"{summary['write_faults']} faults")
        t.check(right, f"the image is a point in time: {report}")
        guest.check_goes_on()


if __name__ == "__main__":
    main()
