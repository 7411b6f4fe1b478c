#!/usr/bin/python3
"""What is wrong with the VM, the host or the command line: each with the exit code that the manual
promises, a cause in one line, and the guest as it was."""

import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, main, wait_until  # noqa: E402
from fakes import QMP_GREETING, FakeServer, trace  # noqa: E402
from guest import Guest  # noqa: E402
from vmsnap import (check_no_litter, finish, pause_log, snapshot, start_vmsnap,  # noqa: E402
                    vmsnap)


def check_error(t, result, code, *words):
    """One error, with this exit code, told in one line that has each of `words` in it; a word may
    be a tuple of alternatives."""
    t.equal(result.code, code, f"exit status ({result.text()})")
    error = result.error
    t.equal(error["exit_code"], code, "exit_code")
    t.check("\n" not in error["message"] and error["message"], f"one line: {error}")
    t.check("guest_state" in error and "hint" in error and "schema_version" in error,
            f"all keys are there: {sorted(error)}")
    for word in words:
        alternatives = word if isinstance(word, tuple) else (word,)
        t.check(any(w.lower() in error["message"].lower() for w in alternatives),
                f"the message names {word!r}: {error['message']}")
    t.say(f"{code}: {error['message']} [guest: {error['guest_state']}; {error['hint']}]")


def no_image(t, guest=None):
    t.check(not os.path.exists(t.path("out/image")), "no image is left")
    check_no_litter(t.path("out"))
    if guest:
        guest.check_goes_on()


def plain_guest(t, **shape):
    """Any guest will do: this one is up at once."""
    return Guest(t, boot="firmware", memory_mib=128, **shape).boot_up()


def attempt(t, qmp_path, *args, **options):
    if not os.path.exists(t.path("out")):
        os.mkdir(t.path("out"))
    return vmsnap(t, "snapshot", "--qmp", qmp_path, *args, t.path("out/image"), **options)


@case("qemu.badinput.no-such-socket", "qemu", 30)
def no_such_socket(t):
    check_error(t, attempt(t, t.path("nothing")), 10, t.path("nothing"))
    with open(t.path("file"), "w", encoding="ascii"):
        pass
    check_error(t, attempt(t, t.path("file")), 10, t.path("file"))
    check_error(t, attempt(t, t.path("x" * 200)), 10)
    no_image(t)


@case("qemu.badinput.not-qmp", "qemu", 60)
def not_qmp(t):
    """Sockets that are something else, or QMP servers that are out of their mind."""
    deep = b'{"QMP": ' + b"[" * 5000 + b"\n"
    endless = b'{"QMP": "' + b"x" * (1 << 22)
    for number, (greeting, codes) in enumerate((
            (b"SSH-2.0-OpenSSH_9.2\r\n", (10,)), (b"\0\1\2\3\n", (10,)), (b"{}\n", (10,)),
            (b'{"QMP": 7}\n', (10,)), (deep, (10,)), (endless, (10, 17)), (b"[]\n", (10,)))):
        path = t.path(f"fake{number}")
        FakeServer(t, path, greeting, lambda line: b'{"return": {}}\r\n')
        result = attempt(t, path, "--timeout", "2s")
        t.check(result.code in codes, f"greeting {greeting[:20]!r}: {result.text()}")
        check_error(t, result, result.code)
    no_image(t)


@case("qemu.badinput.hostile-qmp", "qemu", 60)
def hostile_qmp(t):
    """A server that greets well and then answers nonsense, or nothing."""
    for number, (reply, code) in enumerate(((lambda line: b'{"return": []}\n', 10),
                                            (lambda line: None, 10),
                                            (lambda line: b"garbage\n", 10),
                                            (lambda line: b"", 17))):
        path = t.path(f"fake{number}")
        FakeServer(t, path, QMP_GREETING, reply)
        check_error(t, attempt(t, path, "--timeout", "2s"), code)
    no_image(t)


