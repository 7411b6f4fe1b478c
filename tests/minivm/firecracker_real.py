#!/usr/bin/python3
"""A real Firecracker, where there is one in PATH (and KVM): booted, saved, and started again from its files
with vmsnap as its page-fault backend. Where there is none the case is skipped and says so."""

import lzma
import os
import shutil
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, end_process, main, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from guest import Console, guest_file  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import kvm_works  # noqa: E402
from vmsnap import vmsnap  # noqa: E402

BOOT_ARGS = ("console=ttyS0 reboot=k panic=1 pci=off quiet no_timer_check vmsnap.work=selfcheck "
             "vmsnap.mib=64 vmsnap.rate=2000")
MEMORY_MIB = 256
LZ4_BLOCK = 8 << 20


def lz4_block(data):
    """One block of LZ4, as lz4.org's block format describes it."""
    out, at, end = bytearray(), 0, len(data)

    def length(first, at):
        more = 255 if first == 15 else 0
        while more == 255:
            more = data[at]
            first += more
            at += 1
        return first, at
    while at < end:
        token = data[at]
        literals, at = length(token >> 4, at + 1)
        out += data[at:at + literals]
        at += literals
        if at >= end:
            break
        back = data[at] | data[at + 1] << 8
        count, at = length(token & 15, at + 2)
        count += 4
        while count > 0: # a match may overlap what it makes
            piece = out[-back:len(out) - back + count if count < back else None]
            out += piece
            count -= len(piece)
    return out


def unpack_kernel(path):
    """The ELF image in a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length), which
    is all that most versions of Firecracker load. None: packed in a way that is not known here."""
    with open(path, "rb") as f:
        data = f.read()
    start, length = struct.unpack_from("<II", data, 0x248)
    start += ((data[0x1f1] or 4) + 1) * 512
    payload = data[start:start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    if not payload.startswith(b"\x02\x21\x4c\x18"): # LZ4's legacy frame
        return None
    out, at = bytearray(), 4
    while at + 4 < len(payload): # the last 4 bytes are the size of it all
        size = struct.unpack_from("<I", payload, at)[0]
        out += lz4_block(payload[at + 4:at + 4 + size])
        at += 4 + size
    return bytes(out)


class Firecracker:
    """A process of it, its API and its console, which is its standard output."""

    def __init__(self, t):
        path = t.path(t.unique("fc") + ".sock")
        self.console = Console(path + ".out")
        with open(self.console.path, "wb") as out:
            self.process = t.spawn(["firecracker", "--api-sock", path, "--id", "vmsnap-test"],
                                   stdout=out, stderr=out)
        wait_until(lambda: os.path.exists(path), 10, "Firecracker listens")
        self.api = Api(t, path, timeout=60)
        self.t = t

    def ask(self, method, path, **body):
        status, answer = self.api.request(method, path, body)
        self.t.equal(status, 204, f"{method} {path}: {answer}")

    def wait_for_rounds(self, n, since=0):
        """Until the guest has checked all of its memory n times more."""
        def rounds():
            found = self.console.counters("SELFCHECK", since)
            return found and found[-1]["rounds"] >= found[0]["rounds"] + n
        wait_until(rounds, 90, f"{n} rounds of the guest's own check")
        self.t.equal(self.console.errors(), [], "what the guest says is wrong")


@case("minivm.firecracker.real", "kvm", 300)
def real(t):
    t.need(shutil.which("firecracker"), "there is no firecracker in PATH")
    t.need(kvm_works(), "no /dev/kvm here")
    t.need(os.path.exists(guest_file("vmlinuz")), "the guest is not built: tools/guest.sh")
    kernel = unpack_kernel(guest_file("vmlinuz"))
    t.need(kernel, "the kernel is packed in a way that this test does not know")
    with open(t.path("vmlinux"), "wb") as f:
        f.write(kernel)
    vm = Firecracker(t)
    vm.ask("PUT", "/boot-source", kernel_image_path=t.path("vmlinux"),
           initrd_path=guest_file("initramfs.gz"), boot_args=BOOT_ARGS)
    vm.ask("PUT", "/machine-config", vcpu_count=1, mem_size_mib=MEMORY_MIB)
    vm.ask("PUT", "/actions", action_type="InstanceStart")
    vm.wait_for_rounds(2)
    state, memory, image = t.path("vm.state"), t.path("vm.mem"), t.path("image")
    vm.ask("PATCH", "/vm", state="Paused")
    vm.ask("PUT", "/snapshot/create", snapshot_type="Full", snapshot_path=state, mem_file_path=memory)
    end_process(vm.process)
    made = vmsnap(t, "import", "firecracker", "--vmstate", state, memory, image)
    t.equal(made.code, 0, made.text())
    os.unlink(memory)
    listener = Listener(t, image)
    for _ in range(2): # two of them from one image
        clone = Firecracker(t)
        clone.ask("PUT", "/snapshot/load", snapshot_path=state, resume_vm=True,
                  mem_backend={"backend_type": "Uffd", "backend_path": listener.path})
        clone.wait_for_rounds(3)
        t.equal(clone.api.get("/")["state"], "Running", "state")
    t.equal(listener.of_type("error"), [], listener.text())


if __name__ == "__main__":
    main()
