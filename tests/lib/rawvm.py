"""A process with memory that it hands over as Firecracker does, and no guest: it touches, gives back and reads
what it is told to, so that a test knows each byte that has to be there."""

import ctypes
import ctypes.util
import fcntl
import hashlib
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
import time

from case import Failed, process_state
from vmsnap import import_memory

PAGE = 4096
CLUSTER = 4 * PAGE
MIB = 1 << 20
HUGE = 2 << 20
EVENT_REMOVE = 1 << 3
NR_USERFAULTFD = 323
UFFDIO_API, UFFDIO_REGISTER = 0xc018aa3f, 0xc020aa00
MODE_MISSING, MODE_WP = 1, 2
MADV_DONTNEED = 4
MAP_NORESERVE, MAP_HUGETLB = 0x4000, 0x40000


class _Memory:
    """In the VM's own process."""

    def __init__(self, size, huge, shared):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                                   ctypes.c_int, ctypes.c_long]
        flags = (mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE) | mmap.MAP_ANONYMOUS
        flags |= MAP_HUGETLB if huge else 0
        self.size, self.at = size, self.libc.mmap(None, size, 3, flags | MAP_NORESERVE, -1, 0)
        assert self.at not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())

    def uffd(self, features, register=True, mode=MODE_MISSING):
        fd = self.libc.syscall(NR_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        api = bytearray(struct.pack("3Q", 0xaa, features, 0))
        self._ioctl(fd, UFFDIO_API, api)
        if register:
            self._ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("4Q", self.at, self.size, mode, 0)))
        return fd

    def _ioctl(self, fd, number, data):
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        if self.libc.ioctl(fd, ctypes.c_ulong(number), buffer) != 0:
            raise OSError(ctypes.get_errno(), "ioctl")

    # Calls through ctypes let the other threads run meanwhile: they may wait for a page.

    def read(self, offset, length):
        data = ctypes.create_string_buffer(length)
        self.libc.memcpy(data, ctypes.c_void_p(self.at + offset), ctypes.c_size_t(length))
        return data.raw

    def write(self, offset, data):
        self.libc.memcpy(ctypes.c_void_p(self.at + offset), data, ctypes.c_size_t(len(data)))

    def discard(self, offset, length):
        return self.libc.madvise(ctypes.c_void_p(self.at + offset), ctypes.c_size_t(length), MADV_DONTNEED)


