#!/usr/bin/python3
"""minivm as Firecracker's client: the files of a snapshot, the page-fault handoff, what the guest sees
when a handler of one page per fault serves it."""

import fcntl
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, tool, wait_until  # noqa: E402
from firecracker import Backend, PageServer  # noqa: E402
from minivm import (PAGE, MiniVm, end_and_wait, judge_memory, kvm_works,  # noqa: E402
                    need_huge_pages)

SIZES = ("--memory", "16M", "--populate", "12M", "--cpus", "2")
HUGE = 2 << 20
KEYS = {
    "page_size": ("base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"),
    "page_size_kib": ("base_host_virt_addr", "size", "offset", "page_size_kib"),
    "none": ("base_host_virt_addr", "size", "offset"),
}
EVENT_REMOVE_FEATURE = 1 << 3


def saved(t, *options, accel="threads"):
    """The two files of a VM that has worked for a while: (state, memory)."""
    vm = MiniVm(t, *SIZES, *options, accel=accel)
    vm.wait_for_writes(3000)
    vm.stop()
    files = vm.save_files()
    vm.cont()
    vm.wait_for_writes(100) # it goes on beside its copies
    end_and_wait(vm)
    return files


def fdinfo(pid, fd):
    """{field: text} of a descriptor."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as f:
        return dict(line.rstrip("\n").split(":\t", 1) for line in f)


def userfaultfds(pid):
    """The numbers of those that a process has."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}") == "anon_inode:[userfaultfd]":
            found.append(int(fd))
    return found


def smaps(pid):
    """[(start, end, {field: text})] of a process."""
    maps = []
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as f:
        for line in f:
            name, _, value = line.partition(":")
            if name[0].isupper() and " " not in name:
                maps[-1][2][name] = value.strip()
            else:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                maps.append((start, end, {}))
    return maps


def start(t, state, backend, *options):
    """A minivm that hands its memory over: its process."""
    return t.spawn([tool("minivm"), "--vmstate", state, "--uffd-backend", backend.path, *options])


def served(t, state, memory, *options, resume=True):
    """(a minivm whose memory comes from a handler, the handler)."""
    backend = Backend(t)
    vm = MiniVm(t, "--vmstate", state, "--uffd-backend", backend.path, *options,
                serve=lambda: PageServer(t, backend.accept(), memory))
    return vm, vm.server


def check_works(t, vm, what):
    vm.wait_for_writes(3000)
    vm.stop()
    vm.check_right(what)
    vm.cont()


@case("minivm.handoff.files", "kernel", 30)
def files(t):
    """A memory file is RAM, one region behind the other; the state goes with it."""
    for regions in ("1", "3"):
        state, memory = saved(t, "--regions", regions)
        with open(memory, "rb") as f:
            data = f.read()
        t.equal(len(data), 16 << 20, "bytes of memory")
        t.equal(judge_memory(data), [], "the file is one instant")
        vm = MiniVm(t, "--vmstate", state, "--memory-file", memory)
        t.equal(len(vm.description["memory"]), int(regions), "regions")
        t.equal(vm.description["cpus"], 2, "vCPUs")
        check_works(t, vm, f"{regions} regions from the file")
        with open(memory, "rb") as f:
            t.check(f.read() == data, "the file is not written to")


@case("minivm.handoff.overwritten", "kernel", 30)
def overwritten(t):
    """A VM's memory file is written over in place while it is mapped; one of another size anew."""
    state, memory = saved(t)
    vm = MiniVm(t, "--vmstate", state, "--memory-file", memory)
    vm.wait_for_writes(1000)
    vm.stop()
    inode = os.stat(memory).st_ino
    vm.save_files(state, memory)
    vm.check_right("after it was saved over its own file")
    t.equal(os.stat(memory).st_ino, inode, "the file's inode")
    other = t.path("other")
    with open(other, "wb") as f:
        f.write(b"\xff" * (20 << 20))
    vm.save_files(t.path("state-2"), other)
    with open(memory, "rb") as f, open(other, "rb") as g:
        t.check(f.read() == g.read(), "both files are alike")
    end_and_wait(vm)
    check_works(t, MiniVm(t, "--vmstate", state, "--memory-file", memory), "from its second save")


