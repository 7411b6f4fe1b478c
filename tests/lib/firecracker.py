"""What a test needs to stand on the other side of a Firecracker, or of a minivm that speaks as one does:
the receiver of its page-fault handoff, a handler of one page per fault, and its HTTP API."""

import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading

UFFDIO_COPY = 0xc028aa03
UFFDIO_WAKE = 0x8010aa02
EVENT_PAGEFAULT, EVENT_REMOVE = 0x12, 0x15
MESSAGE_BYTES = 32


class Handoff:
    """One message: `text` as it came, `fds`, `regions` (its JSON), the connection and the peer's
    pid. With `end` at the end of a connection on which nothing came `fds` is empty."""

    def __init__(self, t, connection, timeout=10.0):
        connection.settimeout(timeout)
        self.connection = connection
        self.pid = struct.unpack("3i", connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        room = socket.CMSG_SPACE(16 * 4)
        self.text, ancillary, self.flags, _ = connection.recvmsg(65536, room)
        self.ancillary = [(level, kind) for level, kind, _ in ancillary]
        self.fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.fds.frombytes(data[:len(data) - len(data) % 4])
        for fd in self.fds:
            t.defer(os.close, fd)
        t.defer(connection.close)
        self.regions = json.loads(self.text) if self.text else None


class Backend:
    """A socket that a VMM with --uffd-backend connects to."""

    def __init__(self, t):
        self.t = t
        self.path = t.path(t.unique("uffd") + ".sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        t.defer(self._listener.close)

    def accept(self, timeout=10.0):
        self._listener.settimeout(timeout)
        return Handoff(self.t, self._listener.accept()[0], timeout)


def _address(buffer):
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class PageServer:
    """Serves the faults of a Handoff from a memory file, one page per fault, in a thread, as
    Firecracker's example does. `faults`, `removed` count; `error` is what ended it too early.
    `forgetful`: discards are read and forgotten, which is wrong."""

    def __init__(self, t, handoff, memory_path, forgetful=False):
        self.regions = handoff.regions
        self.uffd = handoff.fds[0]
        with open(memory_path, "r+b") as f: # writable for ctypes alone: the mapping is private
            self.memory = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)
        self.page = self.regions[0].get("page_size", self.regions[0].get("page_size_kib", 4096))
        self.zeros = mmap.mmap(-1, self.page)
        self.discarded = set() # addresses of pages
        self.faults = self.removed = 0
        self.error = None
        self.forgetful = forgetful
        self._wake = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        t.defer(self.stop)

    def stop(self):
        """No fault is served from now on."""
        os.eventfd_write(self._wake, 1)
        self._thread.join(10)

    def _run(self):
        waiting = [] # faults that could not be resolved yet
        try:
            while True:
                ready, _, _ = select.select([self.uffd, self._wake], [], [])
                if self._wake in ready:
                    return
                waiting += self._read_all()
                waiting = [a for a in waiting if not self._resolve(a)]
                while waiting: # a discard is under way: its event comes now
                    waiting += self._read_all()
                    waiting = [a for a in waiting if not self._resolve(a)]
        except OSError as problem:
            self.error = problem

    def _read_all(self):
        faults = []
        while True:
            try:
                message = os.read(self.uffd, MESSAGE_BYTES)
            except BlockingIOError:
                return faults
            kind = message[0]
            first, second = struct.unpack_from("<2Q", message, 8)
            if kind == EVENT_PAGEFAULT: # flags, address
                self.faults += 1
                faults.append(second - second % self.page)
            elif kind == EVENT_REMOVE: # start, end
                self.removed += (second - first) // self.page
                if not self.forgetful:
                    self.discarded.update(range(first, second, self.page))

    def _resolve(self, address):
        """False: later."""
        try:
            fcntl.ioctl(self.uffd, UFFDIO_COPY, bytearray(struct.pack(
                "<QQQQq", address, self._source(address), self.page, 0, 0)))
        except OSError as problem:
            if problem.errno == errno.EAGAIN:
                return False
            if problem.errno != errno.EEXIST:
                raise
            fcntl.ioctl(self.uffd, UFFDIO_WAKE, struct.pack("<QQ", address, self.page))
        return True

    def _source(self, address):
        if address in self.discarded:
            return _address(self.zeros)
        for region in self.regions:
            at = address - region["base_host_virt_addr"]
            if 0 <= at < region["size"]:
                return _address(self.memory) + region["offset"] + at
        raise OSError(errno.EFAULT, f"{address:#x} lies in no region")


class Api:
    """A connection to an HTTP API on a UNIX socket, kept open."""

    def __init__(self, t, path, timeout=10.0):
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        t.defer(self.close)

    def close(self):
        self._file.close()
        self._socket.close()

    def request(self, method, path, body=None, raw_body=None):
        """(status, what the answer's JSON holds or None)."""
        data = raw_body if raw_body is not None else b"" if body is None else json.dumps(
            body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
        if data:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        self._socket.sendall(head.encode() + b"\r\n" + data)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline().strip()):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(self._file.read(length)) if length else None

    def get(self, path):
        status, answer = self.request("GET", path)
        if status != 200:
            raise ValueError(f"GET {path}: {status} {answer}")
        return answer
