#!/usr/bin/python3
"""Images that lie in git: the good ones stay readable, whatever this program writes today; the bad
ones are refused, each for its own reason, by the program and by the independent reader."""

import hashlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
from case import case, main, tool  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

READER = tool("tests", "reader", "image_reader")

GOOD = ["v1-good", "v1-unknown-section", "v1-minor-version"]
# Made by `vmsnap import firecracker --vmstate` of ram() and STATE.
IMPORTED = ["v1-firecracker"]
STATE = b"what Firecracker wrote to snapshot_path"
# (image, what the program says of it, whether `info` opens it: damage among the records)
BAD = [
    ("v1-truncated", "truncated", False),
    ("v1-no-trailer", "truncated", False),
    ("v1-header-bit", "the header is damaged", False),
    ("v1-page-bit", "the cluster's checksum does not match", True),
    ("v1-newer", "needs a reader of version 99", False),
    ("v1-swapped", "another cluster's record", True),
    ("v1-foreign-record", "the cluster's checksum does not match", True),
    ("v1-index-outside", "cluster 0 is said to be", False),
    ("v1-region-huge", "clusters that are not its own", False),
    ("v1-address-outside", "outside its region", False),
    ("v1-hot-outside", "names pages that do not exist", False),
    ("v1-poison-mask", "names pages that do not exist", False),
    ("v1-garbage", "bytes that belong to no record", True),
]


def ram():
    """What tests/golden/small.c says of its regions."""
    out = bytearray()
    for page in range(11):
        zero = 4 <= page < 8 or page == 9
        out += bytes(0 if zero else (page * 37 + i // 16) & 0xff for i in range(4096))
    return bytes(out)


def rom():
    return bytes(i % 251 for i in range(4096))


def image(name):
    return os.path.join(HERE, name + ".img")


def read_good(t, path):
    """Regions and memory as the formula has them, from both."""
    t.equal(vmsnap(t, "verify", path).code, 0, f"verify of {path}")
    check = t.run([READER, "check", path])
    t.equal((check.returncode, check.stdout), (0, "ok 4 records, 1 of them unused\n"), path)
    for name, wanted in (("ram", ram()), ("rom", rom())):
        out = t.path(t.unique("out"))
        code = vmsnap(t, "export", "--format", "raw", "--region", name, path, out).code
        t.equal(code, 3 if name == "ram" else 0, f"export of {name}")
        with open(out, "rb") as f:
            t.check(f.read() == wanted, f"{name} of {path} differs from the formula")
    out = t.path(t.unique("out"))
    t.equal(vmsnap(t, "export", "--format", "raw", path, out).code, 3, "export")
    whole = ram()[:5 * 4096] + bytes(3 * 4096) + ram()[5 * 4096:]
    whole += bytes(0x100000 - len(whole)) + rom()
    with open(out, "rb") as f:
        t.equal(hashlib.sha256(f.read()).hexdigest(), hashlib.sha256(whole).hexdigest(), "memory")
    found = vmsnap(t, "info", path).summary
    t.equal((found["vm_name"], found["hot_pages"], found["pages_poisoned"], found["instant"]),
            ("golden", 3, 1, "2023-11-14T22:13:20.123Z"), "info")


@case("golden.good", "cli", 60)
def good(t):
    for name in GOOD:
        read_good(t, image(name))


@case("golden.of-today", "cli", 60)
def of_today(t):
    """The writer of this build makes the same."""
    path = t.path("today")
    made = t.run([tool("tests", "golden", "image_small"), path])
    t.equal(made.returncode, 0, made.stderr)
    read_good(t, path)


@case("golden.imported", "cli", 60)
def imported(t):
    """Both files come back out of images of a Firecracker."""
    for name in IMPORTED:
        path = image(name)
        t.equal(vmsnap(t, "verify", path).code, 0, f"verify of {name}")
        t.equal(t.run([READER, "check", path]).returncode, 0, f"the reader's view of {name}")
        for kind, wanted in (("raw", ram()), ("vmstate", STATE)):
            out = t.path(t.unique("out"))
            t.equal(vmsnap(t, "export", "--format", kind, path, out).code, 0, f"export of {name}")
            with open(out, "rb") as f:
                t.check(f.read() == wanted, f"{kind} of {name}")
        found = vmsnap(t, "info", path).summary
        t.equal((found["vmm"], [r["name"] for r in found["regions"]]), ("firecracker", ["mem"]), name)


@case("golden.bad", "cli", 60)
def bad(t):
    for name, words, opens in BAD:
        path = image(name)
        result = vmsnap(t, "verify", path)
        t.equal((result.code, result.error["exit_code"]), (13, 13), f"verify of {name}")
        reasons = [o["reason"] for o in result.of_type("damage")]
        t.check(any(words in text for text in [result.error["message"], *reasons]),
                f"{name}: '{words}' is not in {result.text()}")
        t.equal(vmsnap(t, "info", path).code, 0 if opens else 13, f"info of {name}")
        t.equal(t.run([READER, "check", path]).returncode, 1, f"the reader's view of {name}")
    files = {f[:-4] for f in os.listdir(HERE) if f.endswith(".img")}
    t.equal(files, {*GOOD, *IMPORTED, *(name for name, _, _ in BAD)}, "images that no list names")


if __name__ == "__main__":
    main()