@case("minivm.handoff.message", "kernel", 60)
def message(t):
    """Byte for byte: the array, its keys in order, one descriptor; how memory is registered."""
    state, _ = saved(t, "--regions", "2")
    for form, keys in KEYS.items():
        for old in (False, True):
            backend = Backend(t)
            options = ("--no-remove-events", "--handoff-closes") if old else ()
            process = start(t, state, backend, "--handoff-form", form, *options)
            got = backend.accept()
            t.equal(got.pid, process.pid, "the peer")
            t.equal(len(got.fds), 1, "descriptors")
            t.equal(len(got.ancillary), 1, "control messages")
            t.equal([tuple(r) for r in got.regions], [keys, keys], "keys, in order")
            t.equal([r["offset"] for r in got.regions], [0, 8 << 20], "offsets")
            t.equal({r["size"] for r in got.regions}, {8 << 20}, "sizes")
            t.equal({r[k] for r in got.regions for k in keys[3:]} or {PAGE}, {PAGE}, "page sizes")
            wanted = "[" + ",".join("{" + ",".join(f'"{k}":{r[k]}' for k in keys) + "}"
                                    for r in got.regions) + "]"
            t.equal(got.text.decode(), wanted, "the message")
            check_registered(t, got, 0 if old else EVENT_REMOVE_FEATURE)
            check_connection(t, got, closed=old)
            process.kill()
            process.wait(10)


def check_registered(t, got, feature):
    """One userfaultfd, non-blocking, missing pages only, in all of the regions and nothing else."""
    uffd = got.fds[0]
    t.check(fcntl.fcntl(uffd, fcntl.F_GETFL) & os.O_NONBLOCK, "O_NONBLOCK")
    api, features, _ = fdinfo("self", uffd)["API"].split(":")
    t.equal(api, "aa", "API")
    t.equal(int(features, 16) & 0x7fffffff, feature, "features")
    theirs = userfaultfds(got.pid)
    t.equal(len(theirs), 1, "userfaultfds that the VMM keeps")
    flags = int(fdinfo(got.pid, theirs[0])["flags"], 8)
    t.equal(flags & (os.O_CLOEXEC | os.O_NONBLOCK), os.O_CLOEXEC | os.O_NONBLOCK, "flags")
    wait_until(lambda: fdinfo("self", uffd)["pending"] == "1", 10, "the VMM touches a page")
    covered = 0
    for begin, end, fields in smaps(got.pid):
        flags = fields["VmFlags"].split()
        ours = [r for r in got.regions if r["base_host_virt_addr"] < end
                and begin < r["base_host_virt_addr"] + r["size"]]
        t.equal("um" in flags, bool(ours), f"{begin:x}-{end:x} is registered: {flags}")
        if ours:
            t.check("uw" not in flags and "ui" not in flags, f"for missing pages alone: {flags}")
            t.check("nh" not in flags and "hg" not in flags and "nr" in flags,
                    f"without advice, without reserve: {flags}")
            t.equal(fields["Rss"], "0 kB", "memory that is there")
            covered += end - begin
    t.equal(covered, sum(r["size"] for r in got.regions), "bytes registered")


def check_connection(t, got, closed):
    """Nothing more comes; the end of it only from a VMM that closes it."""
    got.connection.settimeout(0.2)
    try:
        t.equal((got.connection.recv(1), closed), (b"", True), "the connection")
    except TimeoutError:
        t.check(not closed, "the connection is closed")


@case("minivm.handoff.early-empty", "kernel", 30)
def early_empty(t):
    state, memory = saved(t)
    backend = Backend(t)
    process = start(t, state, backend, "--handoff-early-empty")
    first, second = backend.accept(), backend.accept()
    t.equal((first.text, len(first.fds), first.pid), (b"", 0, process.pid), "the first one")
    t.equal(len(second.fds), 1, "descriptors of the second one")
    server = PageServer(t, second, memory)
    wait_until(lambda: server.faults > 100, 10, "the guest runs")