@case("qemu.badinput.busy-socket", "qemu", 60)
def busy_socket(t):
    """Another client holds the QMP socket: it accepts and sends no greeting."""
    guest = plain_guest(t)
    result = attempt(t, guest.test_qmp_path, "--timeout", "2s")
    check_error(t, result, 17, ("greeting", "another client"))
    t.check("-qmp" in (result.error["hint"] or ""), f"the hint: {result.error['hint']}")
    no_image(t, guest)


@case("qemu.badinput.qemu-gone", "qemu", 90)
def qemu_gone(t):
    """QEMU is killed in the middle: while it waits, while it is paused, while memory is saved."""
    for point in ("snapshot-registered", "snapshot-paused", "snapshot-armed", "snapshot-sweeping"):
        guest = plain_guest(t)
        log, reached, go = pause_log(t)
        if not os.path.exists(t.path("out")):
            os.mkdir(t.path("out"))
        process = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, t.path("out/image"),
                               hooks={"pause_at": point, "pause_log": log})
        reached(point)
        guest.stop()
        go()
        result = finish(t, process)
        check_error(t, result, 10)
        t.check(result.error["guest_state"] in ("ended", "gone"), f"{result.error}")
        no_image(t)


@case("qemu.badinput.migration-active", "qemu", 60)
def migration_active(t):
    guest = plain_guest(t)
    # Reads nothing, so it can't be completed; but nor can it be cancelled before the reader ends.
    reads = t.path("reads")
    with open(reads, "w", encoding="ascii"):
        pass
    guest.qmp.command("migrate", uri=f"exec:while test -e {reads}; do sleep 0.1; done")
    wait_until(lambda: guest.qmp.command("query-migrate").get("status") == "active", 10,
               "a migration is active")
    check_error(t, attempt(t, guest.qmp_path), 11, "migrat")
    t.equal(guest.qmp.command("query-migrate")["status"], "active", "the migration goes on")
    no_image(t, guest)
    guest.qmp.command("migrate_cancel")
    os.unlink(reads)
    wait_until(lambda: guest.qmp.command("query-migrate")["status"] in ("cancelled", "failed"), 30,
               "the migration is over")
    snapshot(t, guest, t.path("out/image"))
    guest.check_whole()


@case("qemu.badinput.two-at-once", "qemu", 60)
def two_at_once(t):
    """A snapshot is under way: a second one is refused at once, over the same QMP socket too."""
    guest = plain_guest(t)
    guest.qmp.close()
    log, reached, go = pause_log(t)
    first = start_vmsnap(t, "snapshot", "--qmp", guest.qmp_path, t.path("first"),
                         hooks={"pause_at": "snapshot-registered", "pause_log": log})
    reached("snapshot-registered")
    started = time.monotonic()
    for path in (guest.test_qmp_path, guest.qmp_path):
        check_error(t, attempt(t, path, "--timeout", "30s"), 11, "being snapshotted")
    t.check(time.monotonic() - started < 15, "nobody waited for a greeting")
    go()
    t.equal(finish(t, first).code, 0, "the first snapshot's exit status")
    guest.connect()
    no_image(t, guest)
    guest.check_whole()


@case("qemu.badinput.foreign-userfaultfd", "qemu", 60)
def foreign_userfaultfd(t):
    """QEMU's own background snapshot holds the memory. Its stream is read slowly: too slowly to be
    over soon, but steadily, or a write that it holds would hold QEMU's main loop and its QMP."""
    guest = Guest(t, mib=16, work="selfcheck", devices=()).boot_up()
    guest.qmp.command("migrate-set-capabilities",
                      capabilities=[{"capability": "background-snapshot", "state": True}])
    guest.qmp.command("migrate", uri="exec:n=0; while [ $n -lt 400 ]; do head -c 65536 >/dev/null; "
                      "sleep 0.02; n=$((n+1)); done")
    wait_until(lambda: guest.qmp.command("query-migrate").get("status") == "active", 10,
               "a background snapshot is active")
    check_error(t, attempt(t, guest.qmp_path), 11)
    t.equal(guest.qmp.command("query-migrate")["status"], "active", "the background snapshot")
    no_image(t) # its stream holds up the guest's writers, so nothing is said of those


