"""The floor: vmsnap-bench attached to a VM, faults only resolved."""

import json
import os
import select
import subprocess
import time

from case import Failed, end_process, tool
from measure import NoFigure

BUSY_FLOOR = "floor, CPUs busy"
WORK_SECONDS = 2.0 # about as long as a snapshot of the guests here takes


class Floor:
    """`vmsnap-bench floor` under way."""

    def __init__(self, t, pid, start, length, busy=0):
        self.process = t.spawn([tool("vmsnap-bench"), "floor", pid, f"{start:x}", length,
                                busy],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
        self._rest = b""
        self.expect("ready")

    def expect(self, kind, seconds=20):
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = max(0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"vmsnap-bench floor: not {kind} within {seconds} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                self.process.wait(10)
                raise NoFigure(self.process.stderr.read().decode().strip()
                               or f"vmsnap-bench ended with {self.process.returncode}")
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        found = json.loads(line)
        if found["type"] != kind:
            raise Failed(f"vmsnap-bench floor: {found}, wanted {kind}")
        return found

    def protect(self):
        os.write(self.process.stdin.fileno(), b"protect\n")
        return self.expect("protected")

    def end(self):
        self.process.stdin.close()
        self.process.stdin = None
        summary = self.expect("summary", 60)
        self.process.wait(30)
        return summary


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
            if summary["failures"]:
                raise NoFigure(f"the floor: {summary}")
            return {"wall": time.monotonic() - began, "arm": armed["arm_ns"] * 1e-9,
                    "faults": summary["faults"]}
        return guest.watched(take)
    finally:
        end_process(floor.process)
