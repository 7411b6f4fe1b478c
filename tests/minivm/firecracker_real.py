#!/usr/bin/python3
"""A real Firecracker, where there is one in PATH (and KVM), with vmsnap as its page-fault backend, and taken by
vmsnap over its API. Where there is none the cases are skipped and say so. Its guest is tests/guest/fc_kernel.c."""

import os
import re
import shutil
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, end_process, main, open_files, tool, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from guest import Console  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import kvm_works, need_huge_pages  # noqa: E402
from vmsnap import pause_log, vmsnap  # noqa: E402

MEMORY_MIB = 256
BALLOON = {"amount_mib": 0, "deflate_on_oom": False}


class Firecracker:
    """A process of it, its API and its console, which is its standard output."""

    def __init__(self, t):
        self.t = t
        self.socket = t.path(t.unique("fc") + ".sock")
        self.console = Console(self.socket + ".out")
        with open(self.console.path, "wb") as out:
            self.process = t.spawn(["firecracker", "--api-sock", self.socket, "--id", "vmsnap-test"],
                                   stdout=out, stderr=out)
        self.pid = self.process.pid
        self.api = wait_until(self._connect, 10, "Firecracker listens")

    def _connect(self):
        try:
            return Api(self.t, self.socket, timeout=60)
        except OSError:
            return None

    def ask(self, method, path, **body):
        status, answer = self.api.request(method, path, body)
        self.t.equal(status, 204, f"{method} {path}: {answer}")

    def boot(self, balloon=None, **machine):
        self.ask("PUT", "/boot-source", kernel_image_path=tool("tests", "guest", "fc_kernel"), boot_args="")
        self.ask("PUT", "/machine-config", **{"vcpu_count": 1, "mem_size_mib": MEMORY_MIB, **machine})
        if balloon:
            self.ask("PUT", "/balloon", **balloon)
        self.ask("PUT", "/actions", action_type="InstanceStart")
        self.wait_for_rounds(3)
        return self

    def load(self, state, listener):
        self.ask("PUT", "/snapshot/load", snapshot_path=state, resume_vm=True,
                 mem_backend={"backend_type": "Uffd", "backend_path": listener.path})
        return self

    def rounds(self):
        return self.console.counters("SELFCHECK")

    def wait_for_rounds(self, n):
        """Until the guest has checked all of its memory n times more, whole lines seen."""
        seen = len(self.rounds())
        wait_until(lambda: len(self.rounds()) > seen + n or self.console.errors(), 60,
                   f"{n} rounds of the guest's own check")
        self.t.equal(self.console.errors(), [], "what the guest says is wrong")
        return self

    def save(self):
        """By its own PUT /snapshot/create, and it is ended: (state file, image)."""
        t, stem = self.t, self.t.unique("vm")
        state, memory, image = (t.path(stem + end) for end in (".state", ".mem", ".vmsnap"))
        self.ask("PATCH", "/vm", state="Paused")
        self.ask("PUT", "/snapshot/create", snapshot_type="Full", snapshot_path=state, mem_file_path=memory)
        end_process(self.process)
        made = vmsnap(t, "import", "firecracker", "--vmstate", state, memory, image)
        t.equal(made.code, 0, made.text())
        os.unlink(memory)
        return state, image

    def take(self, *maps):
        """By vmsnap, while it runs on: (state file, image)."""
        t, stem = self.t, self.t.unique("taken")
        state, image = t.path(stem + ".state"), t.path(stem + ".vmsnap")
        checked = vmsnap(t, "check", "--api", self.socket, *maps)
        t.equal(checked.code, 0, f"check: {checked.text()}")
        taken = vmsnap(t, "snapshot", "--api", self.socket, "--vmstate", state, *maps, image)
        t.equal(taken.code, 0, f"snapshot: {taken.text()}")
        t.equal(taken.summary["warnings"], [], "warnings")
        t.equal(self.api.get("/")["state"], "Running", "state after a snapshot")
        self.wait_for_rounds(2)
        return state, image


def need_firecracker(t):
    t.need(shutil.which("firecracker"), "there is no firecracker in PATH")
    t.need(kvm_works(), "no /dev/kvm here")


def check_served(t, vm, listener):
    """All of its memory is in, and nothing of vmsnap is left in the way."""
    vm.wait_for_rounds(3)
    listener.wait_for("summary", vm.pid)
    t.equal(listener.of_type("error"), [], listener.text())
    t.check(not any("memfd:vmsnap" in link for link in open_files(vm.pid)), "the record is gone")
    t.equal(vm.api.get("/")["state"], "Running", "state")


