#!/usr/bin/python3
"""--level, --threads, --bwlimit and --buffer do what they say, on a VM at work. Rates are judged from
above only and memory by amounts: a host without a CPU to spare makes none of this fail."""

import os
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main  # noqa: E402
from minivm import MiniVm  # noqa: E402
from vmsnap import finish, snapshot, start_vmsnap, vmsnap  # noqa: E402

MIB = 1 << 20
RATE = 8 * MIB
BUFFER = 16 * MIB
# A fortieth of a second's bytes may go at once, and as much be made up for by who woke up late.
RATE_SLACK = RATE // 20


class Watcher:
    """Looks at all processes of a vmsnap every so often: the most memory that they held together,
    their threads' names, the most bytes that they had written for their time."""

    def __init__(self, t, process):
        self.process = process
        self.peak_bytes = self.samples = self.beyond_rate = 0
        self.names = {}
        self.began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        t.defer(self.stop)

    def stop(self):
        self._end.set()
        self._thread.join()

    def _watch(self):
        while not self._end.wait(0.02):
            pids = [self.process.pid] + descendants(self.process.pid)
            try:
                pss = sum(proportional_bytes(pid) for pid in pids)
                names = [name for pid in pids for name in thread_names(pid)]
                written = sum(written_bytes(pid) for pid in pids)
            except OSError: # one of them has just ended
                continue
            self.samples += 1
            self.peak_bytes = max(self.peak_bytes, pss)
            self.beyond_rate = max(self.beyond_rate,
                                   written - RATE * (time.monotonic() - self.began))
            for name in names:
                self.names[name] = max(self.names.get(name, 0), names.count(name))


