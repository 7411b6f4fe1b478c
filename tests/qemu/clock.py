#!/usr/bin/python3
"""The clock of a restored guest: how far it is behind, and `--sync-clock`, with Debian's qemu-guest-agent in
the guest."""

import json
import os
import re
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import TOP, case, main, wait_until  # noqa: E402
from guest import Guest, guest_file  # noqa: E402
from vmsnap import Restore, pause_log, snapshot, start_vmsnap  # noqa: E402

OLD_SECONDS = 3
AGENT_PORT = "org.qemu.guest_agent.0"


def agent_initrd(t):
    """The guest's initramfs with the agent's behind it."""
    built = t.run([os.path.join(TOP, "tools", "guest.sh"), "agent"], timeout=100)
    t.equal(built.returncode, 0, f"tools/guest.sh agent: {built.stderr}")
    path = t.path("initrd")
    if not os.path.exists(path):
        with open(path, "wb") as out:
            for name in ("initramfs.gz", "agent.gz"):
                with open(guest_file(name), "rb") as f:
                    out.write(f.read())
    return path


def make_guest(t, agent=True, port=True, qga_path=None, **shape):
    """A guest with the agent's port, and the agent; `qga_path` is the socket."""
    run = {"run": "/bin/agent"} if agent else {}
    guest = Guest(t, memory_mib=192, work="none", devices=(), initrd=agent_initrd(t), **run, **shape)
    guest.qga_path = qga_path or os.path.join(guest.dir, "qga")
    if port:
        guest.extra += ["-device", "virtio-serial-pci",
                        "-chardev", f"socket,path={guest.qga_path},server=on,wait=off,id=qga0",
                        "-device", f"virtserialport,chardev=qga0,name={AGENT_PORT}"]
    return guest


class Agent:
    """A client of the agent's own, to judge by."""

    def __init__(self, t, path, seconds=20):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(seconds)
        self._socket.connect(path)
        t.defer(self._socket.close)
        self._lines = self._socket.makefile("rb")

    def command(self, name, first=b"", **arguments):
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(first + json.dumps(request).encode() + b"\n")

    def sync(self):
        self.command("guest-sync-delimited", b"\xff", id=4711)
        while True:
            line = self._lines.readline()
            if b"\xff" in line and json.loads(line.rsplit(b"\xff", 1)[1]).get("return") == 4711:
                return self

    def behind_seconds(self):
        """How far the guest's clock is behind this host's."""
        began = time.time()
        self.command("guest-get-time")
        guest = json.loads(self._lines.readline())["return"] / 1e9
        return (began + time.time()) / 2 - guest

    def close(self):
        self._lines.close()
        self._socket.close()


def take_image(t, **options):
    source = make_guest(t, **options).start()
    ready = "AGENT up=" if options.get("agent", True) else "GUEST ready"
    wait_until(lambda: source.check_alive() or ready in source.console.text(), 60, "the guest works")
    if options.get("agent", True):
        agent = Agent(t, source.qga_path).sync()
        behind = agent.behind_seconds()
        agent.close()
        t.check(abs(behind) < 1.5, f"the source's clock is behind by {behind:.3f} s")
    image = t.path("image")
    snapshot(t, source, image)
    source.stop()
    return image


def console_seconds(guest, mark):
    """The clock that the guest's own program shows, and when it was seen."""
    def shown():
        found = re.findall(r"^AGENT up=\S+ time=(\d+)", guest.console.text(mark), re.M)
        return int(found[-1]) if len(found) > 2 else None
    return wait_until(shown, 20, "the guest says the time")


@case("qemu.clock.synced", "qemu", 120)
def synced(t):
    """Without --sync-clock the guest's clock is behind by the image's age; with it within a second of the
    host's, as vmsnap says, as the agent says, and as a program in the guest says."""
    image = take_image(t)
    time.sleep(OLD_SECONDS)
    old = make_guest(t)
    restored = Restore(t, image, old).wait_running()
    said = restored.result().of_type("running")[0]["clock_behind_ns"] / 1e9
    behind = Agent(t, old.qga_path).sync().behind_seconds()
    t.check(behind > OLD_SECONDS - 0.5, f"without --sync-clock it is behind by {behind:.3f} s")
    t.check(abs(behind - said) < 1.5, f"clock_behind_ns says {said:.3f} s, the agent {behind:.3f} s")
    t.check("clock_synced" not in restored.wait_complete(), "nothing is said of what was not asked for")
    t.equal(restored.end().code, 0, "exit status")

    new = make_guest(t)
    restored = Restore(t, image, new, "--sync-clock").wait_running()
    wait_until(lambda: restored.result().of_type("clock"), 15, "the object `clock`")
    clock, summary = restored.result().of_type("clock")[0], restored.wait_complete()
    t.say(f"{clock}")
    for o in (clock, summary):
        t.equal((o["clock_synced"], o["warnings"]), (True, []), "clock_synced, warnings")
        t.check(abs(o["clock_difference_ns"]) < 1e9, f"{o}")
    behind = Agent(t, new.qga_path).sync().behind_seconds()
    t.check(abs(behind) < 1, f"with --sync-clock it is behind by {behind:.3f} s")
    shown = console_seconds(new, new.console.size())
    t.check(abs(time.time() - shown) < 2.5, f"the guest's program shows {shown}, it is {time.time():.1f}")
    t.equal(restored.end().code, 0, "exit status")
    types = [o["type"] for o in restored.result().objects]
    t.equal(types, ["running", "clock", "summary", "exit"], "objects in order")


