"""The background fill of an idle guest against what decoding and copying alone allow, and what memory
the restorer needs."""

import os

from figures import at_least, at_most
from floor import speed_of
from measure import NoFigure
from mini_restores import Source
from restores import PAGE_BYTES, Watched, middle, plot_memory, prepare_cache, speed_of_decode
from rounds import in_turns, remove, values

COPY_PIECE_BYTES = 64 << 10 # what vmsnap puts in at a time
MEMORY_BYTES, MEMORY_SHARE = 64 << 20, 0.001 # the restorer's: the aim


def fill(t, run):
    source = Source(t, run, "idle", memory_mib=run.mini_mib)
    image, n_cpus = source.image(), os.cpu_count()
    source.end()
    results = in_turns(t, run, {
        "vmsnap": lambda: by_vmsnap(run, source, image),
        "decode": lambda: speed_of_decode(t, image, n_cpus),
        "copy": lambda: speed_of(t, "copy", source.bytes, COPY_PIECE_BYTES, n_cpus)})
    remove(image)
    case = f"minivm ({source.accelerator}) {run.mini_mib / 1024:.0f} GiB, 4K pages, idle"
    report(run.figures, case, results, source.bytes)
    one = middle(results, "vmsnap", lambda r: r["rate"])
    if one:
        plot_memory(run.figures, "filled-minivm-idle", "vmsnap", one["samples"])


def by_vmsnap(run, source, image):
    """From the guest's first instruction to the last page."""
    prepare_cache(run, image)
    with Watched(source.t, image, source.place(), "--prefetch", "none") as watched:
        summary = watched.wait_complete()
        seconds = (summary["complete_ns"] - summary["launch_to_running_ns"]) * 1e-9
        return {**watched.end(), "rate": summary["pages_filled"] * PAGE_BYTES / seconds}


def report(figures, case, results, ram_bytes):
    rates = {m: values(results, m, lambda r: r["rate"]) for m in results}
    figures.add("background fill", case, rates["vmsnap"], one_after_the_other(rates),
                "1 / (1/decode + 1/copy), all CPUs", "GB/s", ">= 0.80 of it", at_least(0.8))
    for part, what in (("decode", "decoding the image alone, all CPUs"),
                       ("copy", "UFFDIO_COPY of 64 KiB alone, all CPUs")):
        figures.add("background fill", case, rates["vmsnap"], rates[part], what, "GB/s")
    figures.add("restorer's peak memory", case, values(results, "vmsnap", lambda r: r["peak"]),
                [MEMORY_BYTES + MEMORY_SHARE * ram_bytes], "64 MiB + 0.1 % of RAM", "MiB",
                "<= it", at_most(1.0))


def one_after_the_other(rates):
    """Each byte is decoded and then copied, by CPUs that do nothing else: round by round."""
    for part in ("decode", "copy"):
        if isinstance(rates[part], NoFigure):
            return rates[part]
    return [1 / (1 / d + 1 / c) for d, c in zip(rates["decode"], rates["copy"])]