def proportional_bytes(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as f:
        return next(int(line.split()[1]) << 10 for line in f if line.startswith("Pss:"))


def thread_names(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/comm", encoding="ascii") as f:
            found.append(f.read().strip())
    return found


def written_bytes(pid):
    """To the disk; that of O_DIRECT writes is known at once."""
    with open(f"/proc/{pid}/io", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("write_bytes"))


def check_memory(t, vm, watcher):
    allowed = BUFFER + vm.ram["bytes"] // 1000 + 16 * MIB
    t.say(f"{watcher.peak_bytes / MIB:.1f} MiB at most, in {watcher.samples} looks; "
          f"allowed {allowed / MIB:.1f}")
    t.check(watcher.samples > 10, f"{watcher.samples} looks")
    t.check(BUFFER // 2 < watcher.peak_bytes <= allowed, f"peak {watcher.peak_bytes}")


def check_waited(t, vm, result, writes_before):
    """The guest was slowed down and never stopped for long; then it is free."""
    summary = result.summary
    writes = vm.writes() - writes_before
    t.say(f"{summary['image_bytes'] / MIB:.1f} MiB in {summary['wall_ns'] / 1e9:.1f} s; writers waited "
          f"{summary['throttled_ns'] / 1e9:.2f} s, {summary['write_faults']} faults, {writes} writes")
    t.check(summary["throttled_ns"] > 0, "writers waited, and it is told")
    t.check(writes > summary["write_faults"] > 0, f"the guest went on: {writes} writes")
    vm.wait_for_writes(5000)
    vm.stop()
    vm.check_right("after the snapshot")


def busy_vm(t):
    """Writes faster than 8 MiB/s can be saved, with more of memory than the buffers hold."""
    vm = MiniVm(t, "--memory", "80M", "--populate", "72M", "--cpus", "2")
    vm.wait_for_writes(2000)
    return vm


@case("minivm.limits.bwlimit", "kernel", 60)
def bwlimit(t):
    vm = busy_vm(t)
    before, image = vm.writes(), t.path("image")
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, "--bwlimit", "8M", "--buffer", "16M",
                           "--threads", "3", image)
    watcher = Watcher(t, process)
    result = finish(t, process)
    watcher.stop()
    t.equal(result.code, 0, result.text())
    check_waited(t, vm, result, before)
    check_memory(t, vm, watcher)
    t.equal(watcher.names.get("vmsnap-encode"), 3, f"--threads 3 among {watcher.names}")
    size = os.path.getsize(image)
    least_ns = (size - RATE_SLACK) * 1e9 / RATE
    t.check(result.summary["wall_ns"] >= least_ns, f"{size} bytes take {least_ns / 1e9:.2f} s")
    t.check(watcher.beyond_rate <= RATE_SLACK + MIB, f"{watcher.beyond_rate} bytes too early")
    t.equal(vmsnap(t, "verify", image).code, 0, "verify")


@case("minivm.limits.bwlimit-pipe", "kernel", 60)
def bwlimit_pipe(t):
    """A reader that takes all that comes: at no time has more come than the limit lets through."""
    vm = busy_vm(t)
    before, image = vm.writes(), t.path("image")
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, "--bwlimit", "8M", "--buffer", "16M",
                           "--threads", "1", "-")
    watcher = Watcher(t, process)
    total = beyond = 0
    with open(image, "wb") as f:
        while data := os.read(process.stdout.fileno(), MIB):
            f.write(data)
            total += len(data)
            beyond = max(beyond, total - RATE * (time.monotonic() - watcher.began))
    result = finish(t, process)
    watcher.stop()
    t.equal(result.code, 0, result.text())
    check_waited(t, vm, result, before)
    check_memory(t, vm, watcher)
    t.equal(watcher.names.get("vmsnap-encode"), 1, f"--threads 1 among {watcher.names}")
    t.check(beyond <= RATE_SLACK, f"{beyond} bytes too early")
    t.equal(total, result.summary["image_bytes"], "bytes that came")
    t.equal(vmsnap(t, "verify", image).code, 0, "verify")


@case("minivm.limits.slow-reader", "kernel", 60)
def slow_reader(t):
    """The same, held back by the reader of a pipe, which at first does not read at all."""
    vm = busy_vm(t)
    before, image = vm.writes(), t.path("image")
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, "--buffer", "16M", "-")
    watcher = Watcher(t, process)
    time.sleep(1)
    with open(image, "wb") as f:
        while data := os.read(process.stdout.fileno(), 256 << 10):
            f.write(data)
            time.sleep(len(data) / RATE)
    result = finish(t, process)
    watcher.stop()
    t.equal(result.code, 0, result.text())
    check_waited(t, vm, result, before)
    check_memory(t, vm, watcher)
    t.equal(vmsnap(t, "verify", image).code, 0, "verify")


@case("minivm.limits.level", "kernel", 60)
def level(t):
    """The same memory, harder compressed: smaller, and the same in all else that info and verify tell."""
    vm = MiniVm(t, "--memory", "32M", "--populate", "24M", "--pattern", "idle")
    t.equal(vm.qmp.status(), "running", "status")
    told, sizes = [], []
    for n in ("1", "3", "12"):
        image = t.path("image" + n)
        summary = snapshot(t, vm, image, "--level", n).summary
        info, verify = (vmsnap(t, command, image).summary for command in ("info", "verify"))
        t.equal(verify["pages_damaged"], 0, f"level {n}: damaged pages")
        t.equal(info["image_bytes"], os.path.getsize(image), f"level {n}: size")
        told.append((info["ram_bytes"], info["pages_stored"], info["pages_zero"],
                     verify["pages_checked"], summary["pages_stored"]))
        sizes.append(summary["image_bytes"])
    t.equal(told, told[:1] * 3, "what is in the images")
    t.check(sizes[0] > sizes[1] > sizes[2], f"sizes: {sizes}")
    for wrong in ("0", "20", "-1", "x", "1.5", ""):
        result = vmsnap(t, "snapshot", "--qmp", vm.control, "--level", wrong, t.path("none"))
        t.equal(result.code, 2, f"exit status of --level '{wrong}'")
    t.check(not os.path.exists(t.path("none")), "nothing is published")


if __name__ == "__main__":
    main()