@case("qemu.badinput.no-right", "qemu", 60)
def no_right(t):
    """No userfaultfd to be had, and a caller who may not attach to the VM."""
    guest = plain_guest(t)
    check_error(t, attempt(t, guest.qmp_path, hooks={"mask_features": "userfaultfd,dev-userfaultfd"}),
                12, "userfaultfd")
    os.chmod(guest.qmp_path, 0o777)
    os.chmod(t.path("out"), 0o777)
    result = attempt(t, guest.qmp_path, user="nobody")
    t.check(result.code in (10, 12), f"exit status as nobody: {result.text()}")
    check_error(t, result, result.code)
    no_image(t, guest)
    guest.check_whole()


@case("qemu.badinput.traced", "qemu", 60)
def traced(t):
    guest = plain_guest(t)
    tracer = trace(t, guest.pid)
    check_error(t, attempt(t, guest.qmp_path), 10, "trace", str(tracer.pid))
    tracer.kill()
    tracer.wait(10)
    no_image(t, guest)
    snapshot(t, guest, t.path("out/image"))


@case("qemu.badinput.disk-full", "qemu", 120)
def disk_full(t):
    """A tmpfs that is too small at several points: from the first byte to the last."""
    guest = Guest(t, mib=64).boot_up()
    summary = snapshot(t, guest, t.path("whole")).summary
    size = summary["image_bytes"]
    for limit in (4096, 1 << 20, size // 2, size - size // 20):
        where = t.path(f"small{limit}")
        os.mkdir(where)
        t.need(t.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "tmpfs", where]).returncode
               == 0, "no right to mount a tmpfs")
        t.defer(subprocess.run, ["umount", where])
        mark = guest.console.size()
        result = vmsnap(t, "snapshot", "--qmp", guest.qmp_path, os.path.join(where, "image"))
        check_error(t, result, 18, ("space", "full"))
        t.equal(result.error["guest_state"], "running", "guest_state")
        check_no_litter(where)
        guest.check_goes_on()
        t.check(guest.longest_gap_ms(mark) < 3000, "the guest did not wait for the disk")
    guest.check_whole()


@case("qemu.badinput.image-exists", "qemu", 90)
def image_exists(t):
    guest = plain_guest(t)
    os.mkdir(t.path("out"))
    image = t.path("out/image")
    with open(image, "wb") as f:
        f.write(b"precious")
    result = attempt(t, guest.qmp_path)
    check_error(t, result, 1, image)
    t.check("--overwrite" in (result.error["hint"] or ""), f"the hint: {result.error}")
    with open(image, "rb") as f:
        t.equal(f.read(), b"precious", "the file that was there")
    check_no_litter(t.path("out"), "image")
    failing = attempt(t, guest.qmp_path, "--overwrite", hooks={"kill_at": "snapshot-sweeping"})
    t.equal(failing.code, 1, "exit status when the worker is killed")
    with open(image, "rb") as f:
        t.equal(f.read(), b"precious", "the file that was there, after --overwrite has failed")
    t.equal(attempt(t, guest.qmp_path, "--overwrite").code, 0, "--overwrite")
    check_no_litter(t.path("out"), "image")
    t.equal(vmsnap(t, "verify", image).code, 0, "verify")
    missing = vmsnap(t, "snapshot", "--qmp", guest.qmp_path, t.path("no/such/folder/image"))
    check_error(t, missing, missing.code, t.path("no/such/folder"))
    t.check(missing.code in (1, 2), "exit status for a folder that is not there")
    guest.check_whole()


