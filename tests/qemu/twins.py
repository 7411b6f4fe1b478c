#!/usr/bin/python3
"""Two guests from one image: what tells them, and their guests, apart (vmgenid)."""

import os
import sys
import uuid

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import restored_guest, snapshot, vmsnap  # noqa: E402

FIXED = "324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87"
SHAPE = {"memory_mib": 192, "mib": 16, "work": "selfcheck"}


def generation_id(guest):
    return guest.qmp.command("query-vm-generation-id")["guid"]


def places_in_memory(guest, text):
    """Where in its RAM a generation id stands: 40 bytes into a page, as the guest's firmware was told to put
    it; the first three fields little-endian, as ACPI has them."""
    wanted, found = uuid.UUID(text).bytes_le, []
    start, _ = guest.ram_mapping()
    with open(f"/proc/{guest.pid}/mem", "rb", 0) as f:
        for offset in range(0, guest.memory_mib << 20, 4 << 20):
            f.seek(start + offset)
            data = f.read(4 << 20)
            at = data.find(wanted)
            while at >= 0:
                found.append(offset + at)
                at = data.find(wanted, at + 1)
    return [at for at in found if at % 4096 == 40]


def id_in_memory(guest, place):
    start, _ = guest.ram_mapping()
    with open(f"/proc/{guest.pid}/mem", "rb", 0) as f:
        f.seek(start + place)
        return str(uuid.UUID(bytes_le=f.read(16)))


def take(t, *extra):
    source = Guest(t, **SHAPE, extra=extra).boot_up()
    image = t.path(t.unique("image"))
    items = {o["name"]: o for o in vmsnap(t, "check", "--qmp", source.qmp_path).of_type("item")}
    snapshot(t, source, image)
    return source, image, items


@case("qemu.twins.generation-id", "qemu", 120)
def twins(t):
    """guid=auto: source and clones show three different ids, to QMP and in the guest's own memory."""
    source, image, items = take(t, "-device", "vmgenid,guid=auto")
    t.check(items["vmgenid"]["ok"], f"check of the VM: {items['vmgenid']}")
    t.equal(vmsnap(t, "info", image).summary["vmgenid"], "renewed", "info")
    places = places_in_memory(source, generation_id(source))
    t.equal(len(places), 1, f"places of the id in the source's memory: {places}")
    ids = [generation_id(source)]
    source.stop()
    clones = [restored_guest(t, source, image) for _ in range(2)]
    for clone in clones:
        t.equal(clone.result().of_type("running")[0]["generation_id_renewed"], True, "said")
        clone.wait_complete()
        ids.append(generation_id(clone.guest))
        t.equal(id_in_memory(clone.guest, places[0]), ids[-1], "what the guest reads")
    t.equal(len(set(ids)), 3, f"ids of the source and of two clones: {ids}")
    for clone in clones:
        clone.guest.check_whole()
        t.equal(clone.end().code, 0, "exit status")
    items = {o["name"]: o for o in vmsnap(t, "check", image).of_type("item")}
    t.check(items["vmgenid"]["ok"], f"check of the image: {items['vmgenid']}")


@case("qemu.twins.fixed-generation-id", "qemu", 120)
def fixed(t):
    """A fixed guid is the same in each clone: a warning at the restore, and in check; with guid=auto given
    after -- it is renewed."""
    source, image, items = take(t, "-device", f"vmgenid,guid={FIXED}")
    t.check(not items["vmgenid"]["ok"] and not items["vmgenid"]["refused"], f"{items['vmgenid']}")
    source.stop()
    t.equal(vmsnap(t, "info", image).summary["vmgenid"], "fixed", "info")
    restored = restored_guest(t, source, image)
    t.equal(restored.result().of_type("running")[0]["generation_id_renewed"], False, "said")
    t.equal(generation_id(restored.guest), FIXED, "its id")
    t.equal(restored.end().code, 0, "exit status")
    t.check("vmgenid" in restored.result().err, f"a warning: {restored.result().err}")

    other = Guest(t, **source.shape(extra=("-device", "vmgenid")))
    items = {o["name"]: o for o in vmsnap(t, "check", image, "--", *other.argv()).of_type("item")}
    t.check(items["vmgenid"]["ok"], f"check with another line: {items['vmgenid']}")


@case("qemu.twins.no-generation-id", "qemu", 120)
def none(t):
    """Without the device: a note in check, and info says so."""
    source, image, items = take(t)
    t.check(not items["vmgenid"]["ok"] and not items["vmgenid"]["refused"], f"{items['vmgenid']}")
    t.check("twins" in items["vmgenid"]["reason"], f"{items['vmgenid']}")
    source.stop()
    t.equal(vmsnap(t, "info", image).summary["vmgenid"], "none", "info")
    restored = restored_guest(t, source, image)
    t.equal(restored.result().of_type("running")[0]["generation_id_renewed"], None, "said")
    t.equal(restored.end().code, 0, "exit status")
    t.check("vmgenid" not in restored.result().err, f"no warning: {restored.result().err}")


if __name__ == "__main__":
    main()
