#!/usr/bin/python3
"""The kernel's same-page merging takes write protection off the pages it merges, without a word. With
ksmd running at full speed an image must be right all the same, and merging must go on afterwards."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import restored_guest, snapshot  # noqa: E402

KSM = "/sys/kernel/mm/ksm"


def read(name):
    with open(os.path.join(KSM, name), encoding="ascii") as f:
        return f.read().strip()


def write(name, value):
    with open(os.path.join(KSM, name), "w", encoding="ascii") as f:
        f.write(str(value))


def merged_pages(pid):
    with open(f"/proc/{pid}/ksm_merging_pages", encoding="ascii") as f:
        return int(f.read())


def run_ksmd(t):
    for name, value in (("pages_to_scan", 20000), ("sleep_millisecs", 2), ("run", 1)):
        t.defer(write, name, read(name))
        write(name, value)


@case("qemu.ksm.snapshot", "qemu", 150, lock="ksm")
def ksm(t):
    t.need(os.access(os.path.join(KSM, "run"), os.W_OK), "KSM can't be switched on here")
    guest = Guest(t, mib=96, rate=4000, work="selfcheck,stepper", step_mib=16,
                  step_pause_us=10000).boot_up()
    t.check("mg" in guest.smaps()["VmFlags"], "QEMU's memory is mergeable by default")
    t.need(os.path.exists(f"/proc/{guest.pid}/ksm_merging_pages"), "this kernel does not say what "
           "KSM has merged")
    run_ksmd(t)
    for number in range(2):
        wait_until(lambda: merged_pages(guest.pid) > 500, 40, "ksmd merges pages of the guest")
        image = t.path(f"image{number}")
        before = merged_pages(guest.pid)
        summary = snapshot(t, guest, image).summary
        t.say(f"{before} pages were merged; {summary['write_faults']} write faults")
        t.check("mg" in guest.smaps()["VmFlags"], "memory is mergeable again")
        guest.check_goes_on()
    guest.check_whole()
    wait_until(lambda: merged_pages(guest.pid) > 500, 40, "ksmd merges again")
    guest.stop()
    for number in range(2):
        restored = restored_guest(t, guest, t.path(f"image{number}"))
        restored.guest.check_whole()
        restored.wait_complete()
        restored.guest.check_whole()
        t.equal(restored.end().code, 0, "exit status")


if __name__ == "__main__":
    main()
