#!/usr/bin/python3
"""The whole way, on every shape of guest: a live snapshot while the guest checks and rewrites its
memory and QEMU's own threads write to it; the guest runs on; it is killed; the image is restored; the
check goes on from the snapshot's instant; every page is right after the fill.

The shapes are an orthogonal array of strength two: every pair of settings (machine, vCPUs, size, kind
of memory) occurs. 6 GiB lie on both sides of the 4 GiB hole, and a part of the check works at 1 GiB,
below it, where Linux would put nothing by itself."""

import glob
import os
import shlex
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, main, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import (Restore, check_no_litter, first_counters, restored_guest,  # noqa: E402
                    snapshot, vmsnap)

SUMMARY_KEYS = """pause_ns stop_ns state_ns arm_ns cont_ns wall_ns throttled_ns ram_bytes image_bytes
    pages_total pages_zero pages_stored pages_from_faults pages_poisoned write_faults fault_p50_ns
    fault_p99_ns fault_max_ns buffer_peak_bytes image longest_gap_ns image_id instant vm_name
    accelerator warnings schema_version""".split()
RUNNING_KEYS = "launch_to_running_ns vmm_pid clock_behind_ns schema_version".split()
RESTORE_KEYS = """launch_to_running_ns demand_faults fault_p50_ns fault_p99_ns fault_max_ns
    pages_prefetched pages_filled complete_ns vmm_pid schema_version""".split()


def check_keys(t, thing, keys, what):
    missing = [k for k in keys if k not in thing]
    t.check(not missing, f"{what} lacks {missing}")


def check_summary(t, guest, summary, image):
    check_keys(t, summary, SUMMARY_KEYS, "the snapshot's summary")
    t.check(summary["ram_bytes"] >= guest.memory_mib << 20, "ram_bytes covers the guest's memory")
    t.equal(summary["image_bytes"], os.path.getsize(image), "image_bytes")
    t.equal(summary["accelerator"], guest.accel, "accelerator")
    t.equal(summary["vm_name"], guest.name, "vm_name")
    t.check(summary["pages_total"] >= guest.memory_mib * 256, "pages_total")
    t.equal(summary["pages_zero"] + summary["pages_stored"] + summary["pages_poisoned"],
            summary["pages_total"], "zero, stored and poisoned pages")
    t.check(0 <= summary["pages_from_faults"] <= summary["pages_total"], "pages_from_faults")
    # The firmware guest's few pages may all be saved before it gets a CPU.
    t.check(summary["write_faults"] > 0 or guest.boot == "firmware", "write faults were met")
    t.check(0 < summary["pause_ns"] < 5e9, "pause_ns")


def latest(guest, kind, owner=0):
    counters = guest.console.counters(kind, owner=owner)
    return counters[-1] if counters else None


def check_resumes_at_instant(t, before, after, first):
    """`first` is what a restored workload printed first; `before` and `after` what it had printed
    last when the snapshot began and ended."""
    t.check(before["up"] <= first["up"] <= after["up"] + 3,
            f"goes on from the instant: before {before}, first {first}, after {after}")
    for counter in ("rewritten", "checked", "rounds"):
        if counter in first:
            t.check(first[counter] >= before[counter], f"{counter} goes on: {before} {first}")


def judged(guest):
    """(kind, owner) of each workload that says how far it is."""
    if guest.boot == "firmware":
        return []
    n = guest.options.get("procs", 1) + ("phys" in guest.options)
    pairs = [("SELFCHECK", i) for i in range(n) if "selfcheck" in guest.work]
    return pairs + [("STEPPER", 0)] * ("stepper" in guest.work)


