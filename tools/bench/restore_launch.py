"""From the launch of vmsnap restore until the guest runs, against the start of the same QEMU with nothing to
load, for images of unlike size."""

import os

from figures import at_most
from guest import Guest
from restores import Watched, prepare_cache
from rounds import in_turns, remove, values
from speed import run_empty_start
from vmsnap import vmsnap

TURNS = 5 # they are quick and noisy
PART = " us" # "VMM started: 28123 us" is a line of -vv


def sizes(quick):
    """(GiB of the guest, MiB of it in use)."""
    return ((1, 256), (2, 512)) if quick else ((1, 512), (8, 2048))


def launch(t, run):
    for gib, used_mib in sizes(run.quick):
        case = f"QEMU (TCG) {gib} GiB, {used_mib / 1024:.2g} GiB in use"
        guest = Guest(t, memory_mib=gib * 1024, work="writer", mib=used_mib, hot_mib=64, rate=0,
                      pattern="idle", interval=50, devices=())
        guest.start().wait_working(seconds=60 + used_mib // 20)
        image = os.path.join(run.work_dir, "image")
        done = vmsnap(t, "snapshot", "--qmp", guest.qmp_path, "--overwrite", image, timeout=120)
        guest.stop()
        if done.code not in (0, 3):
            run.figures.none("launch to running", done.error["message"], case)
            continue
        results = in_turns(t, run, {
            "empty start": lambda g=guest: run_empty_start(t, g),
            "vmsnap": lambda g=guest: by_vmsnap(t, run, g, image)}, at_least=TURNS)
        remove(image)
        report(run.figures, case, results)


def by_vmsnap(t, run, source, image):
    prepare_cache(run, image)
    with Watched(t, image, Guest(t, name="re", **source.shape()), "-vv") as watched:
        parts = launch_parts(watched.restore.result().err)
        found = watched.end()
    return {"wall": found["launch"], "parts": parts,
            "own": found["summary"]["launch_to_running_ns"] * 1e-9}


def launch_parts(text):
    """{step: seconds} of the lines that -vv prints until the guest runs."""
    found = {}
    for line in text.split("\n"):
        name, colon, value = line.rpartition(": ")
        if colon and value.endswith(PART) and value[:-len(PART)].isdigit():
            found[name.rpartition(": ")[2]] = int(value[:-len(PART)]) * 1e-6
    return found


def report(figures, case, results):
    empty = values(results, "empty start", lambda r: r["wall"])
    figures.add("launch to running", case, values(results, "vmsnap", lambda r: r["wall"]), empty,
                "empty start of the same QEMU", "ms", "<= 1.10 of it or +30 ms",
                at_most(1.1, 0.03))
    figures.add("  from the start of the VMM on", case, values(results, "vmsnap", lambda r: r["own"]),
                empty, "empty start of the same QEMU", "ms")
    runs = results["vmsnap"]
    for part in runs[0]["parts"] if isinstance(runs, list) and runs else ():
        figures.add(f"  of the launch: {part}", case,
                    values(results, "vmsnap", lambda r, p=part: r["parts"][p]), unit="ms")
