"""A `vmsnap restore --listen` in a test, and a VMM that says to it whatever the test wants."""

import contextlib
import ctypes
import fcntl
import glob
import json
import mmap
import os
import signal
import socket
import struct

from case import Failed, descendants, is_alive, kill, open_files, process_name, wait_until
from vmsnap import json_lines, start_vmsnap

NR_USERFAULTFD = 323 # x86-64
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER = 0xc018aa3f, 0xc020aa00, 0x8010aa01
MADV_DONTNEED = 4
EVENT_FORK_FEATURE, EVENT_REMOVE_FEATURE = 1 << 1, 1 << 3
HUGE = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)


class Listener:
    """A `vmsnap restore --listen`, and what it has said so far; with `path` on that socket."""

    def __init__(self, t, image, *options, hooks=None, path=None, seconds=20):
        self.t = t
        self.path = path or t.path(t.unique("listen") + ".sock")
        self.log_path = t.path(t.unique("listen") + ".log")
        with open(self.log_path, "wb") as log:
            self.process = start_vmsnap(t, "restore", "--listen", self.path, image, *options, hooks=hooks,
                                        stdout=log, stderr=log)
        self.pid = self.process.pid
        t.defer(self.kill_all)
        wait_until(lambda: self.of_type("listening") or self._check_alive(), seconds, "vmsnap listens")

    def _check_alive(self):
        if self.process.poll() is not None:
            raise Failed(f"vmsnap has ended with {self.process.returncode}: {self.text()}")

    def text(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def of_type(self, name, pid=None):
        return [o for o in json_lines(self.text())
                if o.get("type") == name and (pid is None or o.get("vmm_pid") == pid)]

    def wait_for(self, name, pid=None, n=1, seconds=20):
        """The nth object of that type (of that VM)."""
        try:
            return wait_until(lambda: self.of_type(name, pid)[n - 1:], seconds, f"{name} of {pid}")[0]
        except Failed as late:
            raise Failed(f"{late}: {self.text()}") from late

    def fds(self):
        """What its process has open: sorted texts."""
        return sorted(open_files(self.pid))

    def children(self):
        """The processes of its VMs, zombies included."""
        with open(f"/proc/{self.pid}/task/{self.pid}/children", encoding="ascii") as f:
            return [int(pid) for pid in f.read().split()]

    def processes(self):
        """All but the listener itself: of each VM its supervisor and its server."""
        return [p for p in descendants(self.pid) if is_alive(p)]

    def servers(self):
        return [p for p in self.processes() if process_name(p) == "vmsnap-server"]

    def is_alive(self):
        return is_alive(self.pid)

    def connect(self, timeout=10.0):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        connection.connect(self.path)
        return connection

    def kill_all(self):
        """It first, and all below it."""
        for pid in [self.pid, *self.processes()]:
            kill(pid)

    def end(self, number=signal.SIGTERM, seconds=20):
        """A signal, and its exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def check_served(self, vms, refused=0, complete=None):
        """A signal ends it when all memory is in; nothing is left of it. `complete`: VMs whose memory is all in."""
        self.t.equal(self.end(), 0, f"exit status: {self.text()}")
        total = self.of_type("summary")[-1]
        self.t.equal((total["vms"], total["handoffs_refused"], total["vms_left"]), (vms, refused, 0),
                     "in the summary")
        if complete is not None:
            self.t.equal(total["vms_complete"], complete, "vms_complete")
        self.t.check(not os.path.exists(self.path), "the socket is removed")


def check_left(t, pid, what):
    """Nothing of vmsnap's is left in the VMM; its own userfaultfd is, and has nothing registered."""
    def gone():
        return not any("vmsnap-restore" in link for link in open_files(pid))
    wait_until(gone, 30, f"{what}: the record is gone")
    t.check(any("userfaultfd" in link for link in open_files(pid)), f"{what}: it keeps its userfaultfd")
    t.check(not is_registered(pid), f"{what}: nothing is registered")


def is_registered(pid):
    """Whether any of its memory is, with a userfaultfd."""
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as f:
        return " um" in f.read()


def records(pid):
    """The /proc paths of the records in a process."""
    found = []
    for fd in glob.glob(f"/proc/{pid}/fd/*"):
        with contextlib.suppress(FileNotFoundError): # closed since
            if "vmsnap-restore" in os.readlink(fd):
                found.append(fd)
    return found


class Memory:
    """Private anonymous memory of this process, registered with a userfaultfd as Firecracker does it;
    aligned to 2 MiB. `registered`: how many bytes of it; `touched`: an offset that is written to before."""

    def __init__(self, t, length, registered=None, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, touched=None):
        self.length = length
        self._map = mmap.mmap(-1, length + HUGE, flags=flags)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = start + -start % HUGE
        if touched is not None:
            ctypes.memset(self.address + touched, 1, 1)
        self.fd = new_userfaultfd(t)
        count = length if registered is None else registered
        if count:
            fcntl.ioctl(self.fd, UFFDIO_REGISTER,
                        bytearray(struct.pack("<4Q", self.address, count, 1, 0)))

    def read(self):
        """All of it. Through ctypes: what waits for a page lets others run."""
        return ctypes.string_at(self.address, self.length)

    def unmap(self):
        _libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.length))

    def unregister(self):
        fcntl.ioctl(self.fd, UFFDIO_UNREGISTER,
                    bytearray(struct.pack("<2Q", self.address, self.length)))

    def give_back(self, offset, length=4096):
        _libc.madvise(ctypes.c_void_p(self.address + offset), ctypes.c_size_t(length), MADV_DONTNEED)

    def region(self, **changes):
        whole = {"base_host_virt_addr": self.address, "size": self.length, "offset": 0,
                 "page_size": 4096, "page_size_kib": 4096}
        return {**whole, **changes}


def new_userfaultfd(t, features=EVENT_REMOVE_FEATURE):
    """Closed at the end of the case; t None: of a process that has none."""
    fd = _libc.syscall(NR_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        raise Failed(f"userfaultfd(2): {os.strerror(ctypes.get_errno())}")
    if t:
        t.defer(os.close, fd)
    fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("<3Q", 0xaa, features, 0)))
    return fd


def send_handoff(connection, message, fds):
    """`message`: bytes, or a list of regions."""
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    if fds:
        sent = socket.send_fds(connection, [data], fds)
        data = data[sent:]
    connection.sendall(data)
