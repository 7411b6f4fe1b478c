"""The pause where the guest's own measurements say nothing of it: of a guest with a writable disk under
small writes and fsyncs (`stop` waits for what is in flight and flushes it), and of a guest on KVM
vCPUs in QEMU (firmware alone: Linux does not boot under every KVM)."""

import os
import time

from case import Failed, wait_until
from guest import Guest
from measure import NoFigure
from qmp import QmpError, event_seconds
from rounds import in_turns, remove, values
from vmsnap import finish, start_vmsnap


def paused(guest):
    stamps = {e["event"]: event_seconds(e) for e in guest.qmp.take_events(wait=0.2)
              if e["event"] in ("STOP", "RESUME")}
    if len(stamps) != 2:
        raise Failed(f"STOP and RESUME were expected: {stamps}")
    return stamps["RESUME"] - stamps["STOP"]


def vmsnap(t, guest, image, *options):
    guest.qmp.take_events()
    result = finish(t, start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--overwrite", *options,
                                    image), 120)
    if result.code not in (0, 3):
        raise NoFigure(f"vmsnap: {result.error['message']}")
    return {"wall": result.summary["wall_ns"] / 1e9, "pause": paused(guest), "summary": result.summary}


def stop_alone(guest):
    """`stop` and `cont` with nothing in between: what the disks alone cost. From the command to its
    answer, as vmsnap's stop_ns."""
    guest.qmp.take_events()
    time.sleep(1)
    began = time.monotonic()
    guest.qmp.command("stop")
    stopped = time.monotonic()
    guest.qmp.command("cont")
    return {"wall": time.monotonic() - began, "stop": stopped - began}


def disks(t, run):
    guest = Guest(t, memory_mib=1024, work="syncer", devices=("scratch",))
    guest.boot_up()
    wait_until(lambda: guest.console.counters("SYNCER")[-1]["syncs"] > 20, 60, "some fsyncs")
    image = os.path.join(run.work_dir, "image")
    results = in_turns(t, run, {"vmsnap": lambda: vmsnap(t, guest, image, "--allow", "disks"),
                                "stop alone": lambda: stop_alone(guest)})
    remove(image)
    case = "QEMU (TCG) 1 GiB, writable disk, write and fsync without end"
    run.figures.add("disks: stop", case,
                    values(results, "vmsnap", lambda r: r["summary"]["stop_ns"] * 1e-9),
                    values(results, "stop alone", lambda r: r["stop"]), "QMP stop alone", "ms")
    run.figures.add("disks: pause less the stop", case, part(results, "pause_ns"), unit="ms")
    for key in ("state", "arm", "cont"):
        run.figures.add(f"disks: {key}", case, part(results, key + "_ns"), unit="ms")


def part(results, key):
    return values(results, "vmsnap", lambda r: r["summary"][key] * 1e-9)


def background_snapshot(guest, path):
    guest.qmp.take_events()
    began = time.monotonic()
    try:
        guest.qmp.command("migrate-set-capabilities", capabilities=[
            {"capability": "background-snapshot", "state": True}])
        guest.qmp.command("migrate", uri=f"exec:cat > {path}")
    except QmpError as error:
        raise NoFigure(f"background-snapshot: {error}") from error
    wait_until(lambda: guest.qmp.command("query-migrate").get("status") in ("completed", "failed"),
               60, "QEMU's stream is complete")
    status = guest.qmp.command("query-migrate")["status"]
    remove(path)
    if status != "completed":
        raise NoFigure(f"background-snapshot: {status}")
    return {"wall": time.monotonic() - began, "pause": paused(guest)}


def kvm(t, run):
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        run.figures.none("kvm", "no /dev/kvm")
        return
    guest = Guest(t, memory_mib=1024, accel="kvm", boot="firmware", boot_pages=200000)
    guest.boot_up()
    image, stream = (os.path.join(run.work_dir, name) for name in ("image", "stream"))
    results = in_turns(t, run, {
        "vmsnap": lambda: vmsnap(t, guest, image),
        "background-snapshot": lambda: background_snapshot(guest, stream)})
    remove(image)
    case = "QEMU (KVM) 1 GiB, firmware guest that writes 780 MiB in a row"
    run.figures.add("pause less the stop itself", case, part(results, "pause_ns"),
                    values(results, "background-snapshot", lambda r: r["pause"]),
                    "background-snapshot, STOP to RESUME", "ms", "<= 5 ms",
                    lambda ours, _: ours <= 0.005)
    for key in ("stop", "state", "arm", "cont"):
        run.figures.add(f"  of the pause: {key}", case, part(results, key + "_ns"), unit="ms")
    run.figures.add("time to a finished image", case, values(results, "vmsnap", lambda r: r["wall"]),
                    values(results, "background-snapshot", lambda r: r["wall"]),
                    "background-snapshot")
