#!/usr/bin/python3
"""`import firecracker`: an image of a memory file and a state file, and both given back."""

import filecmp
import os
import random
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import case, is_alive, main, tool, wait_until  # noqa: E402
from keys import judge  # noqa: E402
from vmsnap import check_no_litter, finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

READER = tool("tests", "reader", "image_reader")
PAGE, CLUSTER, MIB = 4096, 16384, 1 << 20
KEYS = """wall_ns ram_bytes image_bytes pages_total pages_zero pages_stored read_bytes
    device_state_bytes buffer_peak_bytes image image_id instant memory_file vmstate warnings"""
chance = random.Random(5)


def write_file(path, length, pieces):
    """A file with holes but for the pieces [(offset, bytes)]."""
    with open(path, "wb") as f:
        f.truncate(length)
        for offset, data in pieces:
            f.seek(offset)
            f.write(data)
    return path


def with_sum(data):
    """As a state file ends: with its CRC-64 (Jones)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x95ac9329ac4bc9b5 if crc & 1 else 0)
    return data + crc.to_bytes(8, "little")


def memory_file(t, name="mem", length=16 * MIB):
    return write_file(t.path(name), length, [(0, chance.randbytes(3 * MIB)),
                                             (9 * MIB + PAGE, chance.randbytes(5 * PAGE))])


def take(t, memory, image, *args, expect=0, **options):
    result = vmsnap(t, "import", "firecracker", memory, image, *args, **options)
    t.equal(result.code, expect, result.text())
    return result


def refused(t, code, words, *args, **options):
    error = take(t, *args, expect=code, **options).error
    t.check(words in error["message"], f"'{words}' is not in: {error}")
    return error


def export(t, kind, image, out, *args):
    result = vmsnap(t, "export", "--format", kind, *args, image, out)
    t.equal(result.code, 0, result.text())
    return result.summary


def same(t, one, other, what):
    t.check(filecmp.cmp(one, other, shallow=False), f"{what}: {one} and {other} differ")


FILES = {
    # name: (length, pieces, pages that are not zero)
    "one-page": (PAGE, [(0, b"\1" * PAGE)], 1),
    "one-page-hole": (PAGE, [], 0),
    "tail-of-one-page": (4 * CLUSTER + PAGE, [(4 * CLUSTER, b"\2" * PAGE)], 1),
    "tail-of-three-pages": (CLUSTER + 3 * PAGE, [(PAGE, b"\3" * PAGE), (6 * PAGE, b"\4")], 2),
    "all-holes": (64 * MIB, [], 0),
    "zeros-as-data": (2 * MIB, [(0, bytes(2 * MIB))], 0),
    "all-data": (3 * MIB + PAGE, [(0, b"\xff" * (3 * MIB + PAGE))], 3 * 256 + 1),
    "last-byte": (8 * MIB, [(8 * MIB - 1, b"\5")], 1),
    "sparse": (256 * MIB, [(i * 7 * MIB + 5 * PAGE, b"x" * 3 * PAGE) for i in range(36)], 108),
}


@case("import.round-trip", "cli", 90)
def round_trip(t):
    state = write_file(t.path("state"), 0, [(0, with_sum(chance.randbytes(12337)))])
    for name, (length, pieces, stored) in FILES.items():
        memory, image = write_file(t.path(name), length, pieces), t.path(name + ".vmsnap")
        summary = take(t, memory, image, "--vmstate", state, expect=3 if length % CLUSTER else 0).summary
        judge(t, "import", summary, KEYS)
        t.equal((summary["ram_bytes"], summary["pages_stored"], summary["device_state_bytes"]),
                (length, stored, 12345), name)
        t.equal(summary["pages_zero"] + stored, length // PAGE, f"{name}: pages")
        allocated = os.stat(memory).st_blocks * 512 + len(pieces) * 2 * CLUSTER
        t.check(summary["read_bytes"] <= allocated, f"{name}: holes were read: {summary}")
        t.equal(os.stat(image).st_mode & 0o777, 0o600, "guest memory that others may read")
        t.equal(vmsnap(t, "verify", image).code, 0, f"verify {name}")
        t.equal(t.run([READER, "check", image]).returncode, 0, f"the reader on {name}")
        for kind, wanted in (("raw", memory), ("vmstate", state)):
            export(t, kind, image, t.path("out"), "--overwrite")
            same(t, t.path("out"), wanted, f"{name}, {kind}")
            with open(t.path("piped"), "wb") as f:
                process = start_vmsnap(t, "export", "--format", kind, image, "-", stdout=f)
                t.equal(finish(t, process).code, 0, "export to stdout")
            same(t, t.path("piped"), wanted, f"{name}, {kind} on stdout")
        os.unlink(t.path("piped"))


@case("import.options", "cli", 60)
def options_count(t):
    """Levels, threads, a limit on the rate, stdout, and what `info` says."""
    memory, image = memory_file(t), t.path("image")
    for args in (("--level", "9", "--threads", "1"), ("--threads", "5", "--bwlimit", "20M")):
        summary = take(t, memory, image, "--overwrite", *args).summary
        t.check("--bwlimit" not in args or summary["wall_ns"] > 100_000_000, "the limit is not kept")
        export(t, "raw", image, t.path("out"), "--overwrite")
        same(t, memory, t.path("out"), str(args))
    with open(t.path("piped"), "wb") as f:
        process = start_vmsnap(t, "import", "firecracker", memory, "-", stdout=f)
        result = finish(t, process)
    t.equal((result.code, result.summary["vmstate"]), (0, None), result.text())
    t.equal(vmsnap(t, "verify", t.path("piped")).code, 0, "an image from a pipe")
    info = vmsnap(t, "info", t.path("piped")).summary
    t.equal([(r["name"], r["bytes"]) for r in info["regions"]], [("mem", 16 * MIB)], "regions")
    t.equal((info["vmm"], info["status"], info["device_state_bytes"]), ("firecracker", "paused", 0),
            "info")
    modified = os.stat(memory).st_mtime_ns // 1_000_000
    t.check(info["instant"].endswith(f".{modified % 1000:03}Z"), f"{info['instant']}, {modified}")
    none = vmsnap(t, "export", "--format", "vmstate", t.path("piped"), t.path("none"))
    t.equal((none.code, os.path.exists(t.path("none"))), (2, False), none.text())
    line = vmsnap(t, "import", "firecracker", "--overwrite", memory, image, json_=False)
    t.check(line.out.startswith("16 MiB RAM, ") and line.out.endswith("; no vmstate\n"), line.out)


@case("import.refuses", "cli", 60)
def refuses(t):
    """Files that can be no memory file or no state file; nothing is made of them."""
    os.mkdir(t.path("out"))
    image, memory = t.path("out/image"), memory_file(t)
    os.mkfifo(t.path("fifo"))
    refused(t, 13, "it is empty", write_file(t.path("empty"), 0, []), image)
    refused(t, 13, "no multiple of 4096", write_file(t.path("odd"), 5 * PAGE + 1, []), image)
    refused(t, 13, "not a regular file", t.dir, image)
    refused(t, 13, "not a regular file", t.path("fifo"), image)
    refused(t, 1, "can't open", t.path("nothing"), image)
    if os.path.exists("/sys/bus/platform/uevent"): # 4096 bytes that not even root may read
        refused(t, 1, "Permission denied", "/sys/bus/platform/uevent", image)
    for code, words, path in (
            (13, "it is empty", t.path("empty")), (13, "not a regular file", t.path("fifo")),
            (13, "longer than 64 MiB", write_file(t.path("huge"), 64 * MIB + 1, [])),
            (1, "can't open", t.path("nothing"))):
        refused(t, code, words, memory, image, "--vmstate", path)
    cut = take(t, memory, image, "--vmstate", write_file(t.path("state"), 64 * MIB, [(5, b"x")]), expect=3)
    t.check("check sum" in cut.summary["warnings"][0], f"{cut.summary}")
    refused(t, 1, "exists", memory, image)
    refused(t, 2, "name the same file", memory, memory, "--overwrite")
    refused(t, 2, "name the same file", memory, t.path("state"), "--overwrite", "--vmstate",
            t.path("state"))
    result = vmsnap(t, "import", "qemu", memory, t.path("out/b"))
    t.equal((result.code, "firecracker" in result.error["hint"]), (2, True), result.text())
    check_no_litter(t.path("out"), "image")


@case("import.source-changes", "cli", 60)
def source_changes(t):
    """Written to, or cut short, while it is read: no image."""
    os.mkdir(t.path("out"))

    def write(path):
        with open(path, "r+b") as f:
            f.seek(100)
            f.write(b"!")

    for where, change in (("import-reading", lambda path: os.truncate(path, 2 * MIB)),
                          ("import-reading", lambda path: os.truncate(path, 32 * MIB)),
                          ("import-reading", write), ("import-finished", write)):
        memory = memory_file(t)
        log, reached, go = pause_log(t)
        process = start_vmsnap(t, "import", "firecracker", memory, t.path("out/image"),
                               hooks={"pause_at": where, "pause_log": log})
        reached(where)
        change(memory)
        go()
        result = finish(t, process)
        t.equal(result.code, 1, result.text())
        t.check("changed" in result.error["message"], result.error)
        check_no_litter(t.path("out"))


@case("import.ends", "cli", 90)
def ends(t):
    """Interrupted, killed, out of space: nothing is left, and what was there stays."""
    os.mkdir(t.path("out"))
    memory, image = memory_file(t), t.path("out/image")
    for mask in ("", "file.tmpfile"):
        hooks = {"mask_features": mask}
        error = refused(t, 18, "No space", memory, image, hooks={**hooks, "fail_at": "sink-enospc"})
        t.check(error["hint"], error)
        refused(t, 1, "Input/output error", memory, image, hooks={**hooks, "fail_at": "sink-eio"})
        check_no_litter(t.path("out"))
        for where in ("import-reading", "import-finished"):
            for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
                log, reached, _ = pause_log(t)
                process = start_vmsnap(t, "import", "firecracker", memory, image,
                                       hooks={**hooks, "pause_at": where, "pause_log": log})
                reached(where)
                process.send_signal(number)
                result = finish(t, process)
                t.equal((result.code, result.error["exit_code"]), (code, code), result.text())
                check_no_litter(t.path("out"))
            log, reached, _ = pause_log(t)
            process = start_vmsnap(t, "import", "firecracker", memory, image,
                                   hooks={**hooks, "pause_at": where, "pause_log": log})
            os.kill(reached(where), signal.SIGKILL) # the process that does the work
            t.equal(finish(t, process).code, 1, "the worker was killed")
            check_no_litter(t.path("out"))


@case("import.watcher-killed", "cli", 60)
def watcher_killed(t):
    """The process that the user started is killed: its child gives up in order."""
    os.mkdir(t.path("out"))
    memory = memory_file(t)
    for mask in ("", "file.tmpfile"):
        log, reached, go = pause_log(t)
        process = start_vmsnap(t, "import", "firecracker", memory, t.path("out/image"), hooks={
            "mask_features": mask, "pause_at": "import-reading", "pause_log": log})
        worker = reached("import-reading")
        process.kill()
        process.wait(20)
        go()
        wait_until(lambda pid=worker: not is_alive(pid), 20, "the child ends")
        check_no_litter(t.path("out"))


@case("import.page-cache", "cli", 60)
def page_cache(t):
    """What was cached stays, what was not is not left there."""
    memory = memory_file(t)

    def resident():
        return int(t.run(["fincore", "-b", "-n", "-o", "RES", memory]).stdout)

    def drop():
        fd = os.open(memory, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        return resident()

    t.need(drop() == 0, "files here can't be dropped from the page cache")
    take(t, memory, t.path("a"))
    t.check(resident() < MIB // 4, f"{resident()} bytes are cached after an import")
    with open(memory, "rb") as f:
        f.read()
    cached = resident()
    t.check(cached > 3 * MIB, f"only {cached} bytes are cached after reading")
    take(t, memory, t.path("b"))
    t.equal(resident(), cached, "bytes that are cached after an import of a cached file")


@case("import.restore-says-what-to-do", "cli", 30)
def restore_says_what_to_do(t):
    memory, image = memory_file(t), t.path("image")
    take(t, memory, image)
    for args in ((image,), ("--print-command", image), (image, "--", "/bin/true")):
        result = vmsnap(t, "restore", *args)
        t.equal(result.code, 15, result.text())
        t.check("Firecracker" in result.error["message"] and "--listen" in result.error["hint"],
                result.error)
    checked = vmsnap(t, "check", image)
    line = next(o for o in checked.objects if o.get("name") == "command-line")
    t.check(line["ok"] and "--listen" in line["reason"], checked.text())
    names = [o.get("name") for o in checked.objects]
    t.check("image-owner" not in names and "executable" not in names, names)
    checked = vmsnap(t, "check", image, "--", "/bin/true")
    t.equal(checked.code, 15, checked.text())


if __name__ == "__main__":
    main()
