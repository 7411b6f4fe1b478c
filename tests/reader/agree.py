#!/usr/bin/python3
"""The program and a reader that shares nothing with it see the same in an image."""

import os
import random
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import TOP, case, main, tool, wait_until  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

READER = tool("tests", "reader", "image_reader")
SAMPLE = tool("tests", "reader", "image_sample")


def sample(t):
    path = t.path("sample")
    made = t.run([SAMPLE, path])
    t.equal(made.returncode, 0, made.stderr)
    return path


def read(t, *args, binary=True):
    """What the reader says; bytes."""
    process = t.spawn([READER, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    t.equal(process.returncode, 0, f"reader {args}: {err.decode()}")
    return out if binary else out.decode()


def export(t, image, out, *args, expect=0):
    result = vmsnap(t, "export", "--format", "raw", *args, image, out)
    t.equal(result.code, expect, result.text())
    return result


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def is_zero(f, start, end):
    """Whether there are only zeros in a part of a sparse file; holes are not read."""
    while start < end:
        try:
            start = os.lseek(f.fileno(), start, os.SEEK_DATA)
        except OSError:
            return True # a hole up to the end of the file
        chunk = os.pread(f.fileno(), max(0, min(1 << 20, end - start)), start)
        if chunk.count(0) != len(chunk):
            return False
        start += max(1, len(chunk))
    return True


def layout(t, image):
    """(regions {name: bytes}, addresses [(address, bytes, offset, region)]) as the reader has it."""
    regions, addresses = {}, []
    for line in read(t, "list", image, binary=False).splitlines():
        kind, rest = line.split(" ", 1)
        if kind == "region":
            length, name = rest.split(" ", 1)
            regions[name] = int(length)
        else:
            address, length, offset, name = rest.split(" ", 3)
            addresses.append((int(address), int(length), int(offset), name))
    return regions, addresses


def agree(t, image, expect=0):
    """Regions one by one, and the guest's memory by address, from both."""
    t.say(read(t, "check", image, binary=False).strip())
    regions, addresses = layout(t, image)
    info = vmsnap(t, "info", image).summary
    t.equal({r["name"]: r["bytes"] for r in info["regions"]}, regions, "regions")
    t.equal([(g["address"], g["bytes"], g["region_offset"], g["region"])
             for g in info["guest_physical_ranges"]], addresses, "addresses")
    content = {name: read(t, "raw", image, name) for name in regions}
    for i, name in enumerate(regions):
        out = t.path(f"region{i}")
        export(t, image, out, "--region", name, expect=expect if i == 0 else 0)
        t.equal(os.path.getsize(out), regions[name], f"length of {name}")
        t.check(contents(out) == content[name], f"region {name} differs")
    t.check(any(any(c) for c in content.values()), "nothing but zeros: nothing was compared")
    return agree_by_address(t, image, content, addresses, expect)


def agree_by_address(t, image, content, addresses, expect):
    whole = t.path("whole")
    result = export(t, image, whole, expect=expect)
    at = 0
    with open(whole, "rb") as f:
        for address, length, offset, name in addresses:
            t.check(is_zero(f, at, address), f"something in the gap before {address:#x}")
            at = address + length
            t.check(os.pread(f.fileno(), length, address) == content[name][offset:offset + length],
                    f"memory at {address:#x} differs")
    t.equal((os.path.getsize(whole), result.summary["output_bytes"]), (at, at), "length")
    return whole


@case("reader.sample", "cli", 60)
def sample_agrees(t):
    """Short last cluster, zero region, a cluster that was saved twice, a poisoned page (exit 3)."""
    image = sample(t)
    whole = agree(t, image, expect=3)
    for threads in ("1", "3"):
        process = t.spawn([tool("vmsnap"), "export", "--format", "raw", "--threads", threads, image,
                           "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        out, _ = process.communicate(timeout=30)
        t.equal(process.returncode, 3, "export to stdout")
        t.check(out == contents(whole), "stdout differs from the file")
    t.equal(read(t, "section", image, "6"), b"QEVMstate", "device state")
    t.equal(read(t, "description", image), b'{"vm_name":"sample"}', "description")


@case("reader.vm", "cli,qemu", 90)
def vm_agrees(t):
    """An image of a real QEMU, firmware and all."""
    socket, image = t.path("qmp"), t.path("image")
    t.spawn(["qemu-system-x86_64", "-accel", "tcg", "-m", "48", "-nodefaults", "-display", "none",
             "-vga", "none", "-qmp", f"unix:{socket},server=on,wait=off"])
    wait_until(lambda: os.path.exists(socket), 20, "QEMU's QMP socket")
    taken = vmsnap(t, "snapshot", "--qmp", socket, image)
    t.equal(taken.code, 0, taken.text())
    whole = agree(t, image)
    t.equal(os.path.getsize(whole), 1 << 32, "the firmware ends at 4 GiB")
    t.check(os.stat(whole).st_blocks * 512 < 4 << 20, "zeros were written")
    state = read(t, "section", image, "6")
    t.equal(state[:8], b"QEVM\0\0\0\3", "start of the device state")


@case("reader.finds-damage", "cli", 90)
def finds_damage(t):
    """Both find every flipped bit, so neither agrees by not looking."""
    with open(sample(t), "rb") as f:
        data = f.read()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    t.say(f"seed {seed}, {len(data)} bytes")
    t.say = lambda text: None
    for _ in range(60):
        at = chance.randrange(len(data))
        bad = bytearray(data)
        bad[at] ^= 1 << chance.randrange(8)
        path = t.path("bad")
        with open(path, "wb") as f:
            f.write(bad)
        t.equal(t.run([READER, "check", path]).returncode, 1, f"reader, bit at {at}, seed {seed}")
        t.equal(vmsnap(t, "verify", path).code, 13, f"verify, bit at {at}, seed {seed}")


@case("reader.shares-nothing", "cli", 30)
def shares_nothing(t):
    with open(os.path.join(TOP, "tests", "reader", "reader.c"), encoding="utf-8") as f:
        includes = re.findall(r"#\s*include\s*(\S+)", f.read())
    t.check(len(includes) > 5, f"includes: {includes}")
    t.equal([i for i in includes if not re.fullmatch(r"<\w+\.h>", i)], [], "its own headers only")
    libraries = set(re.findall(r"^\s*(\S+?)\.so", t.run(["ldd", READER]).stdout, re.M))
    names = {os.path.basename(name) for name in libraries}
    t.equal(names - {"linux-vdso", "libzstd", "libxxhash", "libc", "ld-linux-x86-64"}, set(),
            "libraries of the reader")
    symbols = t.run(["nm", READER]).stdout
    t.check("main" in symbols and not re.search(r" (image|codec|error)_\w+", symbols), "symbols")


if __name__ == "__main__":
    main()