@case("qemu.badinput.states", "qemu", 60)
def states(t):
    """States of the VM in which a snapshot makes no sense are refused by name."""
    os.mkdir(t.path("out"))
    incoming = Guest(t, extra=["-incoming", "defer"]).start()
    bad_disk = ["-blockdev", f"driver=null-co,node-name=n0,read-zeroes=on,size={64 << 20}",
                "-blockdev", "driver=blkdebug,node-name=b0,image=n0,inject-error.0.event=none,"
                             "inject-error.0.errno=5,inject-error.0.iotype=read",
                "-device", "virtio-blk-pci,drive=b0,rerror=stop"]
    failing = Guest(t, work="vio", devices=("rng",), extra=bad_disk).start()
    ended = Guest(t, work="none", run="/bin/true", devices=(), extra=["-no-shutdown"]).start()
    for guest, state, code in ((incoming, "inmigrate", 11), (failing, "io-error", 10),
                               (ended, "shutdown", 10)):
        wait_until(lambda g=guest, s=state: g.qmp.status() == s, 60, f"state {state}")
        check_error(t, attempt(t, guest.qmp_path), code, state)
        t.equal(guest.qmp.status(), state, "the state afterwards")
    no_image(t)


@case("qemu.badinput.hazards", "qemu", 90)
def hazards(t):
    """What would make an image wrong is refused by name before the VM is touched."""
    os.mkdir(t.path("out"))
    disk = t.path("writable")
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    for name, allowable, options in (
            ("disks", True, {"extra": ["-drive", f"if=virtio,format=raw,file={disk}"]}),
            ("balloon", False, {"ram": "memfd", "extra": ["-device", "virtio-balloon-pci"]})):
        guest = plain_guest(t, **options)
        result = attempt(t, guest.qmp_path)
        check_error(t, result, 14, name)
        no_image(t, guest)
        listed = vmsnap(t, "check", "--qmp", guest.qmp_path)
        items = [o for o in listed.objects if o.get("name", "").endswith(name)]
        t.check(items and not items[0]["ok"], f"`check` shows {name}: {listed.text()}")
        if allowable:
            t.equal(items[0]["allow"], name, "what --allow takes")
            allowed = attempt(t, guest.qmp_path, "--allow", name)
            t.check(allowed.code in (0, 3), f"--allow {name}: {allowed.text()}")
            os.unlink(t.path("out/image"))
        else:
            t.equal(items[0]["allow"], None, "what --allow takes")
            check_error(t, attempt(t, guest.qmp_path, "--allow", name), 14, name)
            no_image(t, guest)
        guest.check_whole()
    check_error(t, attempt(t, guest.qmp_path, "--allow", "nonsense"), 2, "nonsense")
    no_image(t, guest)


@case("qemu.badinput.wrong-process", "qemu", 60)
def wrong_process(t):
    """--pid names a process that is not the VM."""
    guest = Guest(t, mib=16).boot_up()
    other = t.spawn(["sleep", "60"])
    check_error(t, attempt(t, guest.qmp_path, "--pid", other.pid), 10)
    t.check(is_alive(other.pid), "the other process is unharmed")
    dead = t.spawn(["true"])
    dead.wait()
    check_error(t, attempt(t, guest.qmp_path, "--pid", dead.pid), 10, str(dead.pid))
    no_image(t, guest)


@case("qemu.badinput.qmp-stalls", "qemu", 60)
def qmp_stalls(t):
    """QEMU's main loop hangs (stopped by SIGSTOP): an end within --timeout."""
    guest = Guest(t, mib=16).boot_up()
    os.kill(guest.pid, signal.SIGSTOP)
    began = time.monotonic()
    result = attempt(t, guest.qmp_path, "--timeout", "2s")
    took = time.monotonic() - began
    os.kill(guest.pid, signal.SIGCONT)
    check_error(t, result, 17)
    t.check(took < 10, f"took {took:.1f} s")
    no_image(t, guest)


if __name__ == "__main__":
    main()