def detach(t, image, guest, *args, wrapper=()):
    process = start_vmsnap(t, "restore", "--detach", "--sync-clock", *args, image, "--", *wrapper,
                           *guest.argv())
    out, err = process.communicate(timeout=40)
    running = json.loads(out)
    t.defer(subprocess.run, ["kill", "-9", str(running["vmm_pid"])])
    guest.pid = running["vmm_pid"]
    guest.connect()
    t.equal(guest.qmp.status(), "running", "the guest")
    return process.returncode, running, err.decode()


@case("qemu.clock.detached", "qemu", 120)
def detached(t):
    """With --detach the clock is set before the command returns; if it can't be, the exit status is 3 and the
    guest runs all the same."""
    image = take_image(t)
    time.sleep(1)
    guest = make_guest(t)
    code, running, err = detach(t, image, guest)
    t.equal((code, running["clock_synced"]), (0, True), f"exit status, clock_synced ({running} {err})")
    behind = Agent(t, guest.qga_path).sync().behind_seconds()
    t.check(abs(behind) < 1, f"behind by {behind:.3f} s")
    guest.qmp.command("quit")

    hidden = t.path("hidden")
    os.mkdir(hidden)
    guest = make_guest(t, qga_path=f"{hidden}/qga")
    code, running, err = detach(t, image, guest, wrapper=(
        "unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh"))
    t.equal(os.listdir(hidden), [], "the socket is in a place that only the VMM sees")
    t.equal((code, running["clock_synced"]), (0, True), f"a VMM with another root: {running} {err}")
    guest.qmp.command("quit")


@case("qemu.clock.no-agent", "qemu", 120)
def no_agent(t):
    """A guest without the agent, and a VM without its port: a warning, and the guest runs; the exit status is
    the VMM's, of --detach 3."""
    image = take_image(t, agent=False)
    report = t.path("report")
    code, running, err = detach(t, image, make_guest(t, agent=False), "--timeout", "4s", "--report", report)
    t.equal((code, running["clock_synced"]), (3, False), f"exit status, clock_synced ({err})")
    t.check("does not answer" in err and "qemu-guest-agent" in err, f"why, and what to do: {err}")
    t.check(running["warnings"] and running["clock_difference_ns"] is None, f"{running}")

    os.unlink(image)
    image = take_image(t, agent=False, port=False)
    restored = Restore(t, image, make_guest(t, agent=False, port=False), "--sync-clock").wait_running()
    summary = restored.wait_complete()
    t.equal(summary["clock_synced"], False, "clock_synced")
    t.check("no port" in summary["warnings"][0], f"{summary['warnings']}")
    t.check("no port" in restored.result().err, f"a warning: {restored.result().err}")
    t.equal(restored.end().code, 0, "exit status: the VMM's")


@case("qemu.clock.socket-is-anothers", "qemu", 120)
def held(t):
    """Another program holds the agent's socket: said so. One that listens there already: refused at the start."""
    image = take_image(t)
    guest = make_guest(t)
    log, reached, go = pause_log(t)
    restored = Restore(t, image, guest, "--sync-clock",
                       hooks={"pause_at": "restore-running", "pause_log": log})
    reached("restore-running")
    other = Agent(t, guest.qga_path)
    go()
    summary = restored.wait_running().wait_complete()
    t.check("another program" in summary["warnings"][0], f"{summary['warnings']}")
    t.check(guest.qga_path in summary["warnings"][0], "which socket")
    t.check(other.sync().behind_seconds() > 0, "the other's connection is as it was")
    second = Restore(t, image, guest, "--sync-clock")
    t.equal(second.process.wait(20), 14, f"a second VM on the same sockets: {second.result().text()}")
    t.equal(restored.end().code, 0, "exit status")


if __name__ == "__main__":
    main()
