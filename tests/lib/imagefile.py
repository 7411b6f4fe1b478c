"""An image taken apart and put together again, checksums made right: for tests that need one which
lies. Follows docs/format.md; Debian's python3-xxhash is needed."""

import struct

import xxhash

BLOCK = 4096
REGIONS, GPA, INDEX, HOT, POISON, DEVICE_STATE, DESCRIPTION = range(1, 8)
SECTION_MAGIC = 0x184D2A52


def checksum(data, seed=0):
    return xxhash.xxh3_64_intdigest(data, seed=seed)


class ImageFile:
    """header, records and trailer are bytearrays, sections a list of [type, payload]."""

    def __init__(self, data):
        self.header = bytearray(data[:BLOCK])
        self.trailer = bytearray(data[-BLOCK:])
        self.records = bytearray(data[BLOCK:self.get(self.trailer, 56)])
        self.sections = []
        for i in range(struct.unpack_from("<I", self.trailer, 96)[0]):
            kind, _, offset, length, _ = struct.unpack_from("<IIQQQ", self.trailer, 104 + 32 * i)
            self.sections.append([kind, bytearray(data[offset + 8:offset + 8 + length])])

    @staticmethod
    def get(block, offset):
        return struct.unpack_from("<Q", block, offset)[0]

    @staticmethod
    def set(block, offset, value):
        struct.pack_into("<Q", block, offset, value)

    def section(self, kind):
        return next(payload for k, payload in self.sections if k == kind)

    def replace(self, kind, payload):
        for one in self.sections:
            if one[0] == kind:
                one[1] = bytearray(payload)

    def build(self):
        """The file, with section table, sizes and checksums as they have to be."""
        at = BLOCK + len(self.records)
        self.set(self.trailer, 56, at)
        struct.pack_into("<I", self.trailer, 96, len(self.sections))
        self.trailer[104:104 + 1024] = bytes(1024)
        tail = b""
        for i, (kind, payload) in enumerate(self.sections):
            frame = struct.pack("<II", SECTION_MAGIC, len(payload)) + bytes(payload)
            struct.pack_into("<IIQQQ", self.trailer, 104 + 32 * i, kind, 0, at + len(tail),
                             len(payload), checksum(frame))
            tail += frame
        self.set(self.trailer, 32, at + len(tail) + BLOCK)
        for block, where in ((self.header, 48), (self.trailer, 4088)):
            self.set(block, where, 0)
            self.set(block, where, checksum(bytes(block)))
        return bytes(self.header) + bytes(self.records) + tail + bytes(self.trailer)


def stored_clusters(data):
    """{cluster: (offset, length) in the file of its record} of those that hold anything."""
    index = ImageFile(data).section(INDEX)
    entries = struct.unpack(f"<{len(index) // 8}Q", index)
    return {c: (e >> 16, 24 + (e & 0xffff)) for c, e in enumerate(entries) if e > 1}


def damage_clusters(path, clusters):
    """Flips a bit in the record of each of these clusters of the image in a file; the records' file offsets."""
    with open(path, "r+b") as f:
        stored = stored_clusters(f.read())
        for offset, length in (stored[cluster] for cluster in clusters):
            f.seek(offset + length - 3)
            byte = f.read(1)[0]
            f.seek(offset + length - 3)
            f.write(bytes([byte ^ 0x10]))
    return [stored[cluster][0] for cluster in clusters]


def damage_cluster(path, cluster):
    """The same with one; its record's file offset."""
    return damage_clusters(path, [cluster])[0]
