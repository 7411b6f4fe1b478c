#!/usr/bin/python3
"""make.py GOOD DIRECTORY - derives the other golden images from a good one.

Images that are in git stay as they are: they show that what was once written can be read. A new
version of the format gets a v<N>-good.img (made by image_small, tests/golden/small.c) and what make.py
derives from it, beside the old ones; then their lines in golden.py.
"""

import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from imagefile import BLOCK, GPA, HOT, INDEX, POISON, REGIONS, ImageFile  # noqa: E402


def entry(image, cluster):
    return image.get(image.section(INDEX), 8 * cluster)


def bit(data, at):
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]


def unknown_section(image):
    image.sections.append([77, bytearray(b"from the future")])


def minor_version(image):
    """Version 99 that version 1 can read: reserved bytes are in use."""
    struct.pack_into("<I", image.header, 16, 99)
    image.header[1000] = image.trailer[2000] = 1


def newer(image):
    struct.pack_into("<II", image.header, 16, 99, 99)


def swapped(image):
    """Two clusters name each other's records."""
    index = image.section(INDEX)
    a, b = entry(image, 0), entry(image, 3)
    image.set(index, 0, b)
    image.set(index, 24, a)


def foreign_record(image):
    """A record with another image's checksum seed: any other id will do."""
    for block, at in ((image.header, 24), (image.trailer, 16)):
        block[at] ^= 1


def index_outside(image):
    image.set(image.section(INDEX), 0, (BLOCK + len(image.records) - 20) << 16 | 100)


def region_huge(image):
    struct.pack_into("<QQ", image.section(REGIONS), 0, 1 << 60, 1 << 60)


def address_outside(image):
    image.set(image.section(GPA), 8, 1 << 40)


def hot_outside(image):
    image.set(image.section(HOT), 0, 4)


def poison_mask(image):
    image.set(image.section(POISON), 8, 8) # its cluster has three pages


def garbage(image):
    """Bytes between the records that are no record; what follows them is intact."""
    image.records += b"\0" * 100


DERIVED = [unknown_section, minor_version, newer, swapped, foreign_record, index_outside, region_huge,
           address_outside, hot_outside, poison_mask, garbage]


def main():
    good, directory = sys.argv[1:]
    prefix = os.path.basename(good).split("-")[0]
    with open(good, "rb") as f:
        data = f.read()
    files = {"truncated": data[:-5], "no-trailer": data[:-BLOCK], "header-bit": bit(data, 30),
             "page-bit": bit(data, (entry(ImageFile(data), 0) >> 16) + 60)}
    for change in DERIVED:
        image = ImageFile(data)
        change(image)
        files[change.__name__.replace("_", "-")] = image.build()
    for name, content in files.items():
        with open(os.path.join(directory, f"{prefix}-{name}.img"), "wb") as f:
            f.write(content)


if __name__ == "__main__":
    main()
