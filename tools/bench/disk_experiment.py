"""The pause of a guest with a writable disk that is under a load of small writes and fsyncs: `stop`
waits for what is in flight and flushes it."""

import os
import time

from case import Failed, wait_until
from guest import Guest
from measure import NoFigure
from qmp import event_seconds
from rounds import in_turns, remove, values
from vmsnap import finish, start_vmsnap


def paused(guest):
    stamps = {e["event"]: event_seconds(e) for e in guest.qmp.take_events(wait=0.2)
              if e["event"] in ("STOP", "RESUME")}
    if len(stamps) != 2:
        raise Failed(f"STOP and RESUME were expected: {stamps}")
    return stamps["RESUME"] - stamps["STOP"]


def vmsnap(t, guest, image):
    guest.qmp.take_events()
    began = time.monotonic()
    result = finish(t, start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--overwrite", "--allow",
                                    "disks", image), 120)
    if result.code not in (0, 3):
        raise NoFigure(f"vmsnap: {result.error['message']}")
    return {"wall": time.monotonic() - began, "pause": paused(guest), "summary": result.summary}


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
    results = in_turns(t, run, {"vmsnap": lambda: vmsnap(t, guest, image),
                                "stop alone": lambda: stop_alone(guest)})
    remove(image)
    case = "QEMU (TCG) 1 GiB, writable disk, write and fsync without end"
    run.figures.add("disks: stop", case,
                    values(results, "vmsnap", lambda r: r["summary"]["stop_ns"] * 1e-9),
                    values(results, "stop alone", lambda r: r["stop"]), "QMP stop alone", "ms")
    for key, name in (("pause_ns", "pause less the stop"), ("state_ns", "state"),
                      ("arm_ns", "arm"), ("cont_ns", "cont")):
        run.figures.add(f"disks: {name}", case,
                        values(results, "vmsnap", lambda r, k=key: r["summary"][k] * 1e-9),
                        unit="ms")
