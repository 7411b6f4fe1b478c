#!/usr/bin/python3
"""`vmsnap restore --listen`: VMs that hand their memory over as Firecracker does; each gets every byte right,
whatever it gives back meanwhile. What is refused, what is killed, how it ends: listen_*.py."""

import os
import random
import stat
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from listener import Listener, check_left  # noqa: E402
from minivm import PAGE, MiniVm, end_and_wait, kvm_works, need_huge_pages  # noqa: E402
from rawvm import CLUSTER, HUGE, MIB, RawVm, check_content, random_memory  # noqa: E402
from vmsnap import import_memory  # noqa: E402

SIZES = ("--memory", "24M", "--populate", "16M", "--cpus", "2")


def saved(t, *options, accel="threads", writes=4000):
    """(state, memory file, image) of a VM that has worked for a while."""
    vm = MiniVm(t, *SIZES, *options, accel=accel)
    vm.wait_for_writes(writes)
    vm.stop()
    state, memory = vm.save_files()
    end_and_wait(vm)
    return state, memory, import_memory(t, memory)


def guest(t, state, listener, *options):
    return MiniVm(t, "--vmstate", state, "--uffd-backend", listener.path, *options)


def check_guest(t, vm, what, writes=500):
    """It goes on, and all of its memory is right, for itself and for its VMM."""
    vm.wait_for_writes(writes)
    vm.stop()
    vm.check_right(what)
    vm.cont()


# ---- served

@case("minivm.listen.served", "kernel", 60)
def served(t):
    """One VM after the other, from versions old and new, each to its end."""
    state, _, image = saved(t, "--regions", "2")
    listener = Listener(t, image)
    t.equal(stat.S_IMODE(os.stat(listener.path).st_mode), 0o600, "mode of the socket")
    for options in ((), ("--handoff-form", "page_size_kib", "--handoff-closes"),
                    ("--handoff-form", "none", "--handoff-closes", "--no-remove-events"),
                    ("--handoff-early-empty",)):
        vm = guest(t, state, listener, *options)
        check_guest(t, vm, f"{options}")
        listener.wait_for("running", vm.pid)
        summary = listener.wait_for("summary", vm.pid)
        t.check(summary["complete_ns"] and summary["demand_faults"], f"{options}: {summary}")
        check_left(t, vm.pid, f"{options}")
        check_guest(t, vm, f"{options}, afterwards")
        end_and_wait(vm)
        listener.wait_for("exit", vm.pid)
    t.equal(listener.of_type("error"), [], "errors")
    listener.check_served(4)


@case("minivm.listen.many", "kernel", 60)
def many(t):
    """Many VMs of one image at once."""
    state, _, image = saved(t)
    listener = Listener(t, image)
    vms = [guest(t, state, listener) for _ in range(8)]
    for vm in vms:
        check_guest(t, vm, "one of many")
    for vm in vms:
        t.check(listener.wait_for("summary", vm.pid)["complete_ns"], "all memory is in")
        check_left(t, vm.pid, "one of many")
    for vm in vms:
        end_and_wait(vm)
    listener.check_served(8)


@case("minivm.listen.kvm", "kvm", 40)
def kvm(t):
    t.need(kvm_works(), "no /dev/kvm here")
    state, _, image = saved(t, accel="kvm")
    listener = Listener(t, image)
    vm = guest(t, state, listener)
    t.equal(vm.description["accelerator"], "kvm", "accelerator")
    check_guest(t, vm, "KVM")
    listener.wait_for("summary", vm.pid)
    end_and_wait(vm)
    listener.check_served(1)


@case("minivm.listen.no-fill", "kernel", 40)
def no_fill(t):
    """Each page comes when it is touched, and only then; also in pieces, and two VMs on one connection."""
    data, image = random_memory(t, 8 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 8 * MIB)
    vm.hand_over(listener.path, pieces=9)
    check_content(t, vm, data, "on demand")
    vm.kill()
    summary = listener.wait_for("summary", n=1)
    t.equal((summary["pages_filled"], summary["complete_ns"]), (0, None), f"{summary}")
    listener.check_served(1)


