#!/usr/bin/python3
"""info, verify and export, on a sample image and on images that lie."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import case, main, tool  # noqa: E402
from imagefile import BLOCK, DESCRIPTION, GPA, INDEX, ImageFile  # noqa: E402
from vmsnap import finish, start_vmsnap, vmsnap  # noqa: E402

LAUNCH = ["qemu-system-x86_64", "-name", "it's \x1b[31mred", "-append", "a b", ""]
POISONED_OFFSET = 9 * 4096 # tests/unit/image_sample.h


def sample(t, name="sample"):
    """The sample image of the unit tests as a file."""
    path = t.path(name)
    made = t.run([tool("tests", "reader", "image_sample"), path])
    t.equal(made.returncode, 0, made.stderr)
    return path


def changed(t, name, change):
    """The sample after change(ImageFile), all checksums right."""
    with open(sample(t), "rb") as f:
        image = ImageFile(f.read())
    change(image)
    path = t.path(name)
    with open(path, "wb") as f:
        f.write(image.build())
    return path


def described(t, description):
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    return changed(t, "described", lambda image: image.replace(DESCRIPTION, text))


def first_record(path, cluster):
    """(file offset of the record, bytes of its frame)."""
    with open(path, "rb") as f:
        entry = ImageFile.get(ImageFile(f.read()).section(INDEX), 8 * cluster)
    return entry >> 16, entry & 0xffff


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 0x10]))


@case("image.info", "cli", 30)
def info(t):
    path = described(t, {"vm_name": "web", "vmm": "qemu", "vmm_version": "7.2", "machine": "pc-7.2",
                         "accelerator": "kvm", "status": "running", "launch": {"argv": LAUNCH}})
    found = vmsnap(t, "info", path).summary
    for key, wanted in {"format_version": 1, "ram_bytes": (203 + 1 + 512) * 4096, "base": None,
                        "hot_pages": 3, "pages_poisoned": 1, "pages_total": 716, "vm_name": "web",
                        "machine": "pc-7.2", "command_line": LAUNCH, "device_state_bytes": 9,
                        "instant": "2023-11-14T22:13:20.123Z", "image": path}.items():
        t.equal(found[key], wanted, key)
    t.equal(found["pages_zero"] + found["pages_stored"] + found["pages_poisoned"], 716, "pages")
    t.equal([(r["name"], r["kind"], r["bytes"], r["page_bytes"]) for r in found["regions"]],
            [("ram", "anonymous", 203 * 4096, 4096), ("/rom@etc/bios", "shared", 4096, 4096),
             ("zeros", "private-file", 2 << 20, 2 << 20)], "regions")
    t.equal(found["guest_physical_ranges"][1], {"address": 0x100000, "bytes": 4096,
            "region": "/rom@etc/bios", "region_offset": 0, "rom": True}, "a range")
    text = vmsnap(t, "info", path, json_=False).out
    t.check("0x0000100000" not in text, f"addresses without -v: {text}")
    more = vmsnap(t, "info", "-v", path, json_=False).out
    for words in ("0x0000100000 to 0x0000100fff: /rom@etc/bios, from offset 0x0, ROM",
                  "poisoned     ram, offset 0x9000"):
        t.check(words in more, f"'{words}' is not in: {more}")
    t.check(set(text.split("\n")) < set(more.split("\n")), "-v leaves something out")


@case("image.info-escapes", "cli", 30)
def info_escapes(t):
    """Nothing of an image reaches the terminal that could move its cursor or hide text; and the
    command line can be pasted into bash."""
    path = described(t, {"vm_name": "a\x1b]0;owned\x07\n\u202eb\u009b1m\u00e9\\", "vmm": "\r\x7f",
                         "launch": {"argv": LAUNCH}})
    out = vmsnap(t, "info", path, json_=False).out
    t.equal([c for c in out if ord(c) < 32 and c != "\n" or 127 <= ord(c) < 160 or c == "\u202e"],
            [], f"raw control characters in {out!r}")
    t.check("a\\x1b]0;owned\\x07\\x0a\\xe2\\x80\\xaeb\\xc2\\x9b1m\u00e9\\\\," in out, repr(out))
    t.equal(out.count("\nVM "), 1, "a line of the image's own")
    line = next(x for x in out.split("\n") if x.startswith("command line")).split(None, 2)[2]
    echoed = t.run(["bash", "-c", f"printf '%s\\0' {line}"]).stdout
    t.equal(echoed.split("\0")[:-1], LAUNCH, "what bash makes of the command line")


@case("image.info-of-little", "cli", 30)
def info_of_little(t):
    """Descriptions that hold nothing, or the wrong things."""
    for description in ({}, {"launch": 3, "vm_name": [1], "vmm": None},
                        {"launch": {"argv": {"a": 1}}}, {"launch": {"argv": [1, None, "x"]}}):
        path = described(t, description)
        for mode in (True, False):
            t.equal(vmsnap(t, "info", path, json_=mode).code, 0, f"info of {description}")
    for text in (b"", b"[]", b"{", b"\xff", b'{"a":1}x', b"[" * 100000):
        result = vmsnap(t, "info", described(t, text))
        t.equal(result.code, 13, f"info of the description {text[:20]}")
        t.check("description" in result.error["message"], result.error["message"])


@case("image.verify-names-damage", "cli", 60)
def verify_names_damage(t):
    path = sample(t)
    good = vmsnap(t, "verify", path).summary
    t.equal((good["pages_checked"], good["pages_damaged"], good["places_damaged"]), (716, 0, 0),
            "a good image")
    t.equal(good["image_bytes_read"], os.path.getsize(path), "every byte is read")
    text = vmsnap(t, "verify", path, json_=False)
    t.check("716 pages" in text.out and "none damaged" in text.out, text.text())
    record, _ = first_record(path, 2)
    flip(path, record + 40)
    flip(path, BLOCK + 30) # a record that the index does not name
    result = vmsnap(t, "verify", path)
    t.equal((result.code, result.error["exit_code"]), (13, 13), "exit code")
    t.check(path in result.error["message"] and result.error["hint"], result.error)
    t.equal((result.summary["pages_damaged"], result.summary["places_damaged"]), (4, 2), "damage")
    places = {o["image_offset"]: o for o in result.of_type("damage")}
    t.equal(sorted(places), [BLOCK, record], "places")
    t.equal([places[record].get(k) for k in ("region", "region_offset", "pages")],
            ["ram", 2 * 16384, 4], "the damaged cluster")
    t.check("region" not in places[BLOCK], places[BLOCK])
    lines = vmsnap(t, "verify", path, json_=False).out
    t.check("region ram, bytes 0x8000 to 0xbfff" in lines, lines)


@case("image.export-refuses", "cli", 60)
def export_refuses(t):
    """Nothing is written over, nothing incomplete is left."""
    path, out = sample(t), t.path("out")
    with open(out, "w", encoding="ascii") as f:
        f.write("mine")

    def refused(code, words, *args, **options):
        result = vmsnap(t, "export", "--format", "raw", *args, **options)
        t.equal(result.code, code, result.text())
        t.check(words in result.error["message"], f"'{words}': {result.error}")
        with open(out, encoding="ascii") as f:
            t.equal(f.read(), "mine", "the file that was there")
        return result

    t.check("--overwrite" in refused(1, "exists", path, out).error["hint"], "no hint")
    refused(1, "not a regular file", "--overwrite", path, t.dir)
    refused(2, "no region 'x?'", "--region", "x\x1b", path, out)
    refused(1, "No such file", path, t.path("no/such"))
    nowhere = changed(t, "nowhere", lambda image: image.replace(GPA, b""))
    refused(2, "guest-physical", nowhere, out, "--overwrite")
    flip(path, first_record(path, 3)[0] + 60)
    bad = refused(13, "region ram, bytes 0xc000", "--overwrite", path, out)
    t.check("checksum" in bad.error["message"], bad.error)
    t.equal(sorted(os.listdir(t.dir)), ["nowhere", "out", "sample"], "files")


@case("image.export-overwrites", "cli", 30)
def export_overwrites(t):
    path, out = sample(t), t.path("out")
    with open(out, "wb") as f:
        f.write(b"x" * 10000000)
    for hooks in (None, {"mask_features": "file.tmpfile"}):
        result = vmsnap(t, "export", "--format", "raw", "--overwrite", path, out, hooks=hooks)
        t.equal((result.code, result.summary["pages_poisoned"]), (3, 1), result.text())
        t.check("region ram, offset 0x9000" in result.summary["warnings"][0],
                result.summary["warnings"])
        t.equal(os.path.getsize(out), 0x200000 + 103 * 4096, "length")
        with open(out, "rb") as f:
            f.seek(POISONED_OFFSET)
            t.check(not any(f.read(4096)), "a poisoned page is no hole")
        t.equal(os.stat(out).st_mode & 0o777, 0o600, "guest memory that others may read")
    t.check(result.summary["written_bytes"] < os.stat(out).st_size / 2, "zeros were written")
    t.equal(sorted(os.listdir(t.dir)), ["out", "sample"], "files")
    spoken = vmsnap(t, "export", "--format", "raw", "--overwrite", path, out, json_=False)
    t.check("vmsnap: warning: poisoned page left out: region ram" in spoken.err, spoken.err)


def moved(t, address):
    """The sample with its third range of addresses elsewhere."""
    return changed(t, "far", lambda image: image.set(image.section(GPA), 64, address))


@case("image.export-too-long", "cli", 30)
def export_too_long(t):
    """An address space that ends where no file can."""
    path = moved(t, 1 << 63)
    result = vmsnap(t, "export", "--format", "raw", path, t.path("out"))
    t.equal(result.code, 1, result.text())
    t.check("too large" in result.error["message"], result.error)
    t.check("--region" in result.error["hint"], result.error)
    t.equal(os.listdir(t.dir).count("out"), 0, "a file is left")


@case("image.export-interrupted", "cli", 60)
def export_interrupted(t):
    """SIGINT and SIGTERM end an export that goes on and one that waits for a pipe; a reader that
    has gone is an error."""
    path = moved(t, 1 << 52) # 4 PiB: a pipe is never done
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = start_vmsnap(t, "export", "--format", "raw", path, "-")
        time.sleep(0.3) # nobody reads: it hangs in write()
        t.equal(process.poll(), None, "it waits for the pipe")
        process.send_signal(number)
        result = finish(t, process, 10)
        t.equal((result.code, result.error["exit_code"]), (code, code), result.err)
    null = subprocess.DEVNULL
    process = start_vmsnap(t, "export", "--format", "raw", path, "-", stdout=null)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    t.equal(finish(t, process, 10).code, 130, "interrupted at work")
    process = start_vmsnap(t, "export", "--format", "raw", path, "-")
    process.stdout.read(100000)
    process.stdout.close()
    process.wait(10)
    t.equal(process.returncode, 1, "the reader has gone")
    t.check(b"Broken pipe" in process.stderr.read(), "cause")


@case("image.export-killed", "cli", 60)
def export_killed(t):
    """Neither a signal nor SIGKILL leaves a file; where there is no O_TMPFILE, SIGKILL leaves the
    hidden one, never the final name."""
    path, out = sample(t), t.path("dir/out")
    os.mkdir(t.path("dir"))
    for hooks, left in (({}, 0), ({"mask_features": "file.tmpfile"}, 1)):
        hooks.update(kill_at="sink-before-link", pause_log=t.path("log"))
        process = start_vmsnap(t, "export", "--format", "raw", path, out, hooks=hooks)
        t.equal(finish(t, process).code, -signal.SIGKILL, "killed before the file has its name")
        names = os.listdir(t.path("dir"))
        t.equal((len(names), names.count("out")), (left, 0), f"files: {names}")
        for name in names:
            os.unlink(t.path(f"dir/{name}"))


@case("image.export-disk-full", "cli", 60)
def export_disk_full(t):
    t.need(os.geteuid() == 0, "mounting a small file system needs root")
    small = t.path("small")
    os.mkdir(small)
    mounted = t.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", small])
    t.need(mounted.returncode == 0, f"no mount: {mounted.stderr}")
    t.defer(lambda: subprocess.run(["umount", "-l", small], check=False))
    result = vmsnap(t, "export", "--format", "raw", sample(t), os.path.join(small, "out"))
    t.equal((result.code, result.error["exit_code"]), (18, 18), result.text())
    t.check("small/out" in result.error["message"], result.error)
    t.equal(os.listdir(small), [], "files left")


@case("image.zstd-accepts", "cli", 30)
def zstd_accepts(t):
    t.need(shutil.which("zstd"), "the program zstd is not installed")
    path = sample(t)
    run = t.run(["zstd", "-t", path])
    t.equal(run.returncode, 0, run.stderr)
    flip(path, 8 + BLOCK) # into a record's checksum: zstd can't notice, verify does
    t.equal(t.run(["zstd", "-t", path]).returncode, 0, "zstd -t looks at data frames only")
    t.equal(vmsnap(t, "verify", path).code, 13, "verify")


if __name__ == "__main__":
    main()
