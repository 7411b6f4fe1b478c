#!/usr/bin/python3
"""minivm runs its guest with each accelerator, kind of memory and pattern, stops it, and measures."""

import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from minivm import MiniVm, end_and_wait, kvm_works, need_huge_pages  # noqa: E402

PATTERNS = ("idle", "random", "sequential", "hot:1M")


def looks_like(vm, kind):
    """Is the guest's memory what was asked for? One mapping of exactly its size (mapping() looks)."""
    line, fields = vm.mapping()
    flags = fields["VmFlags"].split()
    vm.t.equal(vm.ram["hva"] % (2 << 20), 0, "alignment")
    vm.t.equal("hg" in flags, kind == "thp", "huge pages advised")
    vm.t.equal("nh" in flags, kind == "anon", "huge pages advised against")
    vm.t.equal("sh" in flags, kind in ("memfd", "hugetlbfs"), "shared")
    vm.t.equal("memfd" in line, kind in ("memfd", "hugetlbfs"), f"a file behind it: {line}")
    vm.t.equal(fields["KernelPageSize"], "2048 kB" if kind == "hugetlbfs" else "4 kB", "page size")


def run_one(t, accel, kind, pattern):
    t = t.sub()
    vm = MiniVm(t, "--memory", "16M", "--kind", kind, "--pattern", pattern, "--cpus", "2",
                "--populate", "8M", accel=accel)
    t.equal(vm.description["accelerator"], accel, "accelerator")
    looks_like(vm, kind)
    if pattern == "idle":
        time.sleep(0.1)
        t.equal(vm.writes(), 0, "writes of an idle guest")
    else:
        vm.wait_for_writes(5000)
    vm.stop()
    vm.check_right(f"{kind}, {pattern}")
    found = vm.qmp.command("x-check")
    t.equal(found["written_pages"], 2048 - 2, "populated pages, without the state's")
    t.equal(end_and_wait(vm), 0, "exit status")
    t.check(not os.path.exists(vm.control), "the control socket is gone")
    t.end()


def run_kinds(t, accel):
    t.need(accel == "threads" or kvm_works(), "no /dev/kvm here")
    for kind in ("anon", "thp", "memfd"):
        for pattern in PATTERNS:
            run_one(t, accel, kind, pattern)


@case("minivm.kinds.kvm", "kvm", 30)
def kinds_kvm(t):
    run_kinds(t, "kvm")


@case("minivm.kinds.threads", "kernel", 30)
def kinds_threads(t):
    run_kinds(t, "threads")


@case("minivm.kinds.hugetlbfs", "kvm", 30, lock="hugepages")
def kinds_hugetlbfs(t):
    """8 huge pages more than there were, for as long as the test takes."""
    need_huge_pages(t, 8)
    for accel in ["kvm", "threads"] if kvm_works() else ["threads"]:
        for pattern in PATTERNS:
            run_one(t, accel, "hugetlbfs", pattern)


def stop_and_go(t, accel):
    vm = MiniVm(t, "--memory", "32M", "--cpus", "2", accel=accel)
    began_ns = time.monotonic_ns()
    for pause in (0.1, 0.1, 0.6):
        vm.wait_for_writes(1000)
        vm.stop()
        at_stop = vm.writes()
        time.sleep(pause)
        t.equal(vm.writes(), at_stop, "writes while stopped")
        t.equal(vm.qmp.status(), "paused", "status")
        vm.stop() # once more is no error
        vm.cont()
        t.equal(vm.qmp.status(), "running", "status")
    vm.wait_for_writes(1000)
    stats, ended_ns = vm.stats(full=True), time.monotonic_ns()
    t.equal([e["event"] for e in vm.qmp.take_events()], ["STOP", "RESUME"] * 3, "events")
    t.check(began_ns < stats["now_ns"] < ended_ns, "the guest's clock is CLOCK_MONOTONIC")
    t.check(stats["max_gap_ns"] >= 600e6, f"the guest saw the pause: {stats['max_gap_ns']} ns")
    # The pause is no slow write, whatever instruction it came at.
    t.check(stats["write"]["max_ns"] < 600e6, f"longest write {stats['write']['max_ns']} ns")


@case("minivm.stop.kvm", "kvm", 30)
def stop_kvm(t):
    t.need(kvm_works(), "no /dev/kvm here")
    stop_and_go(t, "kvm")


@case("minivm.stop.threads", "kernel", 30)
def stop_threads(t):
    stop_and_go(t, "threads")


