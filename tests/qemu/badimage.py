#!/usr/bin/python3
"""Images that are cut, damaged, foreign, or do not fit the VM they are restored into. `verify` finds
every one; none reaches a guest."""

import os
import random
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, is_alive, main, wait_until  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import Restore, snapshot, vmsnap  # noqa: E402


def small_image(t, **shape):
    """A guest of the firmware guest and an image of it: a few hundred KiB."""
    guest = Guest(t, boot="firmware", memory_mib=32, boot_pages=1024, **shape).boot_up()
    image = t.path("good")
    snapshot(t, guest, image)
    with open(image, "rb") as f:
        return guest, f.read()


def write(t, name, data):
    path = t.path(name)
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, 0o600)
    return path


def flipped(data, chance, first=0, end=None):
    at = chance.randrange(first, end or len(data))
    return at, data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1:]


def verify_random(t, count):
    """Every cut and every flipped bit is found, wherever it is; the first record's own checksum
    among them."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    guest, data = small_image(t)
    guest.stop()
    t.equal(vmsnap(t, "verify", t.path("good")).code, 0, "verify of the good image")
    t.say(f"seed {seed}, {len(data)} bytes, {count} cuts and {count} flips")
    t.quiet = True # one line per command would be too many
    t.equal(vmsnap(t, "verify", write(t, "bad", flipped(data, chance, 4104, 4112)[1])).code, 13,
            "verify with a bit flipped in a record's checksum")
    for _ in range(count):
        cut = chance.randrange(len(data))
        result = vmsnap(t, "verify", write(t, "bad", data[:cut]))
        t.equal(result.code, 13, f"verify of {cut} bytes of {len(data)}: {result.text()}")
        at, bad = flipped(data, chance)
        result = vmsnap(t, "verify", write(t, "bad", bad))
        t.equal(result.code, 13, f"verify with a bit flipped at {at}: {result.text()}")
        for command in ("info", "export"):
            rest = ["--format", "raw", t.path("raw")] if command == "export" else []
            result = vmsnap(t, command, t.path("bad"), *rest)
            t.check(result.code in (0, 13), f"{command}, bit flipped at {at}: {result.text()}")
            if os.path.exists(t.path("raw")):
                os.unlink(t.path("raw"))


@case("qemu.badimage.verify-200", "qemu", 180)
def verify_200(t):
    verify_random(t, 200)


def restore_random(t, count):
    """Restores damaged images: refused, or the guest stands still at the damaged page. It never
    goes on with a wrong byte (the firmware guest prints E and stops)."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    guest, data = small_image(t)
    guest.stop()
    t.say(f"seed {seed}")
    refused = waited = ran = 0
    for _ in range(count):
        kind = chance.randrange(3)
        if kind == 0:
            at = chance.randrange(len(data))
            bad = data[:at]
        elif kind == 1:
            at, bad = flipped(data, chance)
        else: # among the pages, which are no more than a part of so small an image
            at, bad = flipped(data, chance, 4096, struct.unpack_from("<Q", data, len(data) - 4040)[0])
        image = write(t, "bad", bad)
        target = Guest(t, name="re", **guest.shape())
        restored = Restore(t, image, target)
        wait_until(lambda r=restored: r.process.poll() is not None or
                   any(r.result().of_type(k) for k in ("running", "summary")), 30,
                   f"an outcome of the restore with damage at {at}")
        if restored.process.poll() is None:
            time.sleep(0.7)
        result = restored.result()
        target.check_no_errors()
        if result.of_type("summary"):
            t.check(False, f"all pages came in from an image damaged at {at}: {result.text()}")
        if restored.process.poll() is None:
            waited += 1
            text = result.err
            t.check("13" in text or "damaged" in text or "checksum" in text,
                    f"the damage at {at} is reported: {result.text()}")
        elif result.code == 13:
            refused += 1
            t.equal(result.error["exit_code"], 13, "exit_code")
        else:
            ran += 1
            t.check(result.code != 0, f"damage at {at}: {result.text()}")
        restored.give_up()
    t.say(f"{refused} refused, {waited} waited for a damaged page, {ran} ended otherwise")


