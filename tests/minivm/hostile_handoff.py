#!/usr/bin/python3
"""Clients of `restore --listen` that lie, say nothing, or go away: each is refused by itself and told
why; the listener lives, keeps no descriptor, and serves the next VM right."""

import mmap
import os
import signal
import socket
import sys
import tempfile
import time
import traceback

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from listener import EVENT_FORK_FEATURE, HUGE, Listener, Memory, new_userfaultfd, send_handoff  # noqa: E402
from minivm import MiniVm, end_and_wait  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

MIB, PAGE = 1 << 20, 4096
IMAGE_BYTES = 8 * MIB
SIZES = ("--memory", "8M", "--populate", "6M")


def prepare(t):
    """(image, state file): of a minivm that has worked for a while."""
    vm = MiniVm(t, *SIZES, accel="threads")
    vm.wait_for_writes(2000)
    vm.stop()
    state, memory = vm.save_files()
    end_and_wait(vm)
    image = t.path("image")
    made = vmsnap(t, "import", "firecracker", "--vmstate", state, memory, image)
    t.equal(made.code, 0, made.text())
    os.rename(memory, t.path("raw"))
    return image, state


def check_serves(t, listener, state, what):
    """A VM that means well gets its memory, and notices nothing."""
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, accel="threads")
    vm.wait_for_writes(1000)
    vm.stop()
    vm.check_right(what)
    t.equal(end_and_wait(vm), 0, f"{what}: exit status")


def settle(t, listener, fds):
    """No process of a client's is left, and no descriptor."""
    wait_until(lambda: not listener.children(), 20, "the processes of refused clients end")
    t.equal(listener.fds(), fds, "descriptors of the listener")
    t.check(listener.is_alive(), listener.text())


def refused(t, listener, name, message, fds, *words, close=False):
    """Sends it; the connection is closed by the other side, an error tells one of `words`."""
    before = len(listener.of_type("error"))
    connection = listener.connect()
    try:
        send_handoff(connection, message, fds)
        if close:
            connection.shutdown(socket.SHUT_WR)
        rest = connection.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        rest = b""
    t.equal(rest, b"", f"{name}: what the listener says")
    connection.close()
    wait_until(lambda: len(listener.of_type("error")) > before, 20, f"{name}: an error")
    errors = listener.of_type("error")[before:]
    t.equal(len(errors), 1, f"{name}: errors {errors}")
    t.check(any(w in errors[0]["message"] for w in words), f"{name}: {errors[0]['message']}")
    t.check(errors[0]["exit_code"] in (10, 15) and errors[0]["hint"], f"{name}: {errors[0]}")
    t.say(f"{name}: {errors[0]['message']}")


@case("minivm.hostile_handoff.messages", "kernel", 60)
def messages(t):
    """What is no message, and regions that can't be."""
    image, state = prepare(t)
    listener = Listener(t, image)
    check_serves(t, listener, state, "before")
    wait_until(lambda: not listener.children(), 20, "the first VM's processes end")
    fds = listener.fds()
    good = Memory(t, IMAGE_BYTES)
    region, uffd = good.region, [good.fd]
    base = good.address
    for name, message, *words in (
            ("an object", b'{"a": 1}', "does not begin"),
            ("text", b"GET / HTTP/1.0\r\n\r\n", "does not begin"),
            ("zeros", bytes(100), "does not begin"),
            ("a terminal's escape", b'[\x1b]2;x\x07]', "is no JSON"),
            ("a nesting bomb", b"[" * 60000, "nested too deeply"),
            ("nothing but empty", b"[]" * 9, "names no region"),
            ("not of objects", b"[1, 2]", "not an object"),
            ("a long text", b'["' + b"x" * 70000, "longer than 64 KiB"),
            ("a megabyte of blanks", b" " * MIB, "longer than 64 KiB"),
            ("many regions", [region(base_host_virt_addr=(i + 1) * PAGE, size=PAGE, offset=i * PAGE)
                              for i in range(300)], "more than 256", "longer than 64 KiB"),
            ("a key twice", b'[{"size":1,"size":1}]', "duplicate"),
            ("a float", [region(size=8388608.0)], "not an integer"),
            ("negative", [region(offset=-4096)], "negative"),
            ("beyond 2^63", [region(base_host_virt_addr=1 << 63)], "is no JSON"),
            ("wraps around", [region(base_host_virt_addr=(1 << 63) - 4096)], "wraps"),
            ("misaligned", [region(base_host_virt_addr=base + 1)], "no multiple"),
            ("a misaligned offset", [region(offset=12)], "no multiple"),
            ("no bytes", [region(size=0)], "no bytes"),
            ("odd pages", [region(page_size=12288, page_size_kib=12288)], "4 KiB or 2 MiB"),
            ("pages in KiB", [region(page_size=4, page_size_kib=4)], "4 KiB or 2 MiB"),
            ("pages of no bytes", [region(page_size=0)], "4 KiB or 2 MiB"),
            ("page sizes that differ", [region(page_size_kib=2 << 20)], "differ"),
            ("overlap", [region(size=MIB), region(base_host_virt_addr=base + PAGE, size=MIB, offset=MIB)],
             "overlaps region 0 in the VMM"),
            ("overlap in the file", [region(size=MIB), region(base_host_virt_addr=base + MIB, size=MIB)],
             "overlaps region 0 in the memory file")):
        refused(t, listener, name, message, uffd, *words)
    refused(t, listener, "cut off", b'[{"base_host_virt_addr": 4096, "si', uffd, "closed", close=True)
    settle(t, listener, fds)
    check_serves(t, listener, state, "after all that")
    t.equal(listener.end(), 0, "exit status of the listener")