@case("minivm.series", "kernel", 30)
def series(t):
    """The slices of 100 ms lie where CLOCK_MONOTONIC has the pause, and add up to all writes."""
    vm = MiniVm(t, "--memory", "32M", "--cpus", "2")
    vm.wait_for_writes(1000)
    vm.stop()
    time.sleep(0.5)
    vm.cont()
    vm.wait_for_writes(1000)
    vm.stop()
    stats, events = vm.stats(full=True), vm.qmp.take_events()
    stop_ns, cont_ns = (e["data"]["monotonic_ns"] for e in events[:2])
    t.equal(len(stats["series"]), 2, "one list per vCPU")
    for slices in stats["series"]:
        paused = [s for s in slices if stop_ns <= s[0] and s[0] + 100e6 <= cont_ns]
        wanted = (cont_ns - stop_ns) / 100e6 # whole ones: between two and none less
        t.check(wanted - 2 <= len(paused) <= wanted, f"{len(paused)} slices, {wanted} long")
        t.equal(sum(s[1] for s in paused), 0, "writes in the pause")
        t.check(max(s[3] for s in slices) >= cont_ns - stop_ns, "the pause is a gap")
    total = sum(s[1] for slices in stats["series"] for s in slices)
    t.equal(total, stats["writes"], "writes of all slices")
    t.equal(sum(n for _, n in stats["write"]["buckets"]), stats["write"]["count"], "buckets")
    h = stats["write"]
    t.check(0 < h["p50_ns"] <= h["p99_ns"] <= h["p999_ns"] <= h["max_ns"], f"order: {h}")


@case("minivm.reset", "kernel", 30)
def reset(t):
    vm = MiniVm(t, "--memory", "32M")
    vm.wait_for_writes(1000)
    vm.stop()
    first, second = vm.stats(full=True, reset=True), vm.stats(full=True)
    t.check(first["writes"] >= 1000, "writes before")
    t.equal((second["writes"], second["write"]["count"], second["write"]["max_ns"],
             second["write"]["buckets"]), (0, 0, 0, []), "after the reset")
    vm.cont()
    vm.wait_for_writes(500)
    t.check(vm.stats()["write"]["count"] < first["writes"] + vm.writes(), "it counts anew")


@case("minivm.rate", "kernel", 30)
def rate(t):
    """A guest with a rate keeps to it, and sleeps in between."""
    vm = MiniVm(t, "--memory", "32M", "--rate", "2000", "--cpus", "2")
    wait_until(lambda: vm.writes() > 0, 5, "a write")
    begin, began = vm.writes(), time.monotonic()
    time.sleep(1)
    per_second = (vm.writes() - begin) / (time.monotonic() - began)
    t.check(1000 < per_second < 4400, f"{per_second:.0f} writes per second, wanted 2 x 2000")
    with open(f"/proc/{vm.pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    t.check(cpu < 1, f"CPU time of about a second of two vCPUs: {cpu} s")


@case("minivm.auto", "kernel", 30)
def auto(t):
    """Without /dev/kvm the guest runs in threads, and it is said why."""
    t.need(os.geteuid() == 0, "only root can hide /dev/kvm")
    report = t.path("report")
    command = (f"mount --bind /dev/null /dev/kvm && exec {tool('minivm')} --control "
               f"{t.path('c')} --report {report} --accel $0")
    hidden = ["unshare", "-m", "sh", "-c", command]
    t.need(t.run(["unshare", "-m", "true"]).returncode == 0, "no mount namespaces here")
    t.need(os.path.exists("/dev/kvm"), "there is no /dev/kvm to hide")
    result = t.run(hidden + ["kvm"])
    t.equal(result.returncode, 1, f"--accel kvm without KVM ({result.stderr})")
    process = t.spawn(hidden + ["auto"], stderr=open(t.path("log"), "wb"))
    wait_until(lambda: os.path.exists(report), 5, "a report")
    with open(t.path("log"), encoding="ascii") as f:
        log = f.read()
    t.check("no KVM here" in log and "accelerator threads" in log, f"what it says: {log}")
    process.terminate()
    t.equal(process.wait(5), 0, "exit status after SIGTERM")
    with open(report, encoding="ascii") as f:
        lines = f.read()
    t.check('"type":"start"' in lines and '"type":"end"' in lines, f"the report: {lines[:200]}")


@case("minivm.options", "kernel", 20)
def options(t):
    wrong = (["--memory", "5000"], ["--memory", "1x"], ["--cpus", "0"], ["--cpus", "1000"],
             ["--kind", "paper"], ["--pattern", "hot:"], ["--rate", "-1"], ["--nonsense"],
             ["stray"], ["--memory", "16M", "--populate", "32M"], ["--memory", "300G"],
             ["--memory", "99999999999G"], ["--kind", "hugetlbfs", "--memory", "3000K"])
    for line in wrong:
        result = t.run([tool("minivm"), *line], timeout=5)
        t.equal(result.returncode, 2, f"exit status for {line}")
        t.check(result.stderr, f"something is said of {line}")
    result = t.run([tool("minivm"), "--help"], timeout=5)
    t.check(result.returncode == 0 and "--vmsnap-incoming" in result.stdout, "--help")


if __name__ == "__main__":
    main()
