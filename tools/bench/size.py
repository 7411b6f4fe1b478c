"""What the clusters of an image come to when each is compressed alone, and all of them as one."""

import os

from case import tool
from measure import NoFigure

CLUSTER_BYTES = 16 << 10
ZEROS = bytes(CLUSTER_BYTES)


def clusters(path):
    """The clusters of a raw file that are not zeros; holes are skipped."""
    with open(path, "rb", buffering=0) as f:
        size, at = os.fstat(f.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError: # no more data
                return
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            at -= at % CLUSTER_BYTES
            while at < end:
                data = os.pread(f.fileno(), CLUSTER_BYTES, at)
                if data != ZEROS[:len(data)]:
                    yield data
                at += CLUSTER_BYTES


def clusters_alone(t, image, work_dir):
    """(sum of the clusters of `image` compressed one by one at level 1, all of them in one go)."""
    raw = os.path.join(work_dir, "raw-of-image")
    done = t.run([tool("vmsnap"), "export", image, "--format", "raw", raw], timeout=180)
    if done.returncode:
        raise NoFigure(f"export: {done.stderr.strip()}")
    import zstandard # what only looks at this file's other users need not have it
    one = zstandard.ZstdCompressor(level=1)
    together = zstandard.ZstdCompressor(level=1).compressobj()
    alone = whole = 0
    for data in clusters(raw):
        alone += len(one.compress(data))
        whole += len(together.compress(data))
    whole += len(together.flush())
    os.unlink(raw)
    return alone, whole