def check_gives(t, vm):
    """It goes on giving pages to its balloon."""
    rounds = vm.wait_for_rounds(5).rounds()
    t.check(rounds[-1]["given"] >= rounds[-5]["given"] + 256, f"it gives pages away: {rounds[-1]}")


def kill_all(listener):
    for pid in [listener.pid, *descendants(listener.pid)]:
        os.kill(pid, signal.SIGKILL)


@case("minivm.firecracker.real", "kvm", 120)
def real(t):
    """Booted, saved, and started twice from its files."""
    need_firecracker(t)
    state, image = Firecracker(t).boot().save()
    listener = Listener(t, image)
    clones = [Firecracker(t).load(state, listener) for _ in range(2)]
    for clone in clones:
        check_served(t, clone, listener)


@case("minivm.firecracker.real-balloon", "kvm", 120)
def real_balloon(t):
    """What the guest gives away while its memory comes in reads as zeros, and its neighbours do not; then taken
    over by hand. Up to 1.10 a restored Firecracker maps new memory there, of which there is no event."""
    need_firecracker(t)
    state, image = Firecracker(t).boot(balloon=BALLOON).save()
    listener = Listener(t, image, "--bwlimit", "16M")
    vm = Firecracker(t).load(state, listener)
    check_served(t, vm, listener)
    check_gives(t, vm)
    end_process(vm.process)
    listener = Listener(t, image, "--no-fill")
    vm = Firecracker(t).load(state, listener)
    check_gives(t, vm)
    kill_all(listener)
    resumed = vmsnap(t, "restore", "--resume", str(vm.pid))
    t.equal(resumed.code, 0, resumed.text())
    check_gives(t, vm)


@case("minivm.firecracker.real-huge", "kvm", 120, lock="hugepages")
def real_huge(t):
    """Huge pages of 2 MiB."""
    need_firecracker(t)
    need_huge_pages(t, MEMORY_MIB // 2 + 4)
    state, image = Firecracker(t).boot(huge_pages="2M").save()
    listener = Listener(t, image)
    clone = Firecracker(t).load(state, listener)
    check_served(t, clone, listener)
    clone.take()


@case("minivm.firecracker.real-resume", "kvm", 120)
def real_resume(t):
    """All of vmsnap killed: the guest waits, goes on when it is taken over by hand, and all is right."""
    need_firecracker(t)
    state, image = Firecracker(t).boot().save()
    log, reached, _ = pause_log(t)
    listener = Listener(t, image, "--no-fill", hooks={"pause_at": "serve-installed:20", "pause_log": log})
    clone = Firecracker(t).load(state, listener)
    reached("serve-installed")
    kill_all(listener)
    t.equal(clone.rounds(), [], "the guest waits")
    resumed = vmsnap(t, "restore", "--resume", str(clone.pid))
    t.equal(resumed.code, 0, resumed.text())
    clone.wait_for_rounds(3)
    t.check(not any("memfd:vmsnap" in link for link in open_files(clone.pid)), "the record is gone")


@case("minivm.firecracker.real-again", "kvm", 120, lock="firecracker-places")
def real_again(t):
    """Taken by vmsnap while it runs, served to another, and taken from that again."""
    need_firecracker(t)
    vm = Firecracker(t).boot()
    for _ in range(3):
        state, image = vm.take()
        end_process(vm.process)
        listener = Listener(t, image)
        vm = Firecracker(t).load(state, listener)
        check_served(t, vm, listener)


@case("minivm.firecracker.real-regions", "kvm", 120, lock="firecracker-places")
def real_regions(t):
    """A VM with memory above 4 GiB too: joined, its regions are named as the hint says."""
    need_firecracker(t)
    vm = Firecracker(t).boot(mem_size_mib=4096)
    told = vmsnap(t, "check", "--api", vm.socket)
    reason = next(o for o in told.of_type("item") if o["name"] == "memory")["reason"]
    maps = re.findall(r"--map 0x\S+:0x\S+", reason)
    t.equal(len(maps), 2, f"those of this version alone: {reason}")
    state, image = vm.take(*" ".join(maps).split())
    end_process(vm.process)
    listener = Listener(t, image)
    check_served(t, Firecracker(t).load(state, listener), listener)


if __name__ == "__main__":
    main()
