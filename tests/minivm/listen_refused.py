#!/usr/bin/python3
"""`vmsnap restore --listen`: what is no handoff, or does not fit, is refused by name, and harms no other VM."""

import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from listener import Listener  # noqa: E402
from rawvm import MIB, RawVm, check_content, random_memory  # noqa: E402


def message(*regions):
    return "[" + ",".join('{"base_host_virt_addr":%s,"size":%s,"offset":%s,"page_size":%s}' % r
                          for r in regions) + "]"


BAD = (
    ("no userfaultfd", {"fds": []}, ("without a userfaultfd",)),
    ("a file", {"fds": ["/dev/null"]}, ("no userfaultfd",)),
    ("of other memory", {"fds": ["other"]}, ("not registered", "0x")),
    ("not registered", {"register": False}, ("not registered",)),
    ("garbage", {"text": "GET / HTTP/1.1\r\n\r\n"}, ("message",)),
    ("half", {"text": '[{"base_host'}, ("closed in the middle",)),
    ("a size that is not there", {"text": message(("@AT@", "16777216", "0", "4096"))}, ("image",)),
    ("less than the image", {"text": message(("@AT@", "2097152", "0", "4096"))}, ("has 2 MiB", "image 4 MiB")),
    ("an offset beyond", {"text": message(("@AT@", "@SIZE@", "4096", "4096"))}, ("image",)),
    ("an address that is not mapped", {"text": message(("65536", "@SIZE@", "0", "4096"))}, ("not mapped",)),
    ("huge pages that are none", {"text": message(("@AT@", "@SIZE@", "0", "2097152"))}, ()),
    ("pages of 3000 bytes", {"text": message(("@AT@", "@SIZE@", "0", "3000"))}, ()),
    ("too long", {"text": "[" + " " * 70000 + "]"}, ()),
)


@case("minivm.listen.refused", "kernel", 60)
def refused(t):
    """What is no handoff, or does not fit: an error that says so, the connection closed, the listener alive."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--timeout", "5s")
    for n, (what, how, words) in enumerate(BAD, 1):
        vm = RawVm(t, 4 * MIB)
        vm.hand_over(listener.path, close=what in ("half", "no userfaultfd"), **how)
        error = listener.wait_for("error", n=n)
        for word in words:
            t.check(word in error["message"], f"{what}: '{word}' in {error['message']}")
        t.check(error["hint"] and error["guest_state"] == "waiting", f"{what}: {error}")
        t.equal(error["exit_code"] in (10, 15), True, f"{what}: {error}")
        if "close" not in how and what not in ("half", "no userfaultfd"):
            t.check(vm.closed(5), f"{what}: the connection is closed")
        vm.kill()
    t.equal(listener.processes(), [], "processes that are left")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "after all of them")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1, refused=len(BAD))


@case("minivm.listen.twice", "kernel", 40)
def twice(t):
    """The same memory handed over again before its first page is in: refused, and served on. What is given
    back stays zero."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("running", vm.pid)
    vm.hand_over(listener.path, fds=["uffd-again"])
    error = listener.wait_for("error")
    t.equal((error["exit_code"], error["guest_state"]), (11, "running"), f"{error}")
    vm.discard(MIB, MIB)
    check_content(t, vm, data, "handed over twice", zero=[(MIB, MIB)])
    t.equal(len(listener.of_type("running")), 1, "servers")
    vm.kill()
    listener.check_served(1, refused=1)


@case("minivm.listen.silent", "kernel", 40)
def silent(t):
    """Who connects and says nothing is sent away; who shares his memory is refused."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--timeout", "500ms")
    mute = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mute.connect(listener.path)
    error = listener.wait_for("error")
    t.equal(error["exit_code"], 17, f"{error}")
    mute.settimeout(5)
    t.equal(mute.recv(1), b"", "the connection")
    vm = RawVm(t, 4 * MIB, shared=True)
    vm.hand_over(listener.path)
    t.check("private" in listener.wait_for("error", n=2)["message"], "shared memory")
    vm.kill()
    listener.check_served(0, refused=2)


if __name__ == "__main__":
    main()
