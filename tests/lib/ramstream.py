"""Reads guest memory out of QEMU's own migration stream: what each memory block holds, by name.

The judge of where vmsnap finds blocks: QEMU itself writes every page under its block's name. Layout
as in QEMU's docs/devel/migration.rst and migration/ram.c; only what a plain precopy stream of a
stopped VM has. Pages are kept as Python's hash() of their bytes, for comparison within one process.
"""

import os
import socket
import struct

from case import Failed

PAGE = 4096
ZERO_PAGE = bytes(PAGE)
SECTION_START, SECTION_PART, SECTION_END, CONFIGURATION, FOOTER = 1, 2, 3, 7, 0x7e
FLAG_ZERO, FLAG_MEM_SIZE, FLAG_PAGE, FLAG_EOS, FLAG_CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20


class Reader:
    """Bytes of a socket, read in order."""

    def __init__(self, sock):
        self._file = sock.makefile("rb", buffering=1 << 20)

    def take(self, count):
        data = self._file.read(count)
        if len(data) != count:
            raise Failed(f"migration stream ends early ({len(data)} of {count} bytes)")
        return data

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0]

    def name(self):
        return self.take(self.number("B")).decode()

    def drain(self):
        while self._file.read(1 << 20):
            pass


class RamStream:
    """blocks: {name: bytes}; pages: {name: {page number: hash}} of pages that are not zero."""

    def __init__(self, reader):
        self.blocks, self.pages = {}, {}
        self._read, self._block = reader, None
        if reader.take(8) != b"QEVM\0\0\0\3":
            raise Failed("not a migration stream")
        kind = reader.number("B")
        if kind == CONFIGURATION:
            reader.take(reader.number("I"))
            kind = reader.number("B")
        while True:
            reader.number("I")
            if kind == SECTION_START:
                if reader.name() != "ram":
                    raise Failed("the first section is not memory")
                reader.take(8)  # instance, version
            elif kind not in (SECTION_PART, SECTION_END):
                raise Failed(f"section type {kind} in a memory stream")
            self._section()
            if reader.number("B") != FOOTER:
                raise Failed("a section without footer")
            reader.number("I")
            if kind == SECTION_END:
                return
            kind = reader.number("B")

    def _section(self):
        while True:
            header = self._read.number("Q")
            address, flags = header & ~(PAGE - 1), header & (PAGE - 1)
            if flags == FLAG_EOS:
                return
            if flags == FLAG_MEM_SIZE:
                self._list(address)
            elif flags & ~FLAG_CONTINUE in (FLAG_ZERO, FLAG_PAGE):
                if not flags & FLAG_CONTINUE:
                    self._block = self._read.name()
                self._page(address // PAGE, flags & FLAG_ZERO)
            else:
                raise Failed(f"memory record with flags {flags:#x}")

    def _list(self, total):
        while total > 0:
            name = self._read.name()
            self.blocks[name] = self._read.number("Q")
            self.pages[name] = {}
            total -= self.blocks[name]

    def _page(self, number, is_zero):
        if is_zero:
            fill = self._read.take(1)
            if fill != b"\0":
                self.pages[self._block][number] = hash(fill * PAGE)
            return
        data = self._read.take(PAGE)
        if data != ZERO_PAGE:
            self.pages[self._block][number] = hash(data)


def capture(guest, timeout=60):
    """Migrates a stopped guest into this process, as a RamStream. The guest stays "postmigrate"."""
    path = os.path.join(guest.dir, "stream")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen(1)
        listener.settimeout(timeout)
        guest.qmp.command("migrate-set-parameters", max_bandwidth=1 << 40)
        guest.qmp.command("migrate", uri="unix:" + path)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(timeout)
            reader = Reader(connection)
            stream = RamStream(reader)
            reader.drain()
    return stream
