#!/usr/bin/python3
"""Where vmsnap finds a QEMU's memory: every block, byte for byte, against QEMU's own migration
stream, and the guest-physical map against QEMU's pmemsave."""

import json
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import ramstream  # noqa: E402
from case import case, main, tool  # noqa: E402
from guest import Guest, MIB  # noqa: E402
from ramstream import PAGE  # noqa: E402

CARDS = ["-device", "virtio-net-pci", "-device", "virtio-net-pci", "-device", "e1000"]
TWO_VGAS = ["-vga", "std", "-device", "secondary-vga"]
ANON, SHARED, PRIVATE_FILE = 1, 2, 3  # enum region_kind


def probe(t, guest, *args, **options):
    done = t.run([tool("tests", "qemu", "qemu_probe"), guest.qmp_path, "0", *args], timeout=60,
                 **options)
    t.equal(done.returncode, 0, f"status of qemu_probe {args[0]} ({done.stderr})")
    return done.stdout


def pages_of(t, guest, name):
    """{page number: hash} of a block's pages that are not zero, as vmsnap reads them."""
    path, found = os.path.join(guest.dir, "pages"), {}
    probe(t, guest, "pages", name, path)
    with open(path, "rb") as f:
        while record := f.read(8 + PAGE):
            found[struct.unpack_from("<Q", record)[0]] = hash(record[8:])
    os.unlink(path)
    return found


