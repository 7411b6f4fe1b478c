"""The everyday case: a 1 GiB guest that checks itself while it works at a set rate. Its live snapshot
against QEMU's own background-snapshot into zstd, its restore against an empty start of the same QEMU.
Under KVM where Linux boots there, else under TCG."""

import os
import time

from case import Failed, wait_until
from figures import at_most
from guest import Guest
from measure import MemoryWatch, NoFigure, sync_file
from qmp import Qmp, event_seconds
from rounds import in_turns, values
from vmsnap import finish, restored_guest, start_vmsnap

BUFFER_BYTES = 64 << 20 # vmsnap's default
EXTRA_BYTES = 32 << 20
SHAPE = {"memory_mib": 1024, "cpus": 2, "work": "selfcheck", "mib": 512, "rate": 2000,
         "devices": (), "interval": 50}


def boot(t):
    """The Linux guest under KVM if it boots there, else under TCG."""
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        guest = Guest(t, accel="kvm", extra=["-cpu", "host"], **SHAPE).start()
        try:
            guest.wait_working(seconds=8)
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


def run_vmsnap(t, guest, image):
    guest.qmp.take_events()
    mark = guest.console.size()
    process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--overwrite", image)
    memory = MemoryWatch(process.pid)
    result = finish(t, process)
    if result.code not in (0, 3):
        raise NoFigure(f"vmsnap: {result.error['message']}")
    return {"wall": result.summary["wall_ns"] / 1e9, "pause": paused_seconds(guest), "gap": gap_since(guest, mark),
            "bytes": os.path.getsize(image), "peak": memory.end(), "summary": result.summary}


def run_background_snapshot(guest, stream):
    guest.qmp.take_events()
    guest.qmp.command("migrate-set-capabilities",
                      capabilities=[{"capability": "background-snapshot", "state": True}])
    guest.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
    mark, began = guest.console.size(), time.monotonic()
    guest.qmp.command("migrate", uri=f"exec:zstd -q -1 -T0 > {stream}")
    wait_until(lambda: guest.qmp.command("query-migrate").get("status") in ("completed", "failed"),
               120, "the background snapshot is done", every=0.02)
    wall = time.monotonic() - began
    status = guest.qmp.command("query-migrate")
    if status["status"] != "completed":
        raise NoFigure(f"background-snapshot: {status}")
    found = {"wall": wall, "pause": paused_seconds(guest), "gap": gap_since(guest, mark),
             "bytes": os.path.getsize(stream), "durable": wall + sync_file(stream)}
    os.unlink(stream)
    return found


def run_empty_start(t, source):
    """From the launch of the same QEMU until it says that it runs, with nothing to load."""
    guest = Guest(t, name="empty", **source.shape())
    began = time.monotonic()
    guest.process = t.spawn(guest.argv())
    guest.pid = guest.process.pid
    wait_until(lambda: os.path.exists(guest.test_qmp_path), 30, "the QMP socket", every=0.001)
    guest.qmp = Qmp(guest.test_qmp_path, 30.0)
    wait_until(lambda: guest.qmp.status() == "running", 30, "QEMU runs", every=0.001)
    took = time.monotonic() - began
    guest.stop()
    return {"wall": took}


def run_restore(t, source, image):
    restored = restored_guest(t, source, image)
    summary = restored.wait_complete()
    restored.end()
    return {"wall": summary["launch_to_running_ns"] / 1e9, "all": summary["complete_ns"] / 1e9}


def report(figures, case, results):
    def row(name, key, unit, aim="", reached=None):
        figures.add(name, case, values(results, "vmsnap", lambda r: r[key]),
                    values(results, "background-snapshot, zstd", lambda r: r[key]),
                    "background-snapshot, zstd", unit, aim, reached)
    row("pause, STOP to RESUME", "pause", "ms", "<= 15 ms", lambda ours, _: ours <= 0.015)
    row("the guest's own longest gap", "gap", "ms")
    row("time to a finished image", "wall", "s", "<= 1.00 of it", at_most(1.0))
    row("image size", "bytes", "MiB", "<= 1.20 of it", at_most(1.2))
    figures.add("peak memory of all processes", case, values(results, "vmsnap", lambda r: r["peak"]),
                [BUFFER_BYTES + EXTRA_BYTES], "--buffer + 32 MiB", "MiB", "<= it", at_most(1.0))
    figures.add("launch to running", case, values(results, "restore", lambda r: r["wall"]),
                values(results, "empty start", lambda r: r["wall"]), "empty start of the same QEMU",
                "ms", "<= it + 150 ms", at_most(1.0, 0.15))
    figures.add("launch to all memory in", case, values(results, "restore", lambda r: r["all"]))


def speed(t, run):
    guest = boot(t)
    image, stream = (os.path.join(run.work_dir, name) for name in ("image", "stream"))
    wait_until(lambda: guest.console.counters("SELFCHECK")[-1]["rounds"] >= 1, 60, "one round")
    results = in_turns(t, run, {
        "vmsnap": lambda: run_vmsnap(t, guest, image),
        "background-snapshot, zstd": lambda: run_background_snapshot(guest, stream)})
    guest.check_no_errors()
    results |= in_turns(t, run, {
        "empty start": lambda: run_empty_start(t, guest),
        "restore": lambda: run_restore(t, guest, image)})
    report(run.figures, f"QEMU ({guest.accel.upper()}) 1 GiB, 2 vCPUs, 2000 pages/s", results)
    os.unlink(image)
