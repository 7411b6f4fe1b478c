#!/usr/bin/python3
"""`vmsnap check`: each item, the exit code of the worst, and that nothing is changed or started."""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import snapshot, vmsnap  # noqa: E402


def check(t, code, *args):
    """Runs it, and returns {name: item}; the summary must agree with the items."""
    result = vmsnap(t, "check", *args)
    t.equal(result.code, code, f"exit status ({result.text()})")
    items = result.of_type("item")
    refused = [i for i in items if i["refused"]]
    summary = result.summary
    t.equal((summary["items"], summary["refused"], summary["ok"], summary["exit_code"]),
            (len(items), len(refused), not refused, code), "summary")
    for item in items:
        t.check(item["reason"], f"{item['name']} without a reason")
        t.check(not (item["ok"] and (item["refused"] or item["allow"])), f"{item}")
    return {i["name"]: i for i in items}


@case("qemu.check.kernel", "qemu", 30)
def kernel(t):
    items = check(t, 0)
    t.check(all(name.startswith("kernel.") for name in items), sorted(items))
    hidden = vmsnap(t, "check", hooks={"mask_features": "poison"})
    t.equal(hidden.code, 0, "without what there is another way for")
    hidden = vmsnap(t, "check", hooks={"mask_features": "wp-shmem"})
    t.equal(hidden.code, 12, f"without what is needed ({hidden.text()})")


@case("qemu.check.guest", "qemu", 90)
def guest_items(t):
    guest = Guest(t, mib=16).boot_up()
    items = check(t, 0, "--qmp", guest.qmp_path)
    t.check(str(guest.pid) in items["process"]["reason"], items["process"])
    t.check("running" in items["run-state"]["reason"], items["run-state"])
    t.check("pc.ram" in items["memory"]["reason"], items["memory"])
    t.check("mergeable" in items["ksm"]["reason"], items["ksm"])
    only = check(t, 0, "--pid", guest.pid)
    t.check("traced" in only and "disks" not in only, sorted(only))
    guest.check_whole()


@case("qemu.check.guest-with-hazards", "qemu", 90)
def guest_with_hazards(t):
    disk = t.path("disk")
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    guest = Guest(t, ram="memfd", devices=("balloon",), work="none",
                  extra=["-S", "-drive", f"if=virtio,format=raw,file={disk}"]).start()
    items = check(t, 14, "--qmp", guest.qmp_path)
    t.equal(items["disks"]["allow"], "disks", "what allows the disk")
    t.check(items["balloon"]["refused"], "a balloon over shared memory")
    t.equal(items["balloon"]["allow"], None, "nothing allows it")
    guest.stop()
    shared = Guest(t, devices=("balloon",), work="none", extra=["-S"]).start()
    t.equal(check(t, 14, "--qmp", shared.qmp_path)["balloon"]["allow"], "balloon",
            "what allows a balloon over private memory")


@case("qemu.check.no-guest", "qemu", 60)
def no_guest(t):
    t.check(check(t, 10, "--qmp", t.path("none"))["qmp"]["refused"], "no such socket")
    t.check(check(t, 10, "--pid", "4194303")["process"]["refused"], "no such process")
    waiting = Guest(t, work="none", devices=(), extra=["-incoming", "defer"]).start()
    items = check(t, 11, "--qmp", waiting.qmp_path)
    t.check("inmigrate" in items["run-state"]["reason"], items["run-state"])


@case("qemu.check.image", "qemu", 120)
def image_items(t):
    guest = Guest(t, mib=16).boot_up()
    image = t.path("image")
    snapshot(t, guest, image)
    items = check(t, 14, image)
    t.check("source VM" in items["in-use"]["reason"], items["in-use"])
    guest.stop()
    wait_until(lambda: not os.path.exists(f"/proc/{guest.pid}"), 10, "the source has gone")
    before = descendants(os.getpid())
    items = check(t, 0, image)
    t.check("executable" in items and guest.name in items["image"]["reason"], sorted(items))
    other = Guest(t, **guest.shape())
    given = check(t, 0, image, "--", *other.argv())
    t.check("image-owner" not in given, "a given line needs no trust in the image")
    t.check("not compared" in given["machine"]["reason"] and not given["machine"]["refused"], given["machine"])
    argv = other.argv()
    at = argv.index("-kernel") + 1
    gone = check(t, 16, image, "--", *argv[:at], t.path("gone"), *argv[at + 1:])
    t.check(gone["files"]["refused"] and t.path("gone") in gone["files"]["reason"], gone["files"])
    wrong = check(t, 15, image, "--", *Guest(t, **guest.shape(machine="q35")).argv())
    t.check(wrong["command-line"]["refused"], wrong["command-line"])
    t.equal(descendants(os.getpid()), before, "processes that were started")
    os.chmod(image, 0o666)
    t.check(check(t, 14, image)["image-owner"]["refused"], "an image that anybody can write")
    with open(image, "r+b") as f:
        f.truncate(os.path.getsize(image) - 1)
    t.check(check(t, 13, image)["image"]["refused"], "a truncated image")
    t.check(check(t, 13, t.path("disk.img"))["image"]["refused"], "a file that is no image")


if __name__ == "__main__":
    main()
