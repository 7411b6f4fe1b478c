#!/usr/bin/python3
"""The test guests themselves, without vmsnap: they boot in every shape that the other tests use,
work, and the oracle tells a torn copy of a running guest from a true point in time."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool  # noqa: E402
from guest import Guest  # noqa: E402


@case("qemu.harness.linux", "qemu", 90)
def linux(t):
    """The Linux guest boots and works; its virtio devices are in use."""
    guest = Guest(t, cpus=2, machine="q35", work="selfcheck,vio", procs=2, mib=32)
    guest.boot_up()
    guest.check_whole()
    vio = guest.console.counters("VIO")[-1]
    t.check(vio["blk_bytes"] > 0 and vio["rng_bytes"] > 0, f"virtio is in use: {vio}")


@case("qemu.harness.torn-copy", "qemu", 90)
def torn_copy(t):
    """A copy of a running guest's memory is caught as torn; of a paused one it is a point in
    time."""
    guest = Guest(t, work="stepper", step_mib=128, devices=())
    guest.boot_up()
    span = "%x-%x" % guest.ram_mapping()

    def judge():
        result = t.run([tool("tests", "guest", "pagecheck"), "--pid", guest.pid, span])
        t.say(result.stdout.strip())
        t.equal(json.loads(result.stdout)["stepper"]["found"], 128 * 256, "pages found")
        return result.returncode
    for _ in range(3):
        t.equal(judge(), 1, "verdict on a copy taken while the guest ran")
    guest.qmp.command("stop")
    t.equal(judge(), 0, "verdict on a copy of the paused guest")
    guest.qmp.command("cont")
    guest.check_goes_on()


def firmware(t, accel):
    guest = Guest(t, accel=accel, boot="firmware", memory_mib=128)
    guest.boot_up()
    guest.check_whole()
    guest.qmp.command("stop")
    result = t.run([tool("tests", "guest", "pagecheck"), "--pid", guest.pid,
                    "%x-%x" % guest.ram_mapping()])
    t.equal(result.returncode, 0, f"verdict on the paused guest ({result.stdout.strip()})")


@case("qemu.harness.firmware-kvm", "qemu,kvm", 60)
def firmware_kvm(t):
    t.need(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    firmware(t, "kvm")


@case("qemu.harness.firmware-tcg", "qemu", 60)
def firmware_tcg(t):
    firmware(t, "tcg")


if __name__ == "__main__":
    main()
