"""Experiments with the Linux guest in QEMU: vmsnap beside what QEMU itself offers."""

import os
import statistics

from case import tool
from figures import at_most
from floor import floors
from linux_guest import LinuxGuest
from measure import NoFigure
from rounds import in_turns, remove, values
from size import clusters_alone

PATTERNS = ("idle", "random", "sequential", "hot")
INDEX_SHARE = 0.001 # of guest memory: the aim for vmsnap's own
BUFFER_BYTES = 64 << 20 # vmsnap's default cap
EXTRA_BYTES = 16 << 20


def methods_of(guest, run, raw):
    methods = {
        "vmsnap": guest.vmsnap,
        "nothing": guest.nothing,
        "background-snapshot": lambda: guest.background_snapshot(False),
        "background-snapshot, zstd": lambda: guest.background_snapshot(True),
        "stop and save": guest.stop_and_save,
        "zstd -1 -T0 alone": lambda: guest.compress_beside(raw),
    }
    if guest.pattern == "random":
        methods |= floors(guest.t, guest)
    return methods


def export_raw(t, guest, image):
    """The bytes of a snapshot, as a raw file: what zstd alone compresses."""
    raw = guest.path("raw")
    done = t.run([tool("vmsnap"), "export", image, "--format", "raw", raw], timeout=180)
    if done.returncode:
        raise NoFigure(f"export: {done.stderr.strip()}")
    with open(raw, "rb", buffering=0) as f: # into the page cache: memory is what is compared with
        while f.read(4 << 20):
            pass
    return raw


def linux_guest(t, run, pattern):
    """One guest with one workload, every method in turns."""
    guest = LinuxGuest(t, run.work_dir, run.linux_mib, run.linux_mib // 2, pattern)
    case = f"QEMU (TCG) {run.linux_mib / 1024:.0f} GiB, half in use, {pattern}"
    image = guest.vmsnap()["path"] # the first one splits huge pages: for no method
    raw = export_raw(t, guest, image)
    results = in_turns(t, run, methods_of(guest, run, raw))
    if pattern == "random":
        image_size(run, case, image)
    remove(raw)
    remove(image)
    guest.guest.stop()
    report(run.figures, case, pattern, results)
    plot(run.figures, "QEMU", pattern, results)


def report(figures, case, pattern, results):
    def of(method, function):
        return values(results, method, function)
    bare, piped = "background-snapshot", "background-snapshot, zstd"
    pauses(figures, case, of, bare)
    figures.add("longest stall in the guest", case, of("vmsnap", lambda r: r["seen"].gap),
                of(bare, lambda r: r["seen"].gap), bare, "ms", "<= 0.20 of it", at_most(0.2))
    figures.add("longest stall in the guest", case, of("vmsnap", lambda r: r["seen"].gap),
                of("nothing", lambda r: r["seen"].gap), "no snapshot at all, 2 s", "ms")
    if pattern != "idle":
        figures.add("guest work lost", case, of("vmsnap", lambda r: r["seen"].lost),
                    of(bare, lambda r: r["seen"].lost), bare, "s", "<= 0.50 of it", at_most(0.5))
        figures.add("guest work lost", case, of("vmsnap", lambda r: r["seen"].lost),
                    of(piped, lambda r: r["seen"].lost), piped)
    if pattern == "idle":
        figures.add("time to a finished image", case, of("vmsnap", lambda r: r["wall"]),
                    of(piped, lambda r: r["wall"]), piped, "s", "<= 0.50 of it", at_most(0.5))
    else:
        figures.add("time to a finished image", case, of("vmsnap", lambda r: r["wall"]),
                    of("zstd -1 -T0 alone", lambda r: r["wall"]), "zstd -1 -T0 alone, same guest",
                    "s", "<= 1.20 of it", at_most(1.2))
        figures.add("time to a finished image", case, of("vmsnap", lambda r: r["wall"]),
                    of(piped, lambda r: r["wall"]), piped)
    figures.add("until huge pages are back too", case, of("vmsnap", lambda r: r["command"]))
    cap_and_share = of("vmsnap", lambda r: BUFFER_BYTES + EXTRA_BYTES +
                       INDEX_SHARE * r["summary"]["ram_bytes"])
    figures.add("peak memory of all processes", case, of("vmsnap", lambda r: r["peak"]),
                cap_and_share, "--buffer + 0.1 % of RAM + 16 MiB", "MiB", "<= it", at_most(1.0))
    if pattern == "random":
        faults_against_floor(figures, case, results)


def pauses(figures, case, of, bare):
    figures.add("pause less the stop itself", case,
                of("vmsnap", lambda r: (r["summary"]["pause_ns"]) * 1e-9),
                of(bare, lambda r: r["pause"]), bare + ", STOP to RESUME", "ms", "<= 5 ms",
                lambda ours, _: ours <= 0.005)
    for part in ("stop", "state", "arm", "cont"):
        figures.add(f"  of the pause: {part}", case,
                    of("vmsnap", lambda r, key=part + "_ns": r["summary"][key] * 1e-9), unit="ms")
    figures.add("STOP to RESUME", case, of("vmsnap", lambda r: r["pause"]),
                of("stop and save", lambda r: r["pause"]), "stop and save", "ms")


def fault_quantiles(results, method, fraction):
    def of(run):
        return run["seen"].slowest(run["faults"] if "faults" in run
                                   else run["summary"]["write_faults"], fraction)[0] * 1e-9
    return values(results, method, of)


def faults_against_floor(figures, case, results, aimed=False):
    """`aimed`: the threads of both were placed alike; else the scheduler placed them."""
    for name, fraction, factor in (("p50", 0.5, 1.25), ("p99", 0.99, 3.0)):
        ours = fault_quantiles(results, "vmsnap", fraction)
        for other in (m for m in results if m.startswith("floor")):
            figures.add(f"write fault seen by the guest, {name}", case, ours,
                        fault_quantiles(results, other, fraction), other, "us",
                        f"<= {factor:.2f} of it" if aimed else "",
                        at_most(factor) if aimed else None)


def image_size(run, case, image):
    try:
        alone, whole = clusters_alone(run.t, image, run.work_dir)
    except NoFigure as why:
        run.figures.none("image size", why, case)
        return
    size = os.path.getsize(image)
    run.figures.add("image size", case, [size], [alone], "the same 16 KiB clusters alone", "MiB",
                    "<= 1.02 of it", at_most(1.02))
    run.figures.add("image size", case, [size], [whole], "zstd -1 over the whole", "MiB",
                    "<= 1.20 of it", at_most(1.2))


def plot(figures, vmm, pattern, results):
    """The round whose loss is the median, of each method."""
    for method, runs in results.items():
        runs = [r for r in runs if "seen" in r] if isinstance(runs, list) else []
        if not runs:
            continue
        middle = statistics.median_low([r["seen"].lost for r in runs])
        run = next(r for r in runs if r["seen"].lost == middle)
        if vmm != "placed" and "floor" not in method and pattern != "idle":
            figures.plot(f"throughput-{vmm}-{pattern}", method, run["seen"].series)
        if pattern == "random" and (method == "vmsnap" or "floor" in method):
            count = run["faults"] if "faults" in run else run["summary"]["write_faults"]
            fractions = [i / 200 for i in range(1, 200)]
            points = zip((ns / 1000 for ns in run["seen"].slowest(count, *fractions)), fractions)
            figures.plot(f"faults-{vmm}", method, points)
