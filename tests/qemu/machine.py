#!/usr/bin/python3
"""What an image records of a VM, and that another machine is told apart by name; devices that come
and go while a snapshot is being prepared."""

import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import check_no_litter, finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

NET = ["-device", "virtio-net-pci,id=n0,addr=5"]


def stopped(t, **shape):
    """A VM that has not begun to run: only its hardware matters."""
    shape.setdefault("memory_mib", 128)
    extra = ["-S", *shape.pop("extra", [])]
    return Guest(t, devices=(), work="none", extra=extra, **shape).start()


def describe(t, guest, path):
    done = t.run([tool("tests", "qemu", "qemu_probe"), guest.qmp_path, "0", "describe"])
    t.equal(done.returncode, 0, f"describe: {done.stderr}")
    with open(path, "w", encoding="utf-8") as f:
        f.write(done.stdout)
    return json.loads(done.stdout)


def compare(t, guest, path):
    done = t.run([tool("tests", "qemu", "qemu_probe"), guest.qmp_path, "0", "compare", path])
    message = [line for line in done.stderr.split("\n") if "recorded" in line]
    return done.returncode, message[0] if message else ""


@case("qemu.machine.described", "qemu", 60)
def described(t):
    guest = stopped(t, machine="q35", cpus=2, extra=["-cpu", "max,-avx2", *NET])
    found = describe(t, guest, t.path("recorded"))
    t.equal(found["vmm"], "qemu", "vmm")
    t.equal(found["machine"].rsplit("-", 1)[0], "pc-q35", "machine type with its version")
    t.equal(found["accelerator"], "tcg", "accelerator")
    t.equal(found["vm_name"], guest.name, "vm_name")
    t.equal(found["status"], "prelaunch", "status")
    t.equal(found["memory"]["size"], 128 << 20, "memory")
    t.equal(found["topology"]["cpus"], 2, "topology")
    t.equal([c["identity"]["apic-id"] for c in found["cpus"]], [0, 1], "APIC ids")
    leaf7 = found["cpus"][0]["words"]["7.0.EBX"]
    t.check(leaf7 >> 3 & 1 and not leaf7 >> 5 & 1, f"bmi1 is on, avx2 off: {leaf7:#x}")
    net = [d for d in found["devices"] if d["type"] == "virtio-net-pci"]
    t.equal(net, [{"path": "/machine/peripheral/n0", "type": "virtio-net-pci", "id": "n0",
                   "hotplugged": False, "place": "pcie.0/05.0"}], "device")
    t.check({"place": "00:05.0", "vendor": 0x1af4, "device": 0x1000, "subsystem_vendor": 0x1af4,
             "subsystem": 1} in found["pci"], f"PCI place: {found['pci']}")
    launch = found["launch"]
    t.equal(launch["argv"], [str(a) for a in guest.argv()], "argv")
    t.equal(launch["cwd"], os.getcwd(), "working directory")
    t.equal((launch["uid"], launch["gid"]), (os.geteuid(), os.getegid()), "user and group")
    t.check(launch["executable"].endswith("qemu-system-x86_64"), launch["executable"])
    t.check(set(launch["environment"]) <= {"HOME", "PATH", "QEMU_AUDIO_DRV", "QEMU_MODULE_DIR",
                                           "TMPDIR", "TZ", "XDG_RUNTIME_DIR"},
            f"no more of the environment than is needed: {sorted(launch['environment'])}")
    t.equal(compare(t, guest, t.path("recorded"))[0], 0, "the same machine")
    twin = stopped(t, machine="q35", cpus=2, extra=["-cpu", "max,-avx2", *NET])
    t.equal(compare(t, twin, t.path("recorded")), (0, ""), "a machine of the same line")


