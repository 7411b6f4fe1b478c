"""What a guest noticed of a snapshot, by its own measurements, and the figures made of it."""

import bisect
import os
import statistics
import threading
import time

BEFORE_SECONDS = 1.0 # the guest's rate before is taken from that long
AFTER_SECONDS = 0.6 # the watch goes on that long, so that the end (UNREGISTER) is in it


class NoFigure(Exception):
    """A method does not work here; the text says why."""


class Observation:
    """One snapshot as the guest saw it. Times in seconds; `series`: (time since the snapshot's start,
    steps per second); `buckets`: (ns of one step, how many)."""

    def __init__(self, rate, seconds, steps, gap, buckets, series):
        self.rate, self.seconds, self.steps, self.gap = rate, seconds, steps, gap
        self.buckets, self.series = buckets, series

    @property
    def lost(self):
        """The integral of the shortfall against the rate before: seconds of work lost."""
        return self.seconds - self.steps / self.rate if self.rate else 0.0

    @property
    def speed(self):
        """What is left of the rate before."""
        return self.steps / (self.rate * self.seconds) if self.rate and self.seconds else 0.0

    def slowest(self, count, *fractions):
        """Quantiles (ns) of the `count` slowest steps: those that met a fault, when there were that
        many faults and a step without one is quicker than any with one."""
        return slowest(self.buckets, count, *fractions)


def slowest(buckets, count, *fractions):
    """Quantiles (ns) of the `count` slowest of (ns, how many) pairs."""
    left, chosen = count, []
    for ns, n in sorted(map(tuple, buckets), reverse=True):
        taken = min(n, left)
        if taken:
            chosen.append((ns, taken))
        left -= taken
    chosen.reverse()
    return [quantile(chosen, f) for f in fractions] if chosen else [0] * len(fractions)


def quantile(buckets, fraction):
    """The value at a fraction of sorted (value, count) pairs."""
    total = sum(n for _, n in buckets)
    rank, seen = fraction * (total - 1), 0
    for value, n in buckets:
        seen += n
        if seen > rank:
            return value
    return 0


def cumulative_at(samples, t):
    """The count at time t by samples [(time, count)...], between two of them in proportion."""
    at = bisect.bisect_right(samples, (t, float("inf")))
    if at == 0:
        return samples[0][1]
    if at == len(samples):
        return samples[-1][1]
    (t0, n0), (t1, n1) = samples[at - 1], samples[at]
    return n0 + (n1 - n0) * (t - t0) / (t1 - t0) if t1 > t0 else n1


def observe(samples, begin, end, gap, buckets):
    """An Observation from samples [(monotonic time, steps so far)...]."""
    rate = (cumulative_at(samples, begin) - cumulative_at(samples, begin - BEFORE_SECONDS))
    rate /= BEFORE_SECONDS
    steps = cumulative_at(samples, end) - cumulative_at(samples, begin)
    series = [(t1 - begin, (n1 - n0) / (t1 - t0))
              for (t0, n0), (t1, n1) in zip(samples, samples[1:])
              if t1 > t0 and begin - BEFORE_SECONDS <= t1 <= end]
    return Observation(rate, end - begin, steps, gap, buckets, series)


class MemoryWatch:
    """The largest proportional size (PSS) that a process and its descendants had together, looked
    at `every` so many seconds from a thread, which takes CPU time from what is measured. Memory that they share
    counts once; in `peak_rss` for each. `peak_own`: what is no file's. `program`: only those of them that run it."""

    def __init__(self, pid, program=None, every=0.05):
        self.pid, self.program, self.every = pid, program, every
        self.peak = self.peak_rss = self.peak_own = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(self.every):
            self._look()

    def _look(self):
        found = list(map(memory_bytes, self._processes()))
        pss, rss, own = (sum(one[what] for one in found) for what in ("pss", "rss", "own"))
        self.peak, self.peak_rss = max(self.peak, pss), max(self.peak_rss, rss)
        self.peak_own = max(self.peak_own, own)

    def _processes(self):
        found = family(self.pid)
        return [p for p in found if runs(p, self.program)] if self.program else found

    def end(self):
        self._stop.set()
        self._thread.join()
        if not self.peak: # it was over sooner
            self._look()
        return self.peak


def family(pid):
    """A process and all below it. Not by a walk over /proc, which would take time from the guest."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", encoding="ascii") as f:
                    found.extend(map(int, f.read().split()))
        except OSError: # it has ended
            pass
    return found


def runs(pid, program):
    try:
        return os.readlink(f"/proc/{pid}/exe") == program
    except OSError: # it has ended
        return False


def memory_bytes(pid):
    """{"pss", "rss", "own"}: proportional, resident, and the proportional part that is no file's."""
    fields = {}
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
            for line in f.readlines()[1:]:
                name, value = line.split(":")
                fields[name] = int(value.split()[0]) * 1024
    except OSError: # it has ended
        pass
    return {"pss": fields.get("Pss", 0), "rss": fields.get("Rss", 0),
            "own": fields.get("Pss_Anon", 0) + fields.get("Pss_Shmem", 0)}


def wait_seconds(seconds=2.0):
    """The method that does nothing."""
    time.sleep(seconds)
    return {"wall": seconds}


def sync_file(path):
    """Brings a finished file to the disk; how long that took."""
    began = time.monotonic()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.monotonic() - began


def spread(values):
    """{median, least, most, n} of numbers."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "n": len(values)}