class _Child:
    """What the process does with each command: its methods' names."""

    def __init__(self, size, huge, shared):
        self.memory = _Memory(size, huge, shared)
        self.page = HUGE if huge else PAGE
        self.kept, self.others, self.connection, self.threads = [], [], None, []

    def hand_over(self, path, text=None, features=EVENT_REMOVE, register=True, mode=MODE_MISSING, fds=None,
                  again=False, pieces=1, pause=0.01, close=False):
        """`text` with @AT@ and @SIZE@ in the place of numbers; fds: what to send, by name."""
        text = text or json.dumps([{"base_host_virt_addr": self.memory.at, "size": self.memory.size,
                                    "offset": 0, "page_size": self.page, "page_size_kib": self.page}])
        text = text.replace("@AT@", str(self.memory.at)).replace("@SIZE@", str(self.memory.size)).encode()
        chosen = [self._make(name, features, register, mode) for name in (["uffd"] if fds is None else fds)]
        if not again:
            self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.connection.connect(path)
        step = -(-len(text) // pieces) or 1
        for i in range(0, max(len(text), 1), step):
            sent = text[i:i + step] or b" "
            if chosen and i == 0:
                socket.send_fds(self.connection, [sent], chosen)
            else:
                self.connection.send(sent)
            if pieces > 1:
                time.sleep(pause)
        if close:
            self.connection.close()
            self.connection = None
        return self.memory.at

    def _make(self, name, features, register, mode):
        if name == "uffd":
            fd = self.memory.uffd(features, register, mode)
        elif name == "uffd-again": # the first one
            return self.kept[0]
        elif name == "other": # of memory that is not handed over
            self.kept.append(_Memory(self.memory.size, False, False))
            fd = self.kept[-1].uffd(features)
        else:
            fd = os.open(name, os.O_RDONLY)
        self.kept.append(fd)
        return fd

    def make_blocking(self):
        """What it has handed over last, which the other side shares."""
        fcntl.fcntl(self.kept[-1], fcntl.F_SETFL, 0)

    def change_memory(self):
        """To one more, and back to the one before."""
        self.others.append(self.memory)
        size = self.memory.size
        self.memory = self.others.pop(0) if len(self.others) > 1 else _Memory(size, False, False)

    def add_memory(self):
        """What comes from now on is of memory of its own; what was before comes next again."""
        self.others.append(self.memory)
        self.memory = _Memory(self.memory.size, False, False)

    def next_memory(self):
        self.others.append(self.memory)
        self.memory = self.others.pop(0)

    def at(self):
        return self.memory.at

    def digest(self, offset, length):
        return hashlib.sha256(self.memory.read(offset, length)).hexdigest()

    def pages(self, offset, length):
        """A digest of each page."""
        return [hashlib.sha256(self.memory.read(at, PAGE)).hexdigest()[:16]
                for at in range(offset, offset + length, PAGE)]

    def discard(self, offset, length):
        return self.memory.discard(offset, length)

    def discard_all(self, ranges, every):
        """Gives back one after the other, in a thread, and reads half of each at once."""
        def work():
            for offset, length in ranges:
                self.memory.discard(offset, length)
                self.memory.read(offset, max(length // 2, 1))
                time.sleep(every)
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def read_all(self, offsets):
        """Reads a byte at each, in a thread."""
        def work():
            for offset in offsets:
                self.memory.read(offset, 1)
        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join()
        self.threads = []

    def write(self, offset, text, times):
        self.memory.write(offset, text.encode() * times)

    def closed(self, seconds):
        """Whether the other side closes the connection."""
        self.connection.settimeout(seconds)
        try:
            return self.connection.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def _serve(commands, answers, size, huge, shared):
    child = _Child(size, huge, shared)
    with os.fdopen(commands) as lines, os.fdopen(answers, "w") as out:
        for line in lines:
            name, arguments, named = json.loads(line)
            try:
                answer = [True, getattr(child, name)(*arguments, **named)]
            except OSError as error:
                answer = [False, str(error)]
            out.write(json.dumps(answer) + "\n")
            out.flush()


class RawVm:
    """Methods of _Child are called in its process: vm.digest(0, 4096). Failed after `seconds`."""

    def __init__(self, t, size, huge=False, shared=False):
        self.seconds = 10.0
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._commands)
            os.close(self._answers)
            try:
                _serve(commands, answers, size, huge, shared)
            finally:
                os._exit(0)
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        t.defer(self.kill)

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.begin(name, *arguments, **named)
            return self.end()
        return call

    def begin(self, name, *arguments, **named):
        os.write(self._commands, (json.dumps([name, arguments, named]) + "\n").encode())

    def is_done(self, seconds):
        """Whether the command that was begun has come to its end by then."""
        until = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return False
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise Failed(f"the VM's process has ended: {process_state(self.pid)}")
            self._buffer += data
        return True

    def end(self):
        if not self.is_done(self.seconds):
            raise Failed(f"the VM still waits after {self.seconds} s")
        line, self._buffer = self._buffer.split(b"\n", 1)
        good, value = json.loads(line)
        if not good:
            raise Failed(f"the VM: {value}")
        return value

    def kill(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._commands)
            os.close(self._answers)
            self.pid = 0


def random_memory(t, size, seed=1):
    """A memory file in which no page is like another, a quarter of them holes; and its image."""
    path, chance = t.path(t.unique("memory")), random.Random(seed)
    data = b"".join(bytes(CLUSTER) if chance.random() < 0.25 else chance.randbytes(CLUSTER)
                    for _ in range(size // CLUSTER))
    with open(path, "wb") as f:
        f.write(data)
    return data, import_memory(t, path)


def check_content(t, vm, data, what, zero=()):
    """All of a RawVm's memory; `zero`: [(offset, length)] that it has given back."""
    wanted = bytearray(data)
    for offset, length in zero:
        wanted[offset:offset + length] = bytes(length)
    pages = [hashlib.sha256(wanted[at:at + PAGE]).hexdigest()[:16] for at in range(0, len(wanted), PAGE)]
    there = vm.pages(0, len(wanted))
    wrong = [i for i, (a, b) in enumerate(zip(there, pages)) if a != b]
    t.equal(wrong, [], f"{what}: wrong pages")
