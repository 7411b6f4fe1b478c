#!/usr/bin/python3
"""minivm's control socket: what a client may send, and what comes of it."""

import json
import os
import signal
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from minivm import MiniVm, end_and_wait  # noqa: E402
from qmp import Qmp, QmpError  # noqa: E402


class Raw:
    """A connection that sends bytes as they are."""

    def __init__(self, t, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        t.defer(self.socket.close)

    def read(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, data):
        self.socket.sendall(data)
        return self.read()


@case("minivm.protocol.wire", "kernel", 20)
def wire(t):
    vm = MiniVm(t, "--memory", "4M", "--pattern", "idle")
    raw = Raw(t, vm.control)
    t.equal(raw.read(), {"QMP": {"version": {"vmsnap-vmm": 1, "package": "minivm 1"},
                                 "capabilities": []}}, "greeting")
    early = raw.ask(b'{"execute": "query-status"}\n')
    t.equal(early["error"]["class"], "CommandNotFound", "before qmp_capabilities")
    t.equal(raw.ask(b'{"execute": "qmp_capabilities"}'), {"return": {}}, "without a line end")
    t.equal(raw.ask(b'{"execute": "query-status", "id": [7]}\r\n'),
            {"return": {"status": "running", "running": True}, "id": [7]}, "the id comes back")
    t.equal(raw.ask(b'{\n  "execute":\n    "stop"\n}\n')["event"], "STOP", "over several lines")
    t.equal(raw.read(), {"return": {}}, "stop's answer")
    t.equal(raw.ask(b'{"execute": "no-such"}')["error"]["class"], "CommandNotFound", "unknown")
    for nonsense in (b"nonsense\n", b"[1]\n", b'{"a" "b"}\n', b'{"arguments": {}}',
                     b'{"execute": "stop", "arguments": 3}'):
        t.equal(raw.ask(nonsense)["error"]["class"], "GenericError", f"{nonsense}")
    two = raw.ask(b'{"execute": "query-status"}{"execute": "no-such"}\n')
    t.check("return" in two and "error" in raw.read(), "two commands in one piece")
    # Someone died in the middle of a command; someone else goes on.
    raw.socket.sendall(b'{"execute": "qui')
    t.equal(raw.ask(b'\xff{"execute": "cont"}')["error"]["class"], "GenericError", "0xFF clears")
    t.equal(raw.read()["event"], "RESUME", "cont right behind 0xFF")


@case("minivm.protocol.gone", "kernel", 20)
def gone(t):
    """What a client sent is done, though he went away before he was answered."""
    vm = MiniVm(t, "--memory", "4M", "--pattern", "idle")
    stop, cont = b'{"execute": "stop"}\n', b'{"execute": "cont"}\n'
    for commands, status in ((stop, "paused"), (cont, "running"), (stop + cont, "running"),
                             (stop + cont + stop, "paused")):
        vm.qmp.take_events()
        vm.process.send_signal(signal.SIGSTOP) # so that it can't be faster than the client
        raw = Raw(t, vm.control)
        raw.socket.sendall(b'{"execute": "qmp_capabilities"}' + commands)
        raw.socket.shutdown(socket.SHUT_RDWR)
        raw.socket.close()
        vm.process.send_signal(signal.SIGCONT)
        wait_until(lambda: vm.qmp.status() == status and
                   len(vm.qmp.events) == len(commands) // len(stop), 5, f"{commands}")


@case("minivm.protocol.descriptors", "kernel", 20)
def descriptors(t):
    vm = MiniVm(t, "--memory", "4M", "--pattern", "idle")

    def open_fds():
        return len(os.listdir(f"/proc/{vm.pid}/fd"))
    before = open_fds()
    for command, arguments, fds in (("save-state", {}, 0), ("save-state", {}, 1),
                                    ("query-status", {}, 1), ("stop", {}, 3)):
        with open("/dev/null", "wb") as f:
            try:
                vm.qmp.command(command, fds=[f.fileno()] * fds, **arguments)
                t.check(command != "save-state", "no descriptor, or a VM that runs: an error")
            except QmpError as error:
                t.check(command == "save-state", f"{command}: {error}")
        t.equal(open_fds(), before, f"descriptors open after {command} with {fds}")
    with open("/dev/full", "wb") as f:
        try:
            vm.qmp.command("save-state", fds=[f.fileno()])
            t.check(False, "a state that can't be written is an error")
        except QmpError as error:
            t.check("space" in str(error), f"what is said: {error}")


@case("minivm.protocol.clients", "kernel", 20)
def clients(t):
    """Several at once, all of which hear of events; one that sends too much is dropped alone."""
    vm = MiniVm(t, "--memory", "4M", "--pattern", "idle")
    others = [Qmp(vm.control) for _ in range(3)]
    for other in others:
        t.defer(other.close)
    flood = Raw(t, vm.control)
    flood.read()
    flood.socket.sendall(b'{"execute": "' + b"a" * 70000)
    try:
        t.equal(flood.read(), None, "a message without an end")
    except ConnectionResetError:
        pass # as good: what it sent last was not even read
    vm.stop()
    for other in others:
        t.equal([e["event"] for e in other.take_events(0.2)], ["STOP"], "events of another")
        t.equal(other.status(), "paused", "status for another")
    t.equal(end_and_wait(vm), 0, "exit status")


@case("minivm.protocol.socket", "kernel", 20)
def socket_path(t):
    """A socket that is in use is left alone; one of a dead process is taken."""
    vm = MiniVm(t, "--memory", "4M", "--pattern", "idle")
    result = t.run([tool("minivm"), "--control", vm.control], timeout=5)
    t.check(result.returncode == 1 and "cannot listen" in result.stderr, "a second one")
    t.equal(vm.qmp.status(), "running", "the first one")
    vm.process.kill()
    vm.process.wait(5)
    t.check(os.path.exists(vm.control), "killed, it leaves its socket")
    t.spawn([tool("minivm"), "--control", vm.control])
    other = wait_until(lambda: Qmp(vm.control), 5, "a VMM on the old path")
    t.equal(other.status(), "running", "the new one")
    other.close()
    result = t.run([tool("minivm"), "--vmsnap-incoming", t.path("nobody")], timeout=5)
    t.equal(result.returncode, 1, "exit status when nobody is there to restore it")


if __name__ == "__main__":
    main()