@case("qemu.machine.another-is-named", "qemu", 120)
def another_is_named(t):
    """Each difference, in a machine that is otherwise the same, with exit code 15 and its name."""
    base = {"cpus": 2, "extra": ["-cpu", "max", *NET]}
    recorded = t.path("recorded")
    guest = stopped(t, **base)
    describe(t, guest, recorded)
    guest.stop()
    for change, words in (
            ({"machine": "q35"}, "machine type: recorded pc-i440fx-"),
            ({"machine": "pc-i440fx-7.1"}, "machine type"),
            ({"memory_mib": 256}, "memory size: recorded 134217728, here 268435456"),
            ({"cpus": 1}, "topology"),
            ({"extra": ["-cpu", "qemu64", *NET]}, "CPU model: recorded max-x86_64-cpu"),
            ({"extra": ["-cpu", "max,-avx2", *NET]}, "CPU feature avx2: recorded on, here off"),
            ({"extra": ["-cpu", "max,family=7", *NET]}, "CPU family"),
            ({"extra": ["-cpu", "max,vendor=GenuineIntel", *NET]}, "CPU vendor"),
            ({"extra": ["-cpu", "max"]}, "device virtio-net-pci (id n0) at pci.0/05.0: recorded, but not here"),
            ({"extra": ["-cpu", "max", *NET, "-device", "virtio-rng-pci"]},
             "device virtio-rng-pci at pci.0/02.0: here, but not recorded"),
            ({"extra": ["-cpu", "max", "-device", "virtio-net-pci,id=n0,addr=6"]},
             "device virtio-net-pci (id n0) at pci.0/05.0: recorded there, but here in another place"),
            ({"extra": ["-cpu", "max", *NET, "-vga", "std"]}, "device VGA: here")):
        other = stopped(t, **{**base, **change})
        code, message = compare(t, other, recorded)
        t.equal(code, 15, f"exit code for {change}: {message}")
        t.check(words in message, f"{change}: {message!r} should say {words!r}")
        other.stop()


@case("qemu.machine.behind-a-bridge", "qemu", 60)
def behind_a_bridge(t):
    """The guest's firmware numbers the buses behind bridges: places must not depend on that."""
    bridge = ["-device", "pcie-root-port,id=p0,addr=4", "-device", "virtio-rng-pci,bus=p0"]
    shape = {"machine": "q35", "extra": bridge, "devices": (), "work": "selfcheck", "mib": 16}
    booted = Guest(t, **shape).boot_up()
    found = describe(t, booted, t.path("recorded"))
    t.equal([d["place"] for d in found["devices"] if d["type"] == "virtio-rng-pci"],
            ["pcie.0/04.0/00.0"], "place of the device behind the bridge")
    fresh = Guest(t, **{**shape, "extra": ["-S", *bridge]}).start()
    t.equal(compare(t, fresh, t.path("recorded")), (0, ""), "the machine before its firmware ran")
    moved = Guest(t, **{**shape, "extra": ["-S", *bridge[:1], "pcie-root-port,id=p0,addr=5",
                                           *bridge[2:]]}).start()
    code, message = compare(t, moved, t.path("recorded"))
    t.equal(code, 15, "exit code of another slot")
    t.check("pcie.0/04.0" in message, message)


@case("qemu.machine.kvm", "qemu,kvm", 60)
def kvm(t):
    t.need(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    guest = stopped(t, accel="kvm", boot="sector")
    t.equal(describe(t, guest, t.path("recorded"))["accelerator"], "kvm", "accelerator")
    t.equal(compare(t, guest, t.path("recorded"))[0], 0, "the same machine")
    code, message = compare(t, stopped(t, boot="sector"), t.path("recorded"))
    t.equal(code, 15, "exit code under TCG")
    t.check("accelerator: recorded kvm, here tcg" in message, message)


def prepare(t):
    os.mkdir(t.path("out"))
    return t.path("out/image")


@case("qemu.machine.plugged-before", "qemu", 90)
def plugged_before(t):
    """A device that came after the start is named: done with a warning, and not replayed."""
    image = prepare(t)
    guest = Guest(t, mib=16).boot_up()
    guest.qmp.command("device_add", driver="virtio-rng-pci", id="late")
    result = vmsnap(t, "snapshot", "--qmp", guest.qmp_path, image)
    t.equal(result.code, 3, f"exit status ({result.text()})")
    t.check(any("virtio-rng-pci (id late)" in w for w in result.summary["warnings"]),
            f"{result.summary['warnings']}")
    guest.stop()
    again = vmsnap(t, "restore", image)
    t.equal(again.code, 14, f"exit status of a restore ({again.text()})")
    t.check("late" in again.error["message"], again.error["message"])


def plugged_between(t, point, what, code, plug):
    """`plug` is run while vmsnap waits at `point`: the snapshot fails, the guest does not."""
    image = prepare(t)
    guest = Guest(t, mib=16, extra=["-m", "size=512M,slots=2,maxmem=1G"]).boot_up()
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, image,
                           hooks={"pause_at": point, "pause_log": log})
    reached(point)
    plug(guest)
    go()
    result = finish(t, process)
    t.equal(result.code, code, f"exit status ({result.text()})")
    t.check(what in result.error["message"], result.error["message"])
    t.equal(result.error["guest_state"], "running", "guest_state")
    check_no_litter(t.path("out"))
    guest.check_goes_on()
    guest.check_whole()


