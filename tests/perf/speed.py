#!/usr/bin/python3
"""Prints how fast vmsnap is, as ratios measured in one run: its live snapshot against QEMU's own
background-snapshot piped into zstd, of the same guest doing the same work, in turns; its restore against
an empty start of the same QEMU. Asserts nothing: a busy machine is slow. tools/speed.sh runs it."""

import os
import statistics
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, descendants, main, wait_until  # noqa: E402
from guest import MIB, Guest  # noqa: E402
from qmp import Qmp, event_seconds  # noqa: E402
from vmsnap import finish, restored_guest, start_vmsnap  # noqa: E402

RUNS = int(os.environ.get("SPEED_RUNS", "3"))
BUFFER_MIB = 64 # vmsnap's default
SHAPE = {"memory_mib": 1024, "cpus": 2, "work": "selfcheck", "mib": 512, "rate": 2000,
         "devices": (), "interval": 50}


def boot(t):
    """The Linux guest under KVM if it boots there, else under TCG."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        guest = Guest(t, accel="kvm", extra=["-cpu", "host"], **SHAPE).start()
        try:
            guest.wait_working(seconds=15)
            return guest
        except Failed:
            guest.stop()
            t.say("this kernel does not boot under this host's KVM: TCG")
    return Guest(t, **SHAPE).boot_up()


def paused_seconds(guest):
    """From STOP to RESUME by QEMU's own stamps; the events are taken."""
    stamps = {e["event"]: event_seconds(e) for e in guest.qmp.take_events(wait=0.2)
              if e["event"] in ("STOP", "RESUME")}
    if len(stamps) != 2:
        raise Failed(f"STOP and RESUME were expected: {stamps}")
    return stamps["RESUME"] - stamps["STOP"]


def gap_since(guest, mark):
    """The guest's own longest gap, by the lines that it printed since, the next two included."""
    end = guest.console.size()
    wait_until(lambda: len(guest.console.counters("SELFCHECK", end)) >= 2, 20, "the guest runs on")
    return guest.longest_gap_ms(mark) / 1000