def round_trip(t, source, *restore_arguments, checks=()):
    """Snapshot, run on, kill, restore, check. Returns (snapshot's summary, Restore)."""
    os.mkdir(t.path("images"))
    image = t.path("images/image")
    before = {pair: latest(source, *pair) for pair in judged(source)}
    progress = source.progress()
    summary = snapshot(t, source, image).summary
    t.say(f"paused {summary['pause_ns'] / 1e6:.1f} ms, {summary['write_faults']} write faults, "
          f"{summary['image_bytes'] >> 20} MiB in {summary['wall_ns'] / 1e9:.2f} s")
    check_summary(t, source, summary, image)
    check_no_litter(t.path("images"), "image")
    source.check_whole()
    after = {pair: latest(source, *pair) for pair in judged(source)}
    for check in checks:
        check(image)
    source.stop()
    restored = restored_guest(t, source, image, *restore_arguments)
    guest = restored.guest
    check_keys(t, restored.result().of_type("running")[0], RUNNING_KEYS, "the object `running`")
    for pair in judged(source):
        first = first_counters(guest, restored.mark, *pair)
        check_resumes_at_instant(t, before[pair], after[pair], first)
    if guest.boot == "firmware":
        wait_until(lambda: guest.check_no_errors() or guest.progress(restored.mark) >= progress, 20,
                   "rounds go on")
    done = restored.wait_complete()
    check_keys(t, done, RESTORE_KEYS, "the restore's summary")
    t.equal(done["vmm_pid"], guest.pid, "vmm_pid")
    t.say(f"running after {done['launch_to_running_ns'] / 1e6:.0f} ms, {done['demand_faults']} "
          f"demand faults, complete after {done['complete_ns'] / 1e9:.2f} s")
    guest.check_whole()
    check_let_go(t, guest)
    ended = restored.end()
    t.equal(ended.code, 0, f"vmsnap's exit status after the VMM's ({ended.text()})")
    t.equal(len(ended.of_type("exit")), 1, "objects of type `exit`")
    return summary, restored


def check_let_go(t, guest):
    """Nothing of the restore stays in the VMM: no userfaultfd, no registered memory."""
    for fd in os.listdir(f"/proc/{guest.pid}/fd"):
        try:
            t.check("userfaultfd" not in os.readlink(f"/proc/{guest.pid}/fd/{fd}"),
                    "the userfaultfd is closed after the last page")
        except FileNotFoundError:
            pass
    t.check(not {"um", "uw", "ui"} & guest.smaps().get("VmFlags", set()),
            f"memory is unregistered after the last page: {guest.smaps().get('VmFlags')}")


def check_huge_pages(t, guest):
    huge = guest.smaps()["AnonHugePages"]
    t.check((huge > 0) == guest.thp, f"huge pages: {huge} bytes, wanted {guest.thp}")


def shape(name, machine, cpus, memory_mib, ram, thp=True):
    """Registers the round trip of one shape."""
    @case(f"qemu.roundtrip.{name}", "qemu", 150)
    def run(t):
        options = {"phys": "0x40000000"} if memory_mib > 4096 else {}
        guest = Guest(t, machine=machine, cpus=cpus, memory_mib=memory_mib, ram=ram, thp=thp,
                      procs=min(cpus, 2), **options).boot_up()
        if ram == "anon":
            check_huge_pages(t, guest)
        round_trip(t, guest)


shape("pc-1-512m-anon", "pc", 1, 512, "anon")
shape("q35-4-6g-anon", "q35", 4, 6144, "anon")
shape("q35-4-512m-anon-4k", "q35", 4, 512, "anon", thp=False)
shape("pc-1-6g-anon-4k", "pc", 1, 6144, "anon", thp=False)
shape("pc-4-512m-memfd", "pc", 4, 512, "memfd")
shape("q35-1-6g-memfd", "q35", 1, 6144, "memfd")
shape("q35-1-512m-shm", "q35", 1, 512, "shm")
shape("pc-4-6g-shm", "pc", 4, 6144, "shm")


@case("qemu.roundtrip.private-file", "qemu", 120)
def private_file(t):
    """A private mapping of a file in /dev/shm: pages of the file and copies of them."""
    round_trip(t, Guest(t, ram="shm-private").boot_up())


@case("qemu.roundtrip.unprivileged", "qemu", 120)
def unprivileged(t):
    """QEMU runs as a user that may make no userfaultfd itself."""
    guest = Guest(t, user="nobody")
    guest.boot_up()
    with open(f"/proc/{guest.pid}/status", encoding="ascii") as f:
        t.check("Uid:\t0" not in f.read(), "QEMU must not run as root")
    round_trip(t, guest)


@case("qemu.roundtrip.sandbox", "qemu", 120)
def sandbox(t):
    """QEMU under its full seccomp sandbox."""
    guest = Guest(t, sandbox=True).boot_up()
    with open(f"/proc/{guest.pid}/status", encoding="ascii") as f:
        t.check("Seccomp:\t2" in f.read(), "QEMU must run under a seccomp filter")
    round_trip(t, guest)