@case("qemu.machine.plugged-between", "qemu", 90)
def device_plugged_between(t):
    plugged_between(t, "source-before-stop", "plugged", 1,
                    lambda g: g.qmp.command("device_add", driver="virtio-rng-pci", id="late"))


@case("qemu.machine.memory-plugged-between", "qemu", 90)
def memory_plugged_between(t):
    def plug(guest):
        guest.qmp.command("object-add", qom_type="memory-backend-ram", id="m1", size=128 << 20)
        guest.qmp.command("device_add", driver="pc-dimm", id="dimm1", memdev="m1")
    plugged_between(t, "source-before-stop", "memory blocks changed", 10, plug)


@case("qemu.machine.nothing-is-left", "qemu", 90)
def nothing_is_left(t):
    """Snapshots leave no descriptor and no KSM setting in QEMU, and a paused guest paused."""
    image = prepare(t)
    guest = Guest(t, mib=16).boot_up()

    def seen():
        with open(f"/proc/{guest.pid}/smaps", encoding="ascii", errors="replace") as f:
            flags = [line for line in f if line.startswith("VmFlags")]
        fds = f"/proc/{guest.pid}/fd"
        ours = [link for link in (os.readlink(os.path.join(fds, n)) for n in os.listdir(fds))
                if "memfd:vmsnap" in link or "userfaultfd" in link]
        return (sum(" mg" in line for line in flags),
                sum(" um" in line or " uw" in line for line in flags), ours)
    before = seen()
    t.equal(before[1:], (0, []), "nothing of ours before")
    t.check(before[0] > 0, "QEMU's memory is mergeable by default")
    for state in ("running", "paused", "paused"):
        if state == "paused":
            guest.qmp.command("stop")
        result = vmsnap(t, "snapshot", "--overwrite", "--qmp", guest.qmp_path, image)
        t.equal(result.code, 0, f"exit status ({result.text()})")
        t.equal(seen()[:2], before[:2], "mergeable and registered mappings")
        t.equal(guest.qmp.status(), state, "state")
        if state == "paused":
            t.equal(result.summary["pause_ns"], 0, "pause of a guest that stood still")
        else:
            t.equal(seen()[2], [], "descriptors of ours")
    guest.qmp.command("cont")
    # QEMU closes what was removed from a set while paused when it runs and a client leaves.
    vmsnap(t, "check", "--qmp", guest.qmp_path)
    wait_until(lambda: seen() == before, 5, "no descriptor of ours is left")
    guest.check_whole()


@case("qemu.machine.slow-stop", "qemu", 90)
def slow_stop(t):
    """QEMU does not answer `stop` in time (a disk that takes long to flush, say) and stops late: vmsnap
    has failed long since, but it does not leave before the guest runs again."""
    image = prepare(t)
    guest = Guest(t, boot="firmware", memory_mib=128).boot_up()
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--timeout", "1s", "--qmp", guest.qmp_path, image,
                           hooks={"pause_at": "source-before-stop", "pause_log": log})
    reached("source-before-stop")
    os.kill(guest.pid, signal.SIGSTOP)
    go()
    time.sleep(3) # three times --timeout
    t.equal(process.poll(), None, "vmsnap's status while QEMU does not answer")
    os.kill(guest.pid, signal.SIGCONT)
    result = finish(t, process)
    t.equal(result.code, 17, f"exit status ({result.text()})")
    t.equal(result.error["guest_state"], "running", "guest_state")
    stops = [e["event"] for e in guest.qmp.take_events(0.5) if e["event"] in ("STOP", "RESUME")]
    t.equal(stops, ["STOP", "RESUME"], "what QEMU went through")
    check_no_litter(t.path("out"))
    guest.check_whole()


if __name__ == "__main__":
    main()
