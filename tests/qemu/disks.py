#!/usr/bin/python3
"""A VM with a writable disk: `stop` flushes it with the vCPUs halted, so what the host still has to
write back is written back beforehand."""

import ctypes
import mmap
import os
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, wait_until  # noqa: E402
from guest import MIB, Guest  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap  # noqa: E402

SYS_CACHESTAT = 451


def dirty_pages(path):
    """Pages of the file that the host still has to write back; None where the kernel can't tell."""
    libc = ctypes.CDLL(None, use_errno=True)
    ranges = ctypes.create_string_buffer(struct.pack("QQ", 0, 0))
    answer = ctypes.create_string_buffer(40)
    with open(path, "rb") as f:
        if libc.syscall(SYS_CACHESTAT, f.fileno(), ranges, answer, 0) != 0:
            return None
    _, dirty, writeback, _, _ = struct.unpack("QQQQQ", answer.raw)
    return dirty + writeback


def guest_with_disk(t):
    path = t.path("writable.img")
    with open(path, "wb") as f:
        f.truncate(64 * MIB)
    guest = Guest(t, memory_mib=128, boot="firmware", extra=[
        "-drive", f"if=none,id=w0,format=raw,file={path}", "-device", "virtio-blk-pci,drive=w0"])
    return guest.boot_up(), path


def make_dirty(path):
    with open(path, "r+b") as f:
        for at in range(0, 32 * MIB, MIB):
            f.seek(at)
            f.write(os.urandom(mmap.PAGESIZE) * 256)


@case("qemu.disks.synced-before-stop", "qemu", 60)
def synced_before_stop(t):
    guest, path = guest_with_disk(t)
    t.need(dirty_pages(path) is not None, "this kernel has no cachestat")
    os.mkdir(t.path("out"))
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--allow", "disks", "--qmp", guest.qmp_path,
                           t.path("out/image"),
                           hooks={"pause_at": "snapshot-registered", "pause_log": log})
    reached("snapshot-registered")
    make_dirty(path)
    t.check(dirty_pages(path) > 4096, f"much is dirty: {dirty_pages(path)} pages")
    go()
    t.equal(finish(t, process).code, 0, "the exit status")
    t.equal(dirty_pages(path), 0, "pages that are still dirty")
    guest.check_goes_on()


def start_with_a_sync_that_hangs(t, guest, *args):
    """A snapshot whose syncing process does not go on, at the point from which on it is waited for.
    Returns the vmsnap process, the one that syncs, and what lets vmsnap go on."""
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--allow", "disks", "--qmp", guest.qmp_path, *args,
                           t.path("out/image"),
                           hooks={"pause_at": "snapshot-registered", "pause_log": log})
    reached("snapshot-registered")
    syncing = [pid for pid in descendants(process.pid)
               if open(f"/proc/{pid}/comm", encoding="ascii").read() == "vmsnap-sync\n"]
    t.equal(len(syncing), 1, "processes that sync")
    os.kill(syncing[0], signal.SIGSTOP)
    guest.qmp.take_events()
    return process, syncing[0], go


def check_untouched(t, guest, syncing):
    """The guest was not stopped, and nothing is left of the snapshot."""
    t.equal([e["event"] for e in guest.qmp.take_events() if e["event"] == "STOP"], [],
            "the guest was not stopped")
    wait_until(lambda: not os.path.exists(f"/proc/{syncing}"), 5, "the process is gone")
    t.equal(os.listdir(t.path("out")), [], "what is left")
    flags = guest.smaps()["VmFlags"]
    t.check(not {"um", "uw"} & flags, f"no userfaultfd is left: {flags}")
    guest.check_goes_on()


@case("qemu.disks.sync-hangs", "qemu", 60)
def sync_hangs(t):
    """The disk's file system does not answer: the guest is not stopped for that."""
    guest, _ = guest_with_disk(t)
    os.mkdir(t.path("out"))
    process, syncing, go = start_with_a_sync_that_hangs(t, guest, "--timeout", "2s")
    go()
    result = finish(t, process)
    t.equal(result.code, 17, f"exit status: {result.text()}")
    t.check("synced" in result.error["message"], f"the message: {result.error}")
    check_untouched(t, guest, syncing)


@case("qemu.disks.sync-interrupted", "qemu", 60)
def sync_interrupted(t):
    """Ctrl-C and SIGTERM while the disks are synced end that wait at once, not at --timeout."""
    guest, _ = guest_with_disk(t)
    os.mkdir(t.path("out"))
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process, syncing, go = start_with_a_sync_that_hangs(t, guest, "--timeout", "60s")
        go()
        time.sleep(1) # by then it waits for the sync: all that comes before takes milliseconds
        t.check(process.poll() is None, f"it still waits: {process.poll()}")
        began = time.monotonic()
        os.killpg(process.pid, number) # as a terminal does
        result = finish(t, process)
        took = time.monotonic() - began
        t.equal(result.code, code, f"exit status: {result.text()}")
        t.check(took < 10, f"it ended after {took:.1f} s")
        t.equal(result.error["guest_state"], "untouched", "guest_state")
        check_untouched(t, guest, syncing)


if __name__ == "__main__":
    main()
