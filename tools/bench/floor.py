"""vmsnap-bench: the floors, which attach to a VM and only resolve its faults, and speeds."""

import json
import os
import select
import subprocess
import time

from case import Failed, end_process, tool
from measure import NoFigure

BUSY_FLOOR = "floor, CPUs busy"
WORK_SECONDS = 2.0 # about as long as a snapshot of the guests here takes
SPEED_SECONDS = 120


class Helper:
    """A command of vmsnap-bench under way, until its stdin is closed."""

    def __init__(self, t, *words):
        self.name = f"vmsnap-bench {words[0]}"
        self.process = t.spawn([tool("vmsnap-bench"), *words], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._rest = b""
        self.expect("ready")

    def expect(self, kind, seconds=20):
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = max(0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"{self.name}: not {kind} within {seconds} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                self.process.wait(10)
                raise NoFigure(self.process.stderr.read().decode().strip()
                               or f"{self.name} ended with {self.process.returncode}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        found = json.loads(line)
        if found["type"] != kind:
            raise Failed(f"{self.name}: {found}, wanted {kind}")
        return found

    def end(self):
        self.process.stdin.close()
        self.process.stdin = None
        summary = self.expect("summary", 60)
        self.process.wait(30)
        if summary["failures"]:
            raise NoFigure(f"{self.name}: {summary}")
        return summary


class Floor(Helper):
    """Write faults."""

    def __init__(self, t, pid, start, length, busy=0):
        super().__init__(t, "floor", pid, f"{start:x}", length, busy)

    def protect(self):
        os.write(self.process.stdin.fileno(), b"protect\n")
        return self.expect("protected")


class MissingFloor(Helper):
    """Missing pages; `path` holds what the memory is to be."""

    def __init__(self, t, pid, start, path, unit_bytes):
        super().__init__(t, "missing", pid, f"{start:x}", path, unit_bytes)


class Handler(Helper):
    """One of Firecracker's example handlers, as vmsnap-bench has them, listening on `path`."""

    def __init__(self, t, kind, memory_path):
        self.path = t.path(t.unique("handler") + ".sock")
        super().__init__(t, "handler", kind, self.path, memory_path)


def speed_of(t, *words):
    """A command of vmsnap-bench that runs to its end and says how fast it was."""
    began = time.monotonic()
    done = t.run([tool("vmsnap-bench"), *words], timeout=SPEED_SECONDS)
    if done.returncode:
        raise NoFigure(done.stderr.strip())
    found = json.loads(done.stdout)
    return {**found, "wall": time.monotonic() - began,
            "rate": found["bytes"] / (found["ns"] * 1e-9) if found["ns"] else 0.0}


def floors(t, guest):
    """The floor, and the floor with as many busy threads as vmsnap has compressors."""
    return {"floor": lambda: floor_of(t, guest),
            BUSY_FLOOR: lambda: floor_of(t, guest, os.cpu_count())}


def floor_of(t, guest, busy=0):
    """One run over a guest that has qmp, pid(), memory() and watched()."""
    start, end = guest.memory()
    floor = Floor(t, guest.pid(), start, end - start, busy)
    try:
        def take():
            began = time.monotonic()
            guest.qmp.command("stop")
            armed = floor.protect()
            guest.qmp.command("cont")
            time.sleep(WORK_SECONDS)
            summary = floor.end()
            return {"wall": time.monotonic() - began, "arm": armed["arm_ns"] * 1e-9,
                    "faults": summary["faults"]}
        return guest.watched(take)
    finally:
        end_process(floor.process)
