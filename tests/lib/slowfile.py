"""A file on a storage that fails or hangs where and when a test wants it: a small FUSE file system
(fuse(4), the protocol of linux/fuse.h) whose one file is another's content.

In a test: SlowFile(t, path). As a program (which it starts): slowfile.py MOUNTPOINT FILE MODE-FILE."""

import ctypes
import errno
import os
import select
import stat
import struct
import sys

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, BATCH_FORGET = (
    1, 2, 3, 14, 15, 18, 25, 26, 36, 42)
DIRECT_IO = 1 # no page cache: each read comes here, and one that hangs can't be killed
NAME = "image"
MNT_DETACH = 2
CLONE_NEWNS = 0x20000
MS_BIND = 0x1000
MS_REC_PRIVATE = 0x4000 | 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def _mount_in_private():
    """What this process and those that it starts mount from here on is seen by them alone, and goes with the
    last of them: so nothing is left of a test that is killed."""
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "a mount namespace")


class SlowFile:
    """`path`: the file as it is to be read. It reads well until fail() or hang()."""

    def __init__(self, t, backing):
        # Lazily, so that the program below needs nothing of the tests.
        from case import wait_until # pylint: disable=import-outside-toplevel
        self.t = t
        t.need(os.geteuid() == 0 and os.path.exists("/dev/fuse"), "FUSE needs root and /dev/fuse")
        _mount_in_private()
        self._dir = t.path(t.unique("slow"))
        self._mode = self._dir + ".mode"
        os.mkdir(self._dir)
        self.work()
        self.path = os.path.join(self._dir, NAME)
        t.defer(_libc.umount2, self._dir.encode(), MNT_DETACH)
        self.process = t.spawn([sys.executable, "-B", os.path.abspath(__file__), self._dir, backing,
                                self._mode])
        wait_until(lambda: os.path.ismount(self._dir), 10, "the slow file is there")

    def cover(self, path):
        """What is at `path` is this file from now on."""
        if _libc.mount(self.path.encode(), path.encode(), None, MS_BIND, None):
            raise OSError(ctypes.get_errno(), f"a mount at {path}")
        self.t.defer(_libc.umount2, path.encode(), MNT_DETACH)

    def _set(self, text):
        with open(self._mode + ".new", "w", encoding="ascii") as f:
            f.write(text)
        os.rename(self._mode + ".new", self._mode)

    def work(self):
        self._set("work")

    def fail(self, places):
        """Reads of anything in one of the places (offset, length) get EIO."""
        self._set("\n".join(["fail", *(f"{at} {length}" for at, length in places)]))

    def hang(self, places):
        """They don't return until work()."""
        self._set("\n".join(["hang", *(f"{at} {length}" for at, length in places)]))


class _Server:
    def __init__(self, fd, backing, mode_path):
        self.fd, self.backing, self.mode_path = fd, os.open(backing, os.O_RDONLY), mode_path
        self.size = os.fstat(self.backing).st_size
        self.held = []
        self.what, self.places, self.known = "work", [], None

    def answer(self, unique, data=b"", error=0):
        try:
            os.write(self.fd, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)
        except OSError:
            pass # it was given up

    def attributes(self, node):
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o600
        return struct.pack("<6Q10I", node, 0 if node == 1 else self.size, 0, 0, 0, 0, 0, 0, 0, mode,
                           1, 0, 0, 0, 4096, 0)

    def look(self):
        """What is to be done, if that has changed."""
        with open(self.mode_path, encoding="ascii") as f:
            now = os.fstat(f.fileno())
            if self.known == (now.st_ino, now.st_mtime_ns):
                return
            self.known = (now.st_ino, now.st_mtime_ns)
            self.what, *places = f.read().split("\n")
        self.places = [tuple(map(int, place.split())) for place in places]

    def read(self, request):
        """False: it hangs."""
        unique, offset, size = request
        self.look()
        if any(offset < at + length and offset + size > at for at, length in self.places):
            if self.what == "hang":
                return False
            self.answer(unique, error=errno.EIO)
            return True
        self.answer(unique, os.pread(self.backing, size, offset))
        return True

    def serve(self, opcode, unique, node, body):
        if opcode == INIT:
            self.answer(unique, struct.pack("<4I2H2I2H8I", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 32, 0,
                                            *[0] * 8))
        elif opcode == LOOKUP:
            found = body == NAME.encode() + b"\0"
            self.answer(unique, struct.pack("<4Q2I", 2, 0, 60, 60, 0, 0) + self.attributes(2)
                        if found else b"", 0 if found else errno.ENOENT)
        elif opcode == GETATTR:
            self.answer(unique, struct.pack("<Q2I", 60, 0, 0) + self.attributes(node))
        elif opcode == OPEN:
            self.answer(unique, struct.pack("<Q2I", 0, DIRECT_IO, 0))
        elif opcode == READ:
            request = (unique, *struct.unpack_from("<QI", body, 8))
            if not self.read(request):
                self.held.append(request)
        elif opcode in (RELEASE, FLUSH):
            self.answer(unique)
        elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):
            self.answer(unique, error=errno.ENOSYS)

    def run(self):
        while True:
            ready = select.select([self.fd], [], [], 0.05)[0]
            self.held = [r for r in self.held if not self.read(r)]
            if not ready:
                continue
            try:
                data = os.read(self.fd, 1 << 20)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                return # unmounted
            _, opcode, unique, node = struct.unpack_from("<2I2Q", data)
            self.serve(opcode, unique, node, data[40:])


def main():
    where, backing, mode_path = sys.argv[1:]
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc.mount(b"vmsnap-test", where.encode(), b"fuse", 6, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    _Server(fd, backing, mode_path).run()


if __name__ == "__main__":
    main()