def check_physical(t, guest, listed):
    """The first and last pages of every guest-physical range are what QEMU has there."""
    pages = {}
    for r in listed["gpa"]:
        name = listed["regions"][r["region"]]["name"]
        pages.setdefault(name, pages_of(t, guest, name))
        window = min(r["bytes"], 2 * MIB)
        for start in {0, r["bytes"] - window}:
            path = os.path.join(guest.dir, "physical")
            guest.qmp.command("pmemsave", val=r["gpa"] + start, size=window, filename=path)
            with open(path, "rb") as f:
                data = f.read()
            os.unlink(path)
            first = (r["offset"] + start) // PAGE
            for i in range(window // PAGE):
                page = data[i * PAGE:(i + 1) * PAGE]
                wanted = None if page == ramstream.ZERO_PAGE else hash(page)
                t.check(pages[name].get(first + i) == wanted,
                        f"{name} differs at GPA {r['gpa'] + start + i * PAGE:#x}")


def check_blocks(t, guest, kinds):
    """kinds: {name of a block: enum region_kind}."""
    guest.qmp.command("stop")
    listed = json.loads(probe(t, guest, "list"))
    t.equal(listed["pid"], guest.pid, "process")
    t.say(f"{len(listed['regions'])} blocks, {len(listed['gpa'])} ranges, "
          f"found in {listed['took_ns'] / 1e6:.1f} ms")
    check_physical(t, guest, listed)
    ours = {r["name"]: pages_of(t, guest, r["name"]) for r in listed["regions"]}
    stream = ramstream.capture(guest)
    t.equal({r["name"]: r["bytes"] for r in listed["regions"]}, stream.blocks, "names and lengths")
    for name, pages in stream.pages.items():
        t.check(pages == ours[name], f"{name}: {len(ours[name])} pages, QEMU sends {len(pages)}")
    t.check(sum(map(len, ours.values())) > 300, "there is something to compare")
    found = {r["name"]: r["kind"] for r in listed["regions"]}
    for name, kind in kinds.items():
        t.equal(found.get(name), kind, f"kind of {name}")
    ram = sum(r["bytes"] for r in listed["gpa"] if r["region"] == 0 and not r["rom"])
    t.check(ram > 0, "RAM in the guest-physical map")


@case("qemu.blocks.pc", "qemu", 120)
def pc(t):
    """Twins: two equal network cards, two equal displays."""
    guest = Guest(t, extra=CARDS + TWO_VGAS)
    guest.boot_up()
    check_blocks(t, guest, {"pc.ram": ANON})


@case("qemu.blocks.q35-two-nodes", "qemu", 180)
def q35_two_nodes(t):
    """6 GiB on both sides of the hole, in two backends of equal size, with four CPUs."""
    nodes = []
    for name in ("ra", "rb"):
        nodes += ["-object", f"memory-backend-ram,id={name},size=3G", "-numa", f"node,memdev={name}"]
    guest = Guest(t, machine="q35", cpus=4, memory_mib=6144, extra=nodes + CARDS + TWO_VGAS)
    guest.boot_up()
    check_blocks(t, guest, {"ra": ANON, "rb": ANON})


@case("qemu.blocks.pc-large", "qemu", 180)
def pc_large(t):
    guest = Guest(t, memory_mib=6144, extra=TWO_VGAS)
    guest.boot_up()
    check_blocks(t, guest, {"pc.ram": ANON})


@case("qemu.blocks.memfd", "qemu", 120)
def memfd(t):
    guest = Guest(t, ram="memfd", machine="q35", extra=CARDS)
    guest.boot_up()
    check_blocks(t, guest, {"ram": SHARED})


@case("qemu.blocks.two-memfds", "qemu", 120)
def two_memfds(t):
    """Neighbours of one size and one kind, told apart by their files."""
    nodes = []
    for name in ("ra", "rb"):
        nodes += ["-object", f"memory-backend-memfd,id={name},size=256M,share=on",
                  "-numa", f"node,memdev={name}"]
    guest = Guest(t, extra=nodes)
    guest.boot_up()
    check_blocks(t, guest, {"ra": SHARED, "rb": SHARED})


@case("qemu.blocks.shm", "qemu", 120)
def shm(t):
    guest = Guest(t, ram="shm")
    guest.boot_up()
    check_blocks(t, guest, {"ram": SHARED})


@case("qemu.blocks.shm-private", "qemu", 120)
def shm_private(t):
    guest = Guest(t, ram="shm-private")
    guest.boot_up()
    check_blocks(t, guest, {"ram": PRIVATE_FILE})


@case("qemu.blocks.flash", "qemu", 120)
def flash(t):
    """Firmware in pflash, as with OVMF: rom_device blocks."""
    firmware, variables = t.path("firmware"), t.path("variables")
    shutil.copyfile("/usr/share/seabios/bios-256k.bin", firmware)
    with open(variables, "wb") as f:
        f.write(os.urandom(128 << 10))
    guest = Guest(t, extra=["-drive", f"if=pflash,format=raw,readonly=on,file={firmware}",
                            "-drive", f"if=pflash,format=raw,file={variables}"])
    guest.boot_up()
    check_blocks(t, guest, {"system.flash0": ANON, "system.flash1": ANON})


@case("qemu.blocks.unprivileged-sandbox", "qemu", 120)
def unprivileged_sandbox(t):
    guest = Guest(t, user="nobody", sandbox=True, extra=CARDS)
    guest.boot_up()
    check_blocks(t, guest, {"pc.ram": ANON})


@case("qemu.blocks.kvm", "qemu,kvm", 120)
def kvm(t):
    t.need(os.access("/dev/kvm", os.R_OK | os.W_OK), "no /dev/kvm here")
    guest = Guest(t, accel="kvm", boot="firmware", memory_mib=128)
    guest.boot_up()
    check_blocks(t, guest, {"pc.ram": ANON})


@case("qemu.blocks.wrong-process", "qemu", 60)
def wrong_process(t):
    """--pid of another VM of the same shape: its memory is not where this one's QEMU says."""
    one = Guest(t, memory_mib=128, work="selfcheck", devices=()).start()
    two = Guest(t, memory_mib=128, work="selfcheck", devices=()).start()
    done = t.run([tool("tests", "qemu", "qemu_probe"), one.qmp_path, str(two.pid), "list"])
    t.equal(done.returncode, 10, f"exit code ({done.stderr})")
    t.check("--pid" in done.stderr, done.stderr)


if __name__ == "__main__":
    main()
