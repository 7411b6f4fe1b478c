#!/usr/bin/python3
"""`vmsnap restore --listen` of an image that is damaged: who touches that waits, or meets poison, and nobody else."""

import hashlib
import os
import resource
import shutil
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, open_files, wait_until  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import PAGE  # noqa: E402
from rawvm import CLUSTER, MIB, RawVm, check_content, random_memory  # noqa: E402
from vmsnap import start_vmsnap, vmsnap  # noqa: E402

try:
    from imagefile import damage_cluster, stored_clusters
except ImportError: # no python3-xxhash
    damage_cluster = None


def resume(t, vm, *args):
    return start_vmsnap(t, "restore", "--resume", str(vm.pid), *args)


def readable(pid, at, page):
    with open(f"/proc/{pid}/mem", "rb", 0) as f:
        try:
            return len(os.pread(f.fileno(), PAGE, at + page * PAGE)) == PAGE
        except OSError:
            return False


def damaged_memory(t):
    """Memory, its image, a copy of that which is damaged, and which of its clusters is."""
    t.need(damage_cluster, "no xxhash module for Python")
    data, image = random_memory(t, 4 * MIB)
    bad = image + ".bad"
    shutil.copyfile(image, bad)
    with open(image, "rb") as f:
        cluster = sorted(stored_clusters(f.read()))[40]
    damage_cluster(bad, cluster)
    return data, image, bad, cluster


@case("minivm.listen.damage", "kernel", 60)
def damage(t):
    """stop: who touches it waits, until another copy of the image comes; poison: SIGBUS there, and nowhere else."""
    data, image, bad, cluster = damaged_memory(t)
    listener = Listener(t, bad)
    vms = [RawVm(t, 4 * MIB), RawVm(t, 4 * MIB)]
    for vm in vms:
        vm.hand_over(listener.path)
        error = listener.wait_for("error", n=1 + vms.index(vm))
        t.check(f"0x{cluster * CLUSTER:x}" in error["message"], f"{error}")
        t.equal(vm.digest(0, cluster * CLUSTER), hashlib.sha256(data[:cluster * CLUSTER]).hexdigest(), "before it")
        vm.begin("digest", cluster * CLUSTER, PAGE)
        t.check(not vm.is_done(0.3), "it waits at the damage")
    by_hand = resume(t, vms[0], image)
    t.check(vms[0].is_done(10), "goes on with a sound copy")
    vms[0].end()
    check_content(t, vms[0], data, "with a sound copy")
    t.equal(by_hand.wait(10), 0, "--resume with a copy")
    t.check(not vms[1].is_done(0.1), "the other one waits as before")
    listener = Listener(t, bad, "--on-damage", "poison")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    summary = listener.wait_for("summary", vm.pid)
    t.equal((summary["pages_poisoned"], summary["complete_ns"] is None), (4, False), f"{summary}")
    for page in range(cluster * 4 - 4, cluster * 4 + 8):
        t.equal(readable(vm.pid, vm.at(), page), page // 4 != cluster, f"page {page} can be read")
    poison_untold(t, bad, data, cluster * CLUSTER)


def poison_untold(t, image, data, at):
    """Poison that is given back, and the VMM does not tell: zeros."""
    listener = Listener(t, image, "--on-damage", "poison", "--bwlimit", "1M")
    vm = RawVm(t, len(data))
    vm.hand_over(listener.path, features=0)
    listener.wait_for("error")
    time.sleep(0.05)
    vm.discard(at, CLUSTER)
    vm.begin("digest", at, CLUSTER)
    t.check(vm.is_done(1.5), "it waits until all is in")
    t.equal(vm.end(), hashlib.sha256(bytes(CLUSTER)).hexdigest(), "poison that was given back")
    check_content(t, vm, data, "poison that was given back", zero=[(at, CLUSTER)])


@case("minivm.listen.asked-in-vain", "kernel", 40)
def asked_in_vain(t):
    """Who asks for a guest vanishes, and the server that gave it up can't serve it any more: another one does."""
    data, image, bad, cluster = damaged_memory(t)
    listener = Listener(t, bad)
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("error")
    vm.begin("digest", cluster * CLUSTER, PAGE)
    first, = listener.servers()
    wait_until(lambda: any("vmsnap-restore" in link for link in open_files(vm.pid)), 5, "it has the record")
    resource.prlimit(first, resource.RLIMIT_NOFILE, (3, 3)) # no descriptor more
    vain = vmsnap(t, "restore", "--resume", str(vm.pid), image,
                  hooks={"kill_at": "asked-for-guest", "pause_log": t.path("log"), "break": "not-supervised"})
    t.equal(vain.code, -signal.SIGKILL, f"killed: {vain.text()}")
    listener.wait_for("running", vm.pid, n=2)
    t.check(listener.servers() and first not in listener.servers(), "another server")
    by_hand = resume(t, vm, image)
    t.check(vm.is_done(10), "goes on with a sound copy")
    vm.end()
    check_content(t, vm, data, "with a sound copy")
    t.equal(by_hand.wait(10), 0, "--resume with a copy")


if __name__ == "__main__":
    main()