def peak_bytes(pids):
    """Sum of the largest resident sizes that the processes ever had."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
                for line in f:
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) * 1024
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


def run_vmsnap(t, guest, image):
    guest.qmp.take_events()
    mark, began = guest.console.size(), time.monotonic()
    process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--buffer", f"{BUFFER_MIB}MiB",
                           image)
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_bytes([process.pid, *descendants(process.pid)]))
        time.sleep(0.02)
    wall = time.monotonic() - began
    result = finish(t, process)
    if result.code != 0:
        raise Failed(result.text())
    return {"wall": wall, "pause": paused_seconds(guest), "gap": gap_since(guest, mark),
            "bytes": os.path.getsize(image), "peak": peak, "faults": result.summary["write_faults"]}


def run_background_snapshot(guest, stream):
    guest.qmp.take_events()
    guest.qmp.command("migrate-set-capabilities",
                      capabilities=[{"capability": "background-snapshot", "state": True}])
    guest.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
    mark, began = guest.console.size(), time.monotonic()
    guest.qmp.command("migrate", uri=f"exec:zstd -q -1 -T0 > {stream}")
    wait_until(lambda: guest.qmp.command("query-migrate").get("status") in ("completed", "failed"),
               300, "the background snapshot is done", every=0.02)
    wall = time.monotonic() - began
    status = guest.qmp.command("query-migrate")
    if status["status"] != "completed":
        raise Failed(f"background-snapshot: {status}")
    return {"wall": wall, "pause": paused_seconds(guest), "gap": gap_since(guest, mark),
            "bytes": os.path.getsize(stream)}


def run_empty_start(t, source):
    """From the launch of the same QEMU until it says that it runs, with nothing to load."""
    guest = Guest(t, name="empty", **source.shape())
    began = time.monotonic()
    guest.process = t.spawn(guest.argv())
    guest.pid = guest.process.pid
    guest.qmp = Qmp(guest.test_qmp_path, 30.0)
    wait_until(lambda: guest.qmp.status() == "running", 30, "QEMU runs", every=0.001)
    took = time.monotonic() - began
    guest.stop()
    return took


def run_restore(t, source, image):
    restored = restored_guest(t, source, image)
    summary = restored.wait_complete()
    restored.end()
    return summary["launch_to_running_ns"] / 1e9, summary["complete_ns"] / 1e9


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def row(what, ours, theirs, ratio, aim, met):
    print(f"{what:<44} {ours:>12} {theirs:>12} {ratio:>8}   {aim:<18} {'met' if met else 'missed'}")


def report(guest, ours, theirs, starts, restores, peak_extra):
    mib = float(MIB)
    accel = guest.accel.upper()
    version = guest.qmp.command("query-version")["qemu"]
    print(f"\n{accel}; {os.cpu_count()} CPUs, Linux {os.uname().release}; QEMU {version['major']}."
          f"{version['minor']}.{version['micro']}; guest: {SHAPE['memory_mib']} MiB, "
          f"{SHAPE['cpus']} vCPUs, no disk,\n{SHAPE['mib']} MiB checked and {SHAPE['rate']} pages/s "
          f"rewritten; medians of {RUNS} runs each\n")
    print(f"{'(' + accel + ')':<44} {'vmsnap':>12} {'background-':>12} {'ratio':>8}   aim")
    print(f"{'':<44} {'':>12} {'snapshot|zstd':>12}")
    pause, other = median(ours, "pause"), median(theirs, "pause")
    row("pause, from STOP to RESUME", f"{pause * 1e3:.1f} ms", f"{other * 1e3:.1f} ms",
        f"{pause / other:.2f}", "<= 15 ms", pause <= 0.015)
    gap, other = median(ours, "gap"), median(theirs, "gap")
    print(f"{'the guest' + chr(39) + 's own longest gap':<44} {gap * 1e3:>9.1f} ms "
          f"{other * 1e3:>9.1f} ms {gap / other:>8.2f}")
    wall, other = median(ours, "wall"), median(theirs, "wall")
    row("time to the finished image", f"{wall:.2f} s", f"{other:.2f} s", f"{wall / other:.2f}",
        "<= 1.0", wall <= other)
    size, other = median(ours, "bytes"), median(theirs, "bytes")
    row("size of the image", f"{size / mib:.1f} MiB", f"{other / mib:.1f} MiB",
        f"{size / other:.2f}", "<= 1.2", size <= 1.2 * other)
    row(f"memory beyond the {BUFFER_MIB} MiB of --buffer", f"{peak_extra / mib:.1f} MiB", "", "",
        "<= 32 MiB", peak_extra <= 32 * MIB)
    launch, empty = statistics.median(r[0] for r in restores), statistics.median(starts)
    row("launch to running, against an empty start", f"{launch * 1e3:.0f} ms",
        f"{empty * 1e3:.0f} ms", f"{(launch - empty) * 1e3:+.0f} ms", "<= +150 ms",
        launch <= empty + 0.15)
    print(f"\nall memory is in {statistics.median(r[1] for r in restores):.2f} s after the launch; "
          f"{median(ours, 'faults'):.0f} write faults per snapshot")


@case("speed", "perf", 900)
def speed(t):
    guest = boot(t)
    image, stream = t.path("image"), t.path("stream")
    wait_until(lambda: guest.console.counters("SELFCHECK")[-1]["rounds"] >= 1, 60, "one round")
    ours, theirs, starts, restores = [], [], [], []
    for number in range(RUNS):
        for path in (image, stream):
            if os.path.exists(path):
                os.unlink(path)
        ours.append(run_vmsnap(t, guest, image))
        theirs.append(run_background_snapshot(guest, stream))
        t.say(f"run {number + 1} of {RUNS}: snapshots {ours[-1]['wall']:.2f} s and "
              f"{theirs[-1]['wall']:.2f} s")
    guest.check_no_errors()
    for _ in range(RUNS):
        starts.append(run_empty_start(t, guest))
        restores.append(run_restore(t, guest, image))
    report(guest, ours, theirs, starts, restores,
           max(0, max(run["peak"] for run in ours) - BUFFER_MIB * MIB))


if __name__ == "__main__":
    main()