@case("qemu.roundtrip.kvm", "qemu,kvm", 120)
def kvm(t):
    """vCPUs of KVM fault in the kernel. The firmware guest runs where no stock kernel does."""
    t.need(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    guest = Guest(t, accel="kvm", boot="firmware", memory_mib=128).boot_up()
    summary, _ = round_trip(t, guest)
    t.equal(summary["accelerator"], "kvm", "accelerator")


@case("qemu.roundtrip.firmware-tcg", "qemu", 60)
def firmware_tcg(t):
    round_trip(t, Guest(t, boot="firmware", memory_mib=128).boot_up())


def prealloc(t):
    """QEMU has filled its memory before anything is loaded: present, but not what it should be."""
    round_trip(t, Guest(t, boot="firmware", memory_mib=128, ram="prealloc").boot_up())


@case("qemu.roundtrip.prealloc", "qemu", 60)
def prealloc_case(t):
    prealloc(t)


@case("qemu.roundtrip.mem-lock", "qemu", 120)
def mem_lock(t):
    """QEMU locks all its memory, which fills it, too."""
    round_trip(t, Guest(t, memory_mib=256, mib=32, extra=["-overcommit", "mem-lock=on"]).boot_up())


@case("qemu.roundtrip.recorded-line", "qemu", 120)
def recorded_line(t):
    """`vmsnap restore IMAGE` alone: the command line that the image holds, with its sockets and its
    console, once the source has ended; refused while it lives."""
    source = Guest(t).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    refused = vmsnap(t, "restore", image)
    t.equal(refused.code, 14, "restore beside the running source")
    t.check(source.qmp_path in refused.error["message"] or
            source.test_qmp_path in refused.error["message"],
            f"the socket is named: {refused.error}")
    source.check_goes_on()
    source.stop()
    printed = vmsnap(t, "restore", "--print-command", image, json_=False)
    t.equal(printed.code, 0, "--print-command")
    for word in ("qemu-system-x86_64", f"-name {source.name}", "vmlinuz", source.qmp_path):
        t.check(word in printed.out, f"{word} on the printed line: {printed.out}")
    elsewhere = vmsnap(t, "restore", "--print-command", image, json_=False, cwd="/")
    line = shlex.split(elsewhere.out)
    t.equal(line[:3], ["env", "-C", os.getcwd()], "in another directory")
    pasted = vmsnap(t, "restore", "--detach", "--paused", image, "--", *line, cwd="/")
    t.equal((pasted.code, "not replayed" in pasted.err), (0, False), f"the line, pasted: {pasted.text()}")
    pid = pasted.of_type("running")[0]["vmm_pid"]
    t.equal(os.readlink(f"/proc/{pid}/cwd"), os.getcwd(), "its directory")
    os.kill(pid, signal.SIGKILL)
    # Of a process that ends the first thread may be through before the others, which have its sockets.
    wait_until(lambda: not is_alive(pid) and len(glob.glob(f"/proc/{pid}/task/*")) <= 1, 20, "its end")
    restored = Restore(t, image, source, recorded=True).wait_running()
    restored.wait_complete()
    source.check_whole()
    t.equal(restored.end().code, 0, "exit status")


@case("qemu.roundtrip.paused-detach", "qemu", 120)
def paused_detach(t):
    """--paused loads and does not run; --detach returns while the server stays."""
    source = Guest(t).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    restored = restored_guest(t, source, image, "--paused")
    t.equal(restored.guest.qmp.status(), "paused", "status after --paused")
    restored.guest.check_stands()
    restored.wait_complete()
    restored.guest.qmp.command("cont")
    restored.guest.check_whole()
    t.equal(restored.end().code, 0, "exit status")

    report = t.path("report")
    detached = restored_guest(t, source, image, "--detach", "--report", report,
                              "--pidfile", t.path("pid"))
    t.equal(detached.process.wait(20), 0, "exit status of --detach")

    def last_page_in():
        with open(report, encoding="utf-8") as f:
            return '"summary"' in f.read()
    wait_until(last_page_in, 30, "the detached server's summary in --report")
    detached.guest.check_whole()
    check_let_go(t, detached.guest)


@case("qemu.roundtrip.no-fill", "qemu", 120)
def no_fill(t):
    """--no-fill serves faults only, and every page that the guest touches is right."""
    source = Guest(t).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    restored = restored_guest(t, source, image, "--no-fill", "--prefetch", "none")
    restored.guest.check_whole(rounds=2)
    t.check(not restored.result().of_type("summary"), "no summary before the last page is in")
    restored.guest.qmp.command("quit")
    t.equal(restored.process.wait(20), 0, "exit status")


if __name__ == "__main__":
    main()
