"""What stands in a test for a broken peer or for another tool's hold on a process."""

import ctypes
import os
import socket
import subprocess
import sys
import threading

from case import wait_until

QMP_GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, ' \
               b'"capabilities": []}}\r\n'


class FakeServer:
    """A UNIX socket server on a thread: sends `greeting` to whoever connects, answers each line
    with reply(line), or closes when that is None."""

    def __init__(self, t, path, greeting=b"", reply=lambda line: b""):
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(path)
        self._server.listen(8)
        self._greeting, self._reply = greeting, reply
        t.defer(self._server.close)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client):
        with client:
            try:
                client.sendall(self._greeting)
                rest = b""
                while True:
                    data = client.recv(65536)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        answer = self._reply(line)
                        if answer is None:
                            return
                        client.sendall(answer)
            except OSError:
                return


PTRACE_SEIZE = 0x4206


def trace(t, pid):
    """A process that holds every thread of `pid` by ptrace, as a debugger does, until it ends."""
    tracer = t.spawn([sys.executable, "-B", os.path.abspath(__file__), "trace", str(pid)],
                     stdout=subprocess.PIPE)

    def is_traced():
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as f:
            return f"TracerPid:\t{tracer.pid}\n" in f.read()
    wait_until(is_traced, 10, "the target is traced")
    return tracer


def _trace_forever(pid):
    libc = ctypes.CDLL(None, use_errno=True)
    for task in os.listdir(f"/proc/{pid}/task"):
        if libc.ptrace(PTRACE_SEIZE, int(task), None, None) != 0:
            sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    sys.stdin.close()
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return
        except InterruptedError:
            continue


if __name__ == "__main__":
    _trace_forever(int(sys.argv[2]))