@case("minivm.hostile_handoff.memory", "kernel", 60)
def memory_that_is_not(t):
    """Messages in order, of memory that is not what they say or does not fit the image."""
    image, state = prepare(t)
    listener = Listener(t, image)
    fds = listener.fds()
    good, large = Memory(t, IMAGE_BYTES), Memory(t, IMAGE_BYTES + 4 * MIB)
    half = Memory(t, IMAGE_BYTES, registered=IMAGE_BYTES // 2)
    shared = Memory(t, IMAGE_BYTES, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    touched = [Memory(t, IMAGE_BYTES, touched=at) for at in (0, 3 * MIB + PAGE, IMAGE_BYTES - 1)]
    for name, message, fd, *words in (
            ("larger than the image", [large.region()], large.fd, "image"),
            ("behind the image", [good.region(offset=MIB)], good.fd, "image"),
            ("far behind the image", [good.region(offset=1 << 40)], good.fd, "image"),
            ("not by clusters", [good.region(size=MIB + PAGE), good.region(
                base_host_virt_addr=good.address + MIB + PAGE, size=IMAGE_BYTES - MIB - PAGE,
                offset=MIB + PAGE)], good.fd, "whole pages"),
            ("a part of the image", [good.region(size=MIB)], good.fd, "of memory, the image"),
            ("huge pages of small ones", [good.region(page_size=HUGE, page_size_kib=HUGE)], good.fd,
             "pages of another size"),
            ("nothing mapped", [good.region(base_host_virt_addr=1 << 46)], good.fd, "not mapped"),
            ("half of it registered", [half.region()], half.fd, "not registered"),
            ("shared memory", [shared.region()], shared.fd, "no private"),
            *(("a page that is there", [one.region()], one.fd, "holds something") for one in touched),
            ("another userfaultfd of ours", [good.region()], large.fd, "another userfaultfd")):
        refused(t, listener, name, message, [fd], *words)
    settle(t, listener, fds)
    check_serves(t, listener, state, "after all that")


@case("minivm.hostile_handoff.descriptors", "kernel", 60)
def descriptors(t):
    """No descriptor, one of another kind or of another process, several."""
    image, state = prepare(t)
    listener = Listener(t, image, "--timeout", "3s")
    fds = listener.fds()
    good = Memory(t, IMAGE_BYTES)
    event = os.eventfd(0)
    t.defer(os.close, event)
    others = MiniVm(t, *SIZES, accel="threads") # does not connect: its memory is not for this
    with tempfile.TemporaryFile(dir=t.dir) as file:
        ours, theirs = socket.socketpair()
        for name, sent in (("a file", [file.fileno()]), ("an eventfd", [event]),
                           ("a socket", [ours.fileno()]), ("/dev/null", [os.open("/dev/null", 0)]),
                           ("a file first", [file.fileno(), good.fd]),
                           ("many files", [file.fileno()] * 100)):
            refused(t, listener, name, [good.region()], sent, "no userfaultfd")
        ours.close()
        theirs.close()
    refused(t, listener, "one that is not registered", [good.region()], [new_userfaultfd(t)],
            "another userfaultfd")
    refused(t, listener, "one that tells of forks", [good.region()], [new_userfaultfd(t, EVENT_FORK_FEATURE)],
            "tells of forks")
    refused(t, listener, "memory of another process", [good.region(
        base_host_virt_addr=others.ram["hva"])], [good.fd], "not mapped", "not registered",
            "no private")
    t.equal(others.writes() > 0, True, "that process works on")
    refused(t, listener, "no descriptor", [good.region()], [], "without a userfaultfd", close=True)
    silent = listener.connect(timeout=20)
    send_handoff(silent, [good.region()], [])
    t.equal(silent.recv(1), b"", "no descriptor, and the connection open")
    settle(t, listener, fds)
    check_serves(t, listener, state, "after all that")


def in_a_process(t, function):
    """Its exit status: 0 if function() returned."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        except BaseException: # pylint: disable=broad-except
            traceback.print_exc()
        finally:
            os._exit(1)
    status = []

    def has_ended():
        done, code = os.waitpid(pid, os.WNOHANG)
        status.extend([os.waitstatus_to_exitcode(code)] if done else [])
        return done
    t.defer(lambda: status or os.kill(pid, signal.SIGKILL))
    wait_until(has_ended, 40, "the client ends")
    return status[0]


def hand_over_a_childs(listener):
    """In a process of its own: the userfaultfd of its child, for memory of its own."""
    ours, theirs = socket.socketpair()
    memory = Memory(None, IMAGE_BYTES)
    if os.fork() == 0: # a copy of it, at the same address
        socket.send_fds(theirs, [b"x"], [new_userfaultfd(None)])
    else:
        fd = socket.recv_fds(ours, 1, 1)[1][0]
        connection = listener.connect()
        send_handoff(connection, [memory.region()], [fd])
        try:
            connection.recv(1)
        except OSError:
            pass
    while True:
        time.sleep(1)


@case("minivm.hostile_handoff.of-another-process", "kernel", 60)
def of_another_process(t):
    """A userfaultfd that acts on the memory of a process which is not the one that connects: nothing is
    registered with it where the handoff says."""
    image, state = prepare(t)
    listener = Listener(t, image)
    fds = listener.fds()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            hand_over_a_childs(listener)
        finally:
            os._exit(1)
    ended = []
    t.defer(lambda: ended or os.killpg(pid, signal.SIGKILL))
    wait_until(lambda: listener.of_type("error"), 20, "it is refused")
    error = listener.of_type("error")[0]
    t.check(error["exit_code"] == 10 and "not registered" in error["message"], error)
    check_serves(t, listener, state, "beside it")
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    ended.append(True)
    settle(t, listener, fds)
    check_serves(t, listener, state, "after it")


def talk_on(t, listener, raw):
    """In a process of its own: what follows a good handoff."""
    memory = Memory(None, IMAGE_BYTES)
    first, other = listener.connect(), listener.connect()
    send_handoff(first, [memory.region()], [memory.fd])
    wait_until(lambda: listener.of_type("running"), 20, "it is served")
    first.sendall(b"garbage")
    wait_until(lambda: listener.of_type("error"), 20, "an error for what follows")
    send_handoff(other, [memory.region()], [memory.fd])
    told = lambda: len(listener.of_type("running") + listener.of_type("error")) # noqa: E731
    wait_until(lambda: told() > 2, 20, "a word on the same memory once more")
    with open(raw, "rb") as f:
        t.check(memory.read() == f.read(), "memory is not what the image holds")


@case("minivm.hostile_handoff.again", "kernel", 60)
def again(t):
    """What follows a good handoff: garbage on its connection, the same memory once more. It is served on, with
    the right content; and nobody else notices."""
    image, state = prepare(t)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    fds = listener.fds()
    t.equal(in_a_process(t, lambda: talk_on(t, listener, t.path("raw"))), 0, "the client's status")
    settle(t, listener, fds)
    t.equal(listener.of_type("error")[0]["exit_code"], 10, "garbage")
    check_serves(t, listener, state, "after it")


def flood(memory):
    """Gives pages back as fast as it can."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        for offset in range(0, memory.length, PAGE):
            memory.give_back(offset)


def steal(memory):
    """Reads the events itself."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        try:
            os.read(memory.fd, 3200)
        except BlockingIOError:
            time.sleep(0.001)


AFTERWARDS = {
    "unmap": Memory.unmap,
    "unregister": Memory.unregister,
    "exec": lambda memory: os.execvp("sleep", ["sleep", "0.5"]),
    "flood": flood,
    "steal": steal,
}


def misbehave(listener, n_running, act):
    memory = Memory(None, IMAGE_BYTES)
    connection = listener.connect()
    send_handoff(connection, [memory.region()], [memory.fd])
    wait_until(lambda: len(listener.of_type("running")) > n_running, 20, "it is served")
    act(memory)
    time.sleep(0.2)


@case("minivm.hostile_handoff.afterwards", "kernel", 60)
def afterwards(t):
    """Clients that are served, and then take their memory away, become another program, flood their server
    with events or read them in its place. Their sessions end with them, the next VM is served right."""
    image, state = prepare(t)
    for options in ((), ("--bwlimit", "2M")):
        listener = Listener(t, image, *options)
        fds = listener.fds()
        for name, act in AFTERWARDS.items():
            running = len(listener.of_type("running"))
            t.equal(in_a_process(t, lambda n=running, a=act: misbehave(listener, n, a)), 0,
                    f"{name}: the client's status")
            settle(t, listener, fds)
            check_serves(t, listener, state, f"after {name}")
            wait_until(lambda: not listener.children(), 20, "that VM's processes end")
        t.say(f"{listener.of_type('error')}")
        t.equal(listener.end(), 0, "exit status")


@case("minivm.hostile_handoff.slow", "kernel", 60)
def slow(t):
    """Clients that say nothing, or a byte at a time: nobody waits for them, and they get no more
    than their time."""
    image, state = prepare(t)
    listener = Listener(t, image, "--timeout", "4s")
    fds = listener.fds()
    silent = [listener.connect(timeout=20) for _ in range(20)]
    slow_one, good = listener.connect(), Memory(t, IMAGE_BYTES)
    began = time.monotonic()
    send_handoff(slow_one, b"[", [good.fd])
    check_serves(t, listener, state, "beside silent clients")
    t.check(time.monotonic() - began < 3.5, "a good VM has waited for others")
    ended = None
    while time.monotonic() - began < 10 and not ended:
        try:
            slow_one.sendall(b" ")
        except (BrokenPipeError, ConnectionResetError):
            ended = time.monotonic() - began
        time.sleep(0.2)
    t.check(ended and 3 < ended < 8, f"a slow client was given {ended} s")
    for connection in silent:
        t.equal(connection.recv(1), b"", "a silent client")
        connection.close()
    errors = listener.of_type("error")
    t.equal({e["exit_code"] for e in errors}, {17}, f"what was said of them: {errors[:2]}")
    settle(t, listener, fds)
    check_serves(t, listener, state, "after them")


@case("minivm.hostile_handoff.gone", "kernel", 60)
def gone(t):
    """Clients that connect and go, by the hundred, some of them with half a message sent."""
    image, state = prepare(t)
    listener = Listener(t, image)
    fds = listener.fds()
    good = Memory(t, IMAGE_BYTES)
    for i in range(200):
        connection = listener.connect()
        if i % 2:
            send_handoff(connection, b'[{"base_host_virt_addr": ', [good.fd] if i % 4 == 1 else [])
        connection.close()
        if i % 50 == 20:
            check_serves(t, listener, state, f"beside {i} that went")
    wait_until(lambda: len(listener.of_type("error")) >= 100, 20, "it has come to all of them")
    settle(t, listener, fds)
    said = len(listener.of_type("error"))
    t.equal(said, 100, "errors: of those that had begun, and of nobody else")
    check_serves(t, listener, state, "after them")
    t.equal(listener.end(), 0, "exit status")


if __name__ == "__main__":
    main()