@case("minivm.listen.empty-first", "kernel", 40)
def empty_first(t):
    """An empty message before the one that counts; another VM's handoff on the same connection."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path, text="[]", fds=[])
    vm.hand_over(listener.path, again=True)
    check_content(t, vm, data, "after an empty message")
    listener.wait_for("summary", vm.pid)
    vm.discard(0, 4 * MIB) # all is in: it is emptied and registered anew
    vm.hand_over(listener.path, again=True)
    listener.wait_for("summary", vm.pid, n=2)
    check_content(t, vm, data, "handed over once more")
    listener.check_served(2)


@case("minivm.listen.in-a-row", "kernel", 40)
def in_a_row(t):
    """Four handoffs over one connection, none of which waits for the one before; what follows is refused."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    for _ in range(3):
        vm.add_memory()
        vm.hand_over(listener.path, again=True)
    vm.hand_over(listener.path, again=True, text="and so on", fds=[])
    for n in range(4):
        vm.next_memory()
        check_content(t, vm, data, f"{n + 1} of four")
    listener.wait_for("summary", vm.pid, n=4)
    error = listener.wait_for("error")
    t.check(vm.closed(5), f"the connection is closed after {error}")
    check_left(t, vm.pid, "four in a row")
    listener.check_served(4, refused=1)


@case("minivm.listen.huge", "kernel", 60, lock="hugepages")
def huge(t):
    """Huge pages of 2 MiB: a guest, and one that gives a page back."""
    need_huge_pages(t, 20)
    state, _, image = saved(t, "--hugetlb")
    listener = Listener(t, image)
    vm = guest(t, state, listener, "--hugetlb")
    check_guest(t, vm, "huge pages")
    listener.wait_for("summary", vm.pid)
    check_left(t, vm.pid, "huge pages")
    end_and_wait(vm)
    listener.check_served(1)
    data, image = random_memory(t, 8 * HUGE)
    listener = Listener(t, image, "--bwlimit", "4M")
    vm = RawVm(t, 8 * HUGE, huge=True)
    vm.hand_over(listener.path)
    vm.digest(3 * HUGE, PAGE)
    vm.discard(3 * HUGE, HUGE)
    vm.discard(6 * HUGE, HUGE)
    check_content(t, vm, data, "given back", zero=[(3 * HUGE, HUGE), (6 * HUGE, HUGE)])
    listener.wait_for("summary", vm.pid)
    check_content(t, vm, data, "all in", zero=[(3 * HUGE, HUGE), (6 * HUGE, HUGE)])


# ---- what the guest gives back

@case("minivm.listen.discards", "kernel", 60)
def discards(t):
    """Given back before, while and after it comes in, under load: it stays zero, and nothing else is."""
    size = 32 * MIB
    data, image = random_memory(t, size)
    for features in (("--bwlimit", "64M"), ()):
        listener = Listener(t, image, *features)
        vm = RawVm(t, size)
        chance = random.Random(7)
        places = list(range(0, size // PAGE, 4))
        chance.shuffle(places)
        zero = [(page * PAGE, chance.randint(1, 4) * PAGE) for page in places[:600]]
        vm.hand_over(listener.path)
        vm.discard_all(zero[:300], 0.0005)
        vm.discard_all(zero[300:], 0.0005)
        vm.read_all([chance.randrange(size) for _ in range(2000)])
        vm.join()
        check_content(t, vm, data, "while it comes in", zero)
        summary = listener.wait_for("summary", vm.pid)
        t.check(summary["pages_discarded"] > 0, f"{summary}")
        check_content(t, vm, data, "all in", zero)
        vm.discard(0, 16 * PAGE)
        check_content(t, vm, data, "afterwards", zero + [(0, 16 * PAGE)])
        vm.kill()
        listener.check_served(1)


@case("minivm.listen.discards-untold", "kernel", 40)
def discards_untold(t):
    """A VMM that does not tell what it gives back: zeros, as without vmsnap, never a hang."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path, features=0)
    check_content(t, vm, data, "before")
    vm.discard(MIB, MIB)
    check_content(t, vm, data, "after", zero=[(MIB, MIB)])
    vm.kill()
    listener.check_served(1)


# ---- options

@case("minivm.listen.learn", "kernel", 40)
def learn(t):
    """The first VM learns, the next is brought what it has touched."""
    data, image = random_memory(t, 8 * MIB)
    listener = Listener(t, image, "--learn", "--no-fill")
    first = RawVm(t, 8 * MIB)
    first.hand_over(listener.path)
    for offset in range(0, MIB, CLUSTER):
        first.digest(offset, PAGE)
    first.kill()
    t.check(listener.wait_for("summary", first.pid or None)["clusters_learned"] > 40, "clusters_learned")
    second = RawVm(t, 8 * MIB)
    second.hand_over(listener.path)
    listener.wait_for("running", second.pid)
    time.sleep(0.3)
    check_content(t, second, data, "after learning")
    dead = second.pid
    second.kill()
    summary = listener.wait_for("summary", dead)
    t.check(summary["pages_prefetched"] > 100, f"{summary}")


if __name__ == "__main__":
    main()