@case("qemu.badimage.restore-10", "qemu", 120)
def restore_10(t):
    restore_random(t, 10)


@case("qemu.badimage.restore-200", "qemu,slow", 1200)
def restore_200(t):
    restore_random(t, 200)


@case("qemu.badimage.not-an-image", "qemu", 60)
def not_an_image(t):
    """Something else, nothing, a folder, a device; and an image of a newer format."""
    guest, data = small_image(t)
    guest.stop()
    os.mkdir(t.path("folder"))
    for name, content in (("text", b"hello\n" * 4000), ("empty", b""), ("zeros", bytes(1 << 16)),
                          ("noise", random.Random(1).randbytes(1 << 16)),
                          ("half", data[:4096] + data[-4096:])):
        path = write(t, name, content)
        for command in ("verify", "info", "restore"):
            rest = ["--", "/bin/false"] if command == "restore" else []
            result = vmsnap(t, command, path, *rest)
            t.equal(result.code, 13, f"{command} of {name}: {result.text()}")
            t.check(path in result.error["message"], f"the file is named: {result.error}")
    for path in (t.path("folder"), "/dev/null", t.path("nothing")):
        for command in ("verify", "info", "restore"):
            result = vmsnap(t, command, path)
            t.check(result.code in (1, 2, 13), f"{command} of {path}: {result.text()}")
            t.check(path in result.error["message"], f"the file is named: {result.error}")


@case("qemu.badimage.newer-format", "qemu", 60)
def newer_format(t):
    """A header that asks for a newer reader, its checksum right."""
    try:
        import xxhash
    except ImportError:
        t.skip("no xxhash module for Python")
    guest, data = small_image(t)
    guest.stop()
    header = bytearray(data[:4096])
    struct.pack_into("<II", header, 16, 99, 99) # version, compat_version
    struct.pack_into("<Q", header, 48, 0)
    struct.pack_into("<Q", header, 48, xxhash.xxh3_64_intdigest(bytes(header)))
    image = write(t, "newer", bytes(header) + data[4096:])
    for command in ("verify", "info", "restore"):
        rest = ["--", "/bin/false"] if command == "restore" else []
        result = vmsnap(t, command, image, *rest)
        t.equal(result.code, 13, f"{command}: {result.text()}")
        t.check("newer" in result.error["message"] or "99" in result.error["message"],
                f"the version is named: {result.error}")


