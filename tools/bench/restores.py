"""A restore that is watched from outside: when the guest ran, what came in when, how many faults vmsnap
has answered by then, what its own processes needed."""

import os
import re
import shutil
import signal
import tempfile
import threading
import time

from case import Failed, tool
from floor import speed_of
from measure import MemoryWatch, NoFigure
from vmsnap import Restore, vmsnap

LOOK_SECONDS = 0.01
ASK_SECONDS = 0.05
PAGE_BYTES = 4096
READ_BYTES = 4 << 20


class VmmWatch:
    """What a VMM has in memory, looked at every 10 ms."""

    def __init__(self, pid, began):
        self.pid, self.began = pid, began
        self.samples = [(0.0, 0)] # (seconds since `began`, bytes)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(LOOK_SECONDS):
            try:
                with open(f"/proc/{self.pid}/statm", encoding="ascii") as f:
                    pages = int(f.read().split()[1])
            except OSError: # it has ended
                return
            self.samples.append((time.monotonic() - self.began, pages * PAGE_BYTES))

    def end(self):
        self._stop.set()
        self._thread.join()
        return self.samples


class TimedRestore(Restore):
    """Knows when its lines came, not only when somebody looked for them."""

    def __init__(self, *args, **options):
        self.came = {} # type of object -> monotonic
        self.demanded = [] # (monotonic, faults so far), of the lines that SIGUSR1 asks for
        super().__init__(*args, **options)

    def _read(self, name, pipe):
        while True:
            data = os.read(pipe.fileno(), 65536)
            if not data:
                return
            now = time.monotonic()
            self._text[name] += data
            self._note(name, data, now)

    def _note(self, name, data, now):
        for kind in ("running", "summary"):
            if kind not in self.came and f'"type":"{kind}"'.encode() in self._text[name]:
                self.came[kind] = now
        for found in re.findall(rb"(\d+) faults?\b", data) if name == "err" else ():
            if not self.demanded or int(found) >= self.demanded[-1][1]:
                self.demanded.append((now, int(found)))


class Asker:
    """Sends SIGUSR1 to a process every 50 ms: vmsnap restore says how far it is."""

    def __init__(self, process):
        self.process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(ASK_SECONDS) and self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)

    def end(self):
        self._stop.set()
        self._thread.join()


class Watched:
    """A restore under watch. `launch`: seconds from the start of the vmsnap process to its word that the
    guest runs. `asking`: how many faults it has answered is asked for meanwhile. To be used by `with`: nothing
    of it is left then, whatever happened."""

    def __init__(self, t, image, place, *options, asking=False, **more):
        self.memory = MemoryWatch(os.getpid(), os.path.realpath(tool("vmsnap")))
        self.watch = self.asker = None
        self.restore = TimedRestore(t, image, place, *options, **more)
        try:
            self.restore.wait_running()
        except Failed as why:
            self._end_all()
            raise NoFigure(str(why)) from why
        self.began = self.restore.began
        self.launch = self.restore.came["running"] - self.began
        self.watch = VmmWatch(self.restore.pid, self.began)
        self.asker = Asker(self.restore.process) if asking else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end_all()

    def _end_all(self):
        for one in (self.asker, self.watch, self.memory):
            if one:
                one.end()
        self.restore.give_up()

    def wait_complete(self, seconds=120):
        return self.restore.wait_complete(seconds)

    def end(self):
        """Ends the VMM; what was seen of the whole."""
        if self.asker:
            self.asker.end()
        samples, peak = self.watch.end(), self.memory.end()
        summary = self.restore.end().summary
        demanded = [(t - self.began, n) for t, n in self.restore.demanded]
        return {"launch": self.launch, "samples": samples, "peak": peak, "demanded": demanded,
                "wall": time.monotonic() - self.began, "summary": summary,
                "faults": summary["demand_faults"]}


def has_option(t, name):
    """Is it an option of this build's `vmsnap restore`?"""
    shown = vmsnap(t, "restore", "--help", json_=False)
    return name in shown.out.split()


def sibling(t, run, image):
    """The same file (a hard link) in a folder of its own: what is learned lies beside the image, and is
    for one of the methods only."""
    folder = tempfile.mkdtemp(prefix="learned-", dir=run.work_dir)
    t.defer(shutil.rmtree, folder)
    path = os.path.join(folder, os.path.basename(image))
    os.link(image, path)
    return path


def prepare_cache(run, path):
    """All of the file into the page cache; or, if the run is a cold one, out of it. vmsnap writes its images
    past the cache, so that one that was just made is not there. Of the files of this run only."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if run.cold:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            read_all(fd)
    finally:
        os.close(fd)


def read_all(fd):
    while os.read(fd, READ_BYTES):
        pass


def speed_of_decode(t, image, n_threads):
    """With the image in the page cache, also in a cold run: what decoding alone costs."""
    with open(image, "rb", 0) as f:
        read_all(f.fileno())
    return speed_of(t, "decode", image, n_threads)


def plot_memory(figures, plot, label, samples):
    figures.plot(plot, label, [(seconds, count / (1 << 20)) for seconds, count in samples])


def middle(results, method, of):
    """The run of a method whose of(run) is the median, or None."""
    found = results.get(method)
    if not isinstance(found, list) or not found:
        return None
    return sorted(found, key=of)[(len(found) - 1) // 2]
