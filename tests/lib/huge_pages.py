"""Huge pages lent for a test: so many more than the host had, given back when the borrower has ended, however
it ends. Root alone can.

As a program: huge_pages.py N COMMAND [ARG...] runs a command with them; without them, if they can't be had."""

import ctypes
import fcntl
import os
import sys

PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37
_libc = ctypes.CDLL(None)
NUMBER = "/proc/sys/vm/nr_hugepages"


def _change(n):
    """Several tests may want to, of other builds as well."""
    with open(NUMBER, "r+", encoding="ascii") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        there = int(f.read())
        f.seek(0)
        f.write(str(max(there + n, 0)))


def _give_back_at_end(end, n):
    """In a process that nobody knows who kills a test and all below it: waits until nobody holds the other
    side of the pipe."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd) # who runs the test waits for these to close
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2 and int(fd) != end:
            try:
                os.close(int(fd))
            except OSError:
                pass
    os.read(end, 1)
    _change(-n)
    os._exit(0)


def lend(n):
    """n huge pages more, until the descriptor that it returns is closed everywhere; None: they can't be
    had."""
    if not os.access(NUMBER, os.W_OK):
        return None
    end, held = os.pipe()
    _change(n)
    reaps = ctypes.c_int()
    _libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(reaps))
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 0) # else it would be found below us
    child = os.fork()
    if child == 0:
        os.close(held)
        _give_back_at_end(end, n)
    os.waitpid(child, 0)
    _libc.prctl(PR_SET_CHILD_SUBREAPER, reaps.value)
    os.close(end)
    with open("/proc/meminfo", encoding="ascii") as f:
        free = next(int(line.split()[1]) for line in f if line.startswith("HugePages_Free"))
    if free >= n:
        return held
    os.close(held)
    return None


def main():
    held = lend(int(sys.argv[1]))
    if held is not None:
        os.set_inheritable(held, True)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
