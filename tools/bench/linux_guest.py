"""A Linux guest in stock QEMU whose program `writer` (tests/guest) works and measures itself, and the
ways of taking a snapshot of it."""

import os
import threading
import time

from case import Failed, wait_until
from guest import Guest, parse_fields
from measure import (AFTER_SECONDS, BEFORE_SECONDS, MemoryWatch, NoFigure, observe,
                     sync_file, wait_seconds)
from qmp import QmpError, event_seconds
from vmsnap import finish, start_vmsnap

BUCKETS_PER_OCTAVE = 8 # of writer's "slow" list
UNLIMITED = 1 << 40
SNAPSHOT_SECONDS = 180


class Samples:
    """Reads the lines of `writer` as they come, each with the time of its coming."""

    def __init__(self, console):
        self.console = console
        self.lines = [] # (monotonic, fields)
        self._at = 0
        self._rest = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.01):
            self._read()

    def _read(self):
        if self.console.size() <= self._at:
            return
        now, text = time.monotonic(), self.console.text(self._at)
        self._at += len(text.encode())
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            if line.startswith("WRITER up="):
                self.lines.append((now, parse_fields(line)))

    def end(self):
        self._stop.set()
        self._thread.join()

    def latest(self):
        return self.lines[-1][0] if self.lines else 0.0

    def observation(self, begin, resumed, end):
        """What the guest noticed from `begin` to `end` (monotonic). The latencies are those since
        `resumed`: before the pause vmsnap's live arming lets writes through, which saves nothing."""
        lines = list(self.lines)
        inside = [fields for t, fields in lines if begin <= t <= end]
        if not inside:
            raise NoFigure("the guest printed nothing for the whole snapshot")
        counts = {}
        for fields in (f for t, f in lines if resumed <= t <= end):
            for one in str(fields.get("slow") or "").split(","):
                bucket, _, n = one.partition(":")
                if n:
                    counts[int(bucket)] = counts.get(int(bucket), 0) + int(n)
        buckets = [(1024 * 2 ** ((b + 0.5) / BUCKETS_PER_OCTAVE), n) for b, n in counts.items()]
        gap = max(fields["gap_ms"] for fields in inside) / 1000
        return observe([(t, f["steps"]) for t, f in lines], begin, end, gap, buckets)


