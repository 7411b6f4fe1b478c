"""The working set of a restored minivm: its guest touches the same pages in the same order each time, and
what the prefetch leaves of its faults is counted. Nothing is filled beside it."""

import time

from case import wait_until
from figures import at_most
from measure import NoFigure, slowest
from mini_experiments import PATTERNS
from mini_restores import RATE, Source, Worker, restored
from restores import has_option, middle, plot_memory, sibling
from rounds import in_turns, remove, values

STILL_SAMPLES = 25 # no page came in while it was looked at so often, every 10 ms: all is in
NO_LEARNING = "this build's vmsnap restore has no --learn"
LEFT = 0.03


def touches(t, run, pattern):
    source = Source(t, run, PATTERNS[pattern])
    source.vm.wait_for_writes(1000)
    image = source.image() # of a guest that runs, so it has a hot list
    source.vm.stop()
    n_writes = 10000 if run.quick else 20000
    learned = learn(t, run, source, image, n_writes)

    def by_vmsnap(path, *options, before=None):
        return lambda: restored(run, path, source, ["--no-fill", *options], n_writes,
                                before=before)
    results = in_turns(t, run, {
        "no prefetch": by_vmsnap(image, "--prefetch", "none"),
        "hot list": by_vmsnap(image),
        "learned": by_vmsnap(learned) if learned else no_learning,
        "learned, all in before it runs": by_vmsnap(learned, "--paused", before=run_when_in)
                                          if learned else no_learning,
        "warm": lambda: warm(source, n_writes)})
    source.end()
    remove(image)
    case = f"minivm ({source.accelerator}) 1 GiB, {pattern}, {RATE}/s, {n_writes} writes"
    report(run.figures, case, results)
    plot(run.figures, pattern, results)


def learn(t, run, source, image, n_writes):
    """The image's other name, beside which lies what was learned; None if this build learns nothing."""
    if not has_option(t, "--learn"):
        return None
    path = sibling(t, run, image)
    restored(run, path, source, ["--no-fill", "--learn"], n_writes)
    return path


def no_learning():
    raise NoFigure(NO_LEARNING)


def run_when_in(watched, guest):
    """The guest is let run once nothing comes in any more."""
    samples = watched.watch.samples

    def still():
        latest = samples[-STILL_SAMPLES:]
        return len(latest) == STILL_SAMPLES and latest[0][1] == latest[-1][1]
    wait_until(still, 60, "the prefetch is over", every=0.02)
    guest.cont()


def warm(source, n_writes):
    """The guest that was snapshotted, whose memory is all there, goes on."""
    began = time.monotonic()
    source.vm.stats(reset=True)
    source.vm.cont()
    reads = Worker(source.vm, n_writes).reads
    source.vm.stop()
    return {"reads": reads, "wall": time.monotonic() - began}


def report(figures, case, results):
    def row(name, method, of, unit, aim="", reached=None, against="no prefetch"):
        figures.add(f"{name}: {method}", case, values(results, method, of),
                    values(results, against, of), against, unit, aim, reached)
    for method in ("hot list", "learned", "learned, all in before it runs"):
        aimed = method.startswith("learned")
        row("faults left by the prefetch", method, lambda r: r["faults"], "",
            f"<= {LEFT:.2f} of it" if aimed else "", at_most(LEFT) if aimed else None)
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        row(f"demand fault seen by the guest, {name}", "hot list",
            lambda r, f=fraction: slowest(r["reads"], r["faults"], f)[0] * 1e-9, "us")
    first = results["no prefetch"]
    if isinstance(first, NoFigure) or not first:
        return
    count = first[0]["faults"] # the same touches in all of them: as many as are the first of a cluster
    for name, fraction in (("p50", 0.5), ("p99", 0.99)):
        for method in (m for m in results if m != "warm"):
            row(f"first touch of a cluster, {name}", method,
                lambda r, f=fraction: slowest(r["reads"], count, f)[0] * 1e-9, "us",
                against="warm")


def plot(figures, pattern, results):
    for method in (m for m in results if m != "warm"):
        one = middle(results, method, lambda r: r["faults"])
        if one:
            figures.plot(f"waits-minivm-{pattern}", method, one["waits"])
            plot_memory(figures, f"filled-minivm-{pattern}", method, one["samples"])