def serves(t, accel, regions, *options):
    t.need(accel == "threads" or kvm_works(), "no /dev/kvm here")
    state, memory = saved(t, "--regions", regions, accel=accel)
    vm, server = served(t, state, memory, *options)
    t.equal(vm.description["accelerator"], accel, "accelerator")
    check_works(t, vm, "served")
    t.equal(server.error, None, "the handler")
    t.check(server.faults >= 3000, f"{server.faults} faults for 3,000 pages of 4,096, checked whole")
    vm.stop()
    again = vm.save_files()
    end_and_wait(vm)
    check_works(t, MiniVm(t, "--vmstate", again[0], "--memory-file", again[1]), "saved again")


@case("minivm.handoff.served.threads", "kernel", 40)
def served_threads(t):
    serves(t, "threads", "1")
    serves(t, "threads", "3", "--handoff-form", "none")


@case("minivm.handoff.served.kvm", "kvm", 40)
def served_kvm(t):
    serves(t, "kvm", "1", "--handoff-form", "page_size_kib")
    serves(t, "kvm", "2")


@case("minivm.handoff.served.huge", "kernel", 40, lock="hugepages")
def served_huge(t):
    """Private huge pages of 2 MiB."""
    need_huge_pages(t, 24)
    state, memory = saved(t, "--regions", "2", "--hugetlb")
    vm, server = served(t, state, memory, "--hugetlb")
    check_works(t, vm, "served")
    t.equal(server.page, HUGE, "page size in the message")
    t.equal((server.error, server.faults >= 8), (None, True), f"{server.faults} faults")


@case("minivm.handoff.waits", "kernel", 30)
def waits(t):
    """Nobody serves any more: the guest waits at the next page, also when the handler's copies of
    the userfaultfd and the connection are gone, and reads no zeros."""
    state, memory = saved(t, "--rate", "0")
    vm, server = served(t, state, memory)
    vm.wait_for_writes(200)
    server.stop()
    before = server.faults
    wait_until(lambda: fdinfo("self", server.uffd)["pending"] != "0", 10, "a fault that waits")
    t.equal(server.faults, before, "faults served")
    t.equal(vm.stats()["wrong_pages"], 0, "wrong pages that the guest found")


@case("minivm.handoff.refused", "kernel", 30)
def refused(t):
    state, memory = saved(t)
    torn = t.path("torn")
    with open(state, "rb") as f, open(torn, "wb") as g:
        g.write(f.read()[:40])
    short = t.path("short")
    with open(short, "wb") as f:
        f.write(bytes(100))
    nobody = t.path("nobody.sock")
    for code, words, options in (
            (1, "cannot hand memory over", ("--vmstate", state, "--uffd-backend", nobody)),
            (1, "cannot read", ("--vmstate", torn, "--memory-file", memory)),
            (1, "no minivm at all", ("--vmstate", short, "--memory-file", memory)),
            (1, "No such file", ("--vmstate", t.path("none"), "--memory-file", memory)),
            (1, "No such file", ("--vmstate", state, "--memory-file", t.path("none"))),
            (1, "No data", ("--vmstate", state, "--memory-file", short)),
            (2, "private", ("--vmstate", state, "--memory-file", memory, "--kind", "memfd")),
            (2, "needs", ("--vmstate", state)),
            (2, "needs", ("--uffd-backend", nobody)),
            (2, "handoff-form", ("--handoff-form", "pages")),
            (2, "--regions", ("--regions", "9")),
            (2, "--regions", ("--regions", "4", "--memory", "3M"))):
        result = t.run([tool("minivm"), *options])
        t.equal(result.returncode, code, f"{options}: {result.stderr}")
        t.check(words in result.stderr, f"'{words}' is in: {result.stderr}")


if __name__ == "__main__":
    main()