class LinuxGuest:
    """A guest with one vCPU that works in one pattern (idle, random, sequential, hot)."""

    def __init__(self, t, work_dir, memory_mib, used_mib, pattern, thp=True):
        self.t, self.work_dir, self.pattern = t, work_dir, pattern
        self.memory_mib, self.used_mib = memory_mib, used_mib
        self.guest = Guest(t, memory_mib=memory_mib, work="writer", mib=used_mib, hot_mib=64, rate=0,
                           pattern=pattern, interval=50, devices=(), thp=thp)
        self.guest.start()
        self.guest.wait_working(seconds=60 + used_mib // 20)
        self.samples = Samples(self.guest.console)
        t.defer(self.samples.end)
        self.qmp = self.guest.qmp

    def watched(self, take):
        """Calls take() while the guest is watched; its dict with `seen` (Observation) added, and
        `pause`, from STOP to RESUME by QEMU's own stamps."""
        time.sleep(BEFORE_SECONDS + 0.2)
        self.qmp.take_events()
        begin = time.monotonic()
        result = take()
        end = max(time.monotonic(), begin + result["wall"])
        time.sleep(AFTER_SECONDS)
        resumed = begin
        if result.pop("paused", True):
            stamps = self._stamps()
            result["pause"] = stamps["RESUME"] - stamps["STOP"]
            resumed = stamps["RESUME"] - time.time() + time.monotonic()
        result["seen"] = self.samples.observation(begin, resumed, end + AFTER_SECONDS)
        self.guest.check_no_errors()
        return result

    def _stamps(self):
        stamps = {e["event"]: event_seconds(e) for e in self.qmp.take_events(wait=0.2)
                  if e["event"] in ("STOP", "RESUME")}
        if len(stamps) != 2:
            raise Failed(f"STOP and RESUME were expected: {stamps}")
        return stamps

    def pid(self):
        return self.guest.pid

    def memory(self):
        return self.guest.ram_mapping()

    def path(self, name):
        return os.path.join(self.work_dir, name)

    def nothing(self):
        """What the guest sees when nobody takes a snapshot: what the machine's load does to it."""
        return self.watched(lambda: {**wait_seconds(), "paused": False})

    def vmsnap(self, *options):
        """`vmsnap snapshot` to a file: the image is kept as `image`."""
        image = self.path("image")
        process = None

        def take():
            nonlocal process
            began = time.monotonic()
            process = start_vmsnap(self.t, "snapshot", "--qmp", self.guest.qmp_path, "--overwrite",
                                   *options, image)
            memory = MemoryWatch(process.pid)
            result = finish(self.t, process, SNAPSHOT_SECONDS)
            wall = time.monotonic() - began
            if result.code not in (0, 3):
                raise NoFigure(f"vmsnap: {result.error['message']}")
            image_done = result.summary["wall_ns"] / 1e9
            return {"wall": image_done, "durable": image_done, "command": wall,
                    "bytes": os.path.getsize(image),
                    "peak": memory.end(), "summary": result.summary, "path": image}
        return self.watched(take)

    def background_snapshot(self, compress):
        """QEMU's own, into `cat` or `zstd -1 -T0`."""
        self._capability(True)
        try:
            return self._migrate("zstd -q -1 -T0" if compress else "cat")
        finally:
            self._capability(False)

    def stop_and_save(self):
        """The guest stands still until all of it is in the file."""
        def save():
            self.qmp.command("stop")
            try:
                return self._run_migration("cat")
            finally:
                self.qmp.command("cont")
        return self.watched(save)

    def _capability(self, state):
        try:
            self.qmp.command("migrate-set-capabilities", capabilities=[
                {"capability": "background-snapshot", "state": state}])
            self.qmp.command("migrate-set-parameters", max_bandwidth=UNLIMITED)
        except QmpError as error:
            raise NoFigure(f"background-snapshot: {error}") from error

    def _migrate(self, filter_):
        return self.watched(lambda: self._run_migration(filter_))

    def _run_migration(self, filter_):
        path = self.path("stream")
        began = time.monotonic()
        self.qmp.command("migrate-set-parameters", max_bandwidth=UNLIMITED)
        self.qmp.command("migrate", uri=f"exec:{filter_} > {path}")
        status = wait_until(self._migration_over, SNAPSHOT_SECONDS, "QEMU's stream is complete",
                            every=0.02)
        wall = time.monotonic() - began
        if status["status"] != "completed":
            raise NoFigure(f"migrate: {status}")
        size, synced = os.path.getsize(path), sync_file(path)
        os.unlink(path)
        return {"wall": wall, "durable": wall + synced, "bytes": size, "status": status}

    def _migration_over(self):
        # A QEMU whose main thread waits for a page answers late; that is no failure.
        status = self.qmp.command("query-migrate", timeout=60)
        return status if status.get("status") in ("completed", "failed", "cancelled") else None

    def compress_beside(self, raw):
        """`zstd -1 -T0` of a file, beside this guest: seconds, to the finished file on the disk."""
        path = self.path("alone")
        began = time.monotonic()
        done = self.t.run(["zstd", "-q", "-1", "-T0", "-f", raw, "-o", path], timeout=SNAPSHOT_SECONDS)
        wall = time.monotonic() - began
        if done.returncode:
            raise NoFigure(f"zstd: {done.stderr}")
        result = {"wall": wall, "bytes": os.path.getsize(path), "durable": wall + sync_file(path)}
        os.unlink(path)
        return result
