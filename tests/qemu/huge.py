#!/usr/bin/python3
"""Huge pages of a QEMU (which asks for them by itself) are huge again after a snapshot."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import snapshot  # noqa: E402

MIB = 1 << 20
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


@case("qemu.huge.unprivileged", "qemu", 120)
def unprivileged(t):
    """QEMU runs as another user; its guest writes all over 128 MiB."""
    with open(THP, encoding="ascii") as f:
        t.need("[never]" not in f.read(), f"{THP} is never")
    guest = Guest(t, user="nobody", work="writer", mib=128, memory_mib=256, pattern="random").boot_up()
    guest.check_goes_on()
    before = guest.smaps()["AnonHugePages"]
    t.need(before > 64 * MIB, "the host has no huge pages to give")
    summary = snapshot(t, guest, t.path("image")).summary
    after = guest.smaps()["AnonHugePages"]
    t.say(f"huge: {before} before, {after} after, {summary['write_faults']} write faults")
    t.check(summary["write_faults"] > 20, "the guest wrote meanwhile, or nothing was split")
    t.check(summary["huge_bytes_before"] >= 64 * MIB, f"noted: {summary}")
    t.equal(summary["huge_bytes_after"], summary["huge_bytes_before"], "huge again")
    t.check(after >= before, f"{after} bytes are huge after the snapshot, {before} were before it")
    guest.check_goes_on()


if __name__ == "__main__":
    main()
