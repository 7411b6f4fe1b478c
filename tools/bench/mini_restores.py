"""minivm restored: what it is restored from, and a restore in which its guest works and measures."""

import os

from case import Failed, end_process, wait_until
from measure import NoFigure
from minivm import MiniVm, MiniVmPlace
from restores import Watched, prepare_cache
from vmsnap import vmsnap

MEMORY_MIB, RATE = 1024, 10000
STEP_BYTES = 4 << 20
SNAPSHOT_SECONDS = 120
LOOK_SECONDS = 0.05
SLOW_NS = 10000 # a first touch that took longer waited for its page


class Source:
    """A minivm to be snapshotted, all of whose memory is populated. `shape` is its command line."""

    def __init__(self, t, run, pattern, memory_mib=MEMORY_MIB, rate=RATE):
        self.t, self.run = t, run
        self.shape = ["--memory", f"{memory_mib}M", "--populate", f"{memory_mib}M", "--pattern",
                      pattern, "--rate", str(rate)]
        try:
            self.vm = MiniVm(t, *self.shape, seconds=60.0)
        except Failed as why:
            raise NoFigure(str(why)) from why
        self.bytes = self.vm.ram["bytes"]
        self.accelerator = self.vm.description["accelerator"]

    def path(self, name):
        return os.path.join(self.run.work_dir, name)

    def image(self, name="image"):
        path = self.path(name)
        done = vmsnap(self.t, "snapshot", "--qmp", self.vm.control, "--overwrite", path,
                      timeout=SNAPSHOT_SECONDS)
        if done.code not in (0, 3):
            raise NoFigure(f"vmsnap snapshot: {done.error['message']}")
        return path

    def place(self):
        return MiniVmPlace(self.t, *self.shape, accel=self.accelerator)

    def dump(self):
        """The memory of the stopped guest as a file."""
        path = self.path("memory")
        with open(f"/proc/{self.vm.pid}/mem", "rb", 0) as memory, open(path, "wb") as f:
            memory.seek(self.vm.ram["hva"])
            for _ in range(0, self.bytes, STEP_BYTES):
                f.write(memory.read(STEP_BYTES))
        return path

    def end(self):
        self.vm.qmp.close()
        end_process(self.vm.process)


class Worker:
    """Lets the guest go on until it has made n_writes. `reads`: how long its first touches took, (ns,
    how many); `waits`: (monotonic, how many of them so far had waited for their page)."""

    def __init__(self, vm, n_writes, seconds=60):
        self.vm, self.n_writes = vm, n_writes
        self.reads, self.waits = [], []
        wait_until(self._look, seconds, f"{n_writes} writes", every=LOOK_SECONDS)

    def _look(self):
        stats = self.vm.stats(full=True)
        if stats["wrong_pages"]:
            raise Failed(f"{stats['wrong_pages']} pages of the guest are wrong")
        self.reads = stats["read"]["buckets"]
        self.waits.append((stats["now_ns"] * 1e-9,
                           sum(n for ns, n in self.reads if ns >= SLOW_NS)))
        return stats["writes"] >= self.n_writes


def restored(run, image, source, options, n_writes, wrapper=(), before=None):
    """A restore in which the guest makes n_writes, after before(watched, guest) if given. What
    Watched.end() tells, `reads` as above, and `waits` in seconds since the launch."""
    prepare_cache(run, image)
    place = source.place()
    with Watched(source.t, image, place, *options, wrapper=wrapper) as watched:
        if before:
            before(watched, place)
        done = Worker(place, n_writes)
        found = watched.end()
    return {**found, "reads": done.reads,
            "waits": [(0.0, 0), *((t - watched.began, n) for t, n in done.waits)]}
