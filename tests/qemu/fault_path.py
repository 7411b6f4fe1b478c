#!/usr/bin/python3
"""The fault path does the least: what the fault thread asks of the kernel while a guest writes."""

import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, tracer_of, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import finish, start_vmsnap  # noqa: E402

# What faults.h promises: read events, sleep in poll, copy out, the userfaultfd's ioctls, futex.
ALLOWED = {"read", "poll", "process_vm_readv", "pread64", "ioctl", "futex"}
# A thread's own end.
LAST = {"exit", "madvise", "munmap", "rt_sigprocmask", "set_robust_list"}


def fault_thread(pid):
    """The thread id of the worker's fault thread, and the worker's pid."""
    for worker in descendants(pid):
        for thread in os.listdir(f"/proc/{worker}/task"):
            with open(f"/proc/{worker}/task/{thread}/comm", encoding="ascii") as f:
                if f.read().strip() == "vmsnap-fault":
                    return int(thread), worker
    return None


@case("qemu.fault-path.system-calls", "qemu", 120)
def system_calls(t):
    """From before the instant to the end of protection the fault thread makes no system call but
    those of faults.h, and its memory is locked."""
    t.need(shutil.which("strace"), "no strace here")
    guest = Guest(t, work="selfcheck,stepper", step_mib=64, rate=20000, devices=())
    guest.boot_up()
    log, image, trace = t.path("log"), t.path("image"), t.path("trace")
    process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, image, hooks={
        "pause_at": "snapshot-before-pause", "pause_log": log})
    wait_until(lambda: os.path.exists(log), 30, "the snapshot is about to pause")
    thread, worker = wait_until(lambda: fault_thread(process.pid), 20, "the fault thread runs")
    tracer = t.spawn(["strace", "-q", "-o", trace, "-p", thread])
    wait_until(lambda: tracer_of(thread) != 0, 10, "strace has attached")
    with open(f"/proc/{worker}/status", encoding="ascii") as f:
        status = dict(line.split(":", 1) for line in f)
    with open(log + ".go", "wb"):
        pass
    result = finish(t, process)
    t.equal(result.code, 0, f"exit status of the snapshot: {result.text()}")
    tracer.wait(10)
    with open(trace, encoding="utf-8", errors="replace") as f:
        calls = [m.group(1) for m in (re.match(r"(\w+)\(", line) for line in f) if m]
    if calls and calls[0] == "restart_syscall": # the poll that strace's attaching interrupted
        del calls[0]
    end = len(calls)
    while end and calls[end - 1] in LAST:
        end -= 1
    counts = {name: calls[:end].count(name) for name in sorted(set(calls[:end]))}
    t.say(f"{counts}, write faults: {result.summary['write_faults']}")
    t.check(result.summary["write_faults"] >= 50, "the guest wrote while it was watched")
    t.check(counts.get("ioctl", 0) >= 50 and counts.get("process_vm_readv", 0) >= 50,
            "the trace covers the faults")
    t.equal(sorted(set(counts) - ALLOWED), [], "other system calls of the fault thread")
    locked, resident = (int(status[k].split()[0]) for k in ("VmLck", "VmRSS"))
    t.check(locked >= resident // 2, f"locked {locked} KiB, resident {resident} KiB")
    guest.check_goes_on()
    guest.check_no_errors()


if __name__ == "__main__":
    main()