@case("qemu.badimage.poison", "qemu", 60)
def poison(t):
    """A guest under TCG touches memory that was poisoned: QEMU can't tell it and ends with SIGBUS, as
    docs/restore.md says. It reads no wrong byte before that."""
    try:
        from imagefile import damage_cluster, stored_clusters
    except ImportError:
        t.skip("no xxhash module for Python")
    guest, data = small_image(t)
    guest.stop()
    bad = write(t, "bad", data)
    clusters = sorted(c for c in stored_clusters(data) if c < 32 << 20 >> 14)
    damage_cluster(bad, clusters[len(clusters) // 2])
    target = Guest(t, name="re", **guest.shape())
    restored = Restore(t, bad, target, "--on-damage", "poison")
    restored.process.wait(30)
    result = restored.result()
    target.check_no_errors()
    t.equal(result.code, 128 + 7, f"QEMU's end: {result.text()}")
    errors = result.of_type("error")
    t.equal([(e["exit_code"], e["guest_state"]) for e in errors], [(13, "running"), (13, "ended")],
            f"the damage is told, and what came of it: {result.text()}")
    t.check("SIGBUS" in errors[1]["message"], errors[1])
    t.equal(result.summary["pages_poisoned"], 4, "pages_poisoned")


def does_not_fit(t, image, shape, what, code=15, extra=()):
    target = Guest(t, name="re", **shape)
    result = vmsnap(t, "restore", image, "--", *target.argv(), *extra)
    t.equal(result.code, code, f"{what}: {result.text()}")
    error = result.error
    t.equal(error["exit_code"], code, "exit_code")
    t.say(f"{what}: {error['message']}")
    t.check("\n" not in error["message"], "one line")
    t.equal([line for line in target.console.lines()], [], f"{what}: what the guest said")
    return error


@case("qemu.badimage.wrong-machine", "qemu", 150)
def wrong_machine(t):
    """Restored into another machine: refused by name before the guest runs."""
    source = Guest(t, cpus=2, mib=32).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    shape = source.shape()
    does_not_fit(t, image, {**shape, "memory_mib": 256}, "less memory")
    does_not_fit(t, image, {**shape, "memory_mib": 1024}, "more memory")
    does_not_fit(t, image, {**shape, "machine": "q35"}, "another machine type")
    does_not_fit(t, image, {**shape, "cpus": 1}, "fewer CPUs")
    does_not_fit(t, image, {**shape, "devices": ("rng",)}, "a device is missing")
    does_not_fit(t, image, {**shape, "devices": ("rng", "disk", "balloon")}, "a device too many")
    error = does_not_fit(t, image, {**shape, "extra": ["-cpu", "Penryn"]}, "another CPU model")
    t.check("cpu" in error["message"].lower(), "the CPU is named")
    error = does_not_fit(t, image, {**shape, "extra": ["-cpu", "qemu64,-sse4.1,-cx16"]},
                         "other CPU features")
    t.check("cpu" in error["message"].lower(), "the CPU is named")
    source.check_whole()


@case("qemu.badimage.beside-source", "qemu", 60)
def beside_source(t):
    """Its running source listens on the sockets of the line: refused before anything starts."""
    source = Guest(t, mib=32).boot_up()
    image = t.path("image")
    snapshot(t, source, image)
    for rest in ([], ["--", *source.argv()]):
        result = vmsnap(t, "restore", image, *rest)
        t.equal(result.code, 14, f"exit status: {result.text()}")
        t.check(source.dir in result.error["message"], f"the socket is named: {result.error}")
    source.connect() # the sockets are still its own
    source.check_whole()


@case("qemu.badimage.vmm-fails", "qemu", 60)
def vmm_fails(t):
    """The VMM does not start, is none, or says nothing."""
    guest, _ = small_image(t)
    guest.stop()
    image = t.path("good")
    for argv, codes in ((["/no/such/qemu"], (16,)), (["/bin/false"], (16,)),
                        (["qemu-system-x86_64", "-no-such-option"], (16,))):
        result = vmsnap(t, "restore", "--timeout", "5s", image, "--", *argv)
        t.check(result.code in codes, f"{argv}: {result.text()}")
    silent = vmsnap(t, "restore", "--timeout", "2s", image, "--",
                    "/bin/sh", "-c", "exec sleep 1000")
    t.equal(silent.code, 17, f"a VMM that says nothing: {silent.text()}")
    # The keeper is dismissed, not waited for: it may be on its way out.
    wait_until(lambda: not any(is_alive(pid) for pid in descendants(os.getpid())), 5,
               "no process is left")


@case("qemu.badimage.recorded-line-is-code", "qemu", 60)
def recorded_line_is_code(t):
    """A recorded line runs only from an image that no one else could have written."""
    guest, data = small_image(t)
    guest.stop()
    image = write(t, "open", data)
    os.chmod(image, 0o666)
    result = vmsnap(t, "restore", image)
    t.equal(result.code, 14, f"an image that all may write: {result.text()}")
    os.chmod(image, 0o600)
    os.chown(image, 65534, 65534)
    result = vmsnap(t, "restore", image)
    t.equal(result.code, 14, f"an image of another user: {result.text()}")
    restored = Restore(t, image, Guest(t, name="re", **guest.shape())).wait_running()
    restored.guest.check_whole()


if __name__ == "__main__":
    main()
