"""QEMU guests for the tests: how they are started, what they say, how they are judged.

A Guest is a stock QEMU with the Linux guest of tools/guest.sh or, with boot="firmware", the one
without an operating system (tests/guest/kvm_boot.S). It has two QMP sockets, `qmp_path` for vmsnap
and one that the test itself uses (`guest.qmp`), and its serial console in a file that is appended
to, so that a guest restored from its recorded command line goes on in the same file.
"""

import gzip
import os
import re
import shutil
import subprocess
import time

from case import Failed, TOP, is_alive, wait_until, where_it_hangs
from qmp import Qmp, QmpGone

MIB = 1 << 20
BOOT_SECONDS = 90 # Linux under TCG takes two seconds on an idle machine
DISK_MAGIC = 0x4b5349444f495643 # VIO_DISK_MAGIC of tests/guest/vio.c


def guest_file(name):
    return os.path.join(os.environ.get("VMSNAP_GUEST") or os.path.join(TOP, "build", "guest"), name)


def initramfs_with(t, root):
    """An initramfs: the guest's own, and behind it what lies below `root`."""
    names = [os.path.relpath(os.path.join(at, name), root)
             for at, folders, files in os.walk(root) for name in folders + files]
    archive = subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, check=True,
                             input="\n".join(sorted(names)).encode(), stdout=subprocess.PIPE,
                             timeout=60).stdout
    path = t.path("initrd")
    with open(path, "wb") as f, open(guest_file("initramfs.gz"), "rb") as first:
        f.write(first.read() + gzip.compress(archive, 1))
    return path


def parse_fields(line):
    """"SELFCHECK 0 up=1.5 errors=0" -> {"kind": "SELFCHECK", "owner": 0, "up": 1.5, ...}"""
    words = line.split()
    fields = {"kind": words[0], "owner": 0}
    for word in words[1:]:
        name, equals, value = word.partition("=")
        if equals:
            try:
                fields[name] = float(value) if "." in value else int(value)
            except ValueError:
                fields[name] = value
        elif word.isdigit():
            fields["owner"] = int(word)
    return fields


class Console:
    """What a guest wrote to its serial console, from `start` bytes into the file on."""

    def __init__(self, path, start=0):
        self.path = path
        self.start = start

    def size(self):
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0

    def text(self, since=None):
        try:
            with open(self.path, "rb") as f:
                f.seek(self.start if since is None else since)
                return f.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def lines(self, since=None):
        """Whole lines only."""
        return [line.rstrip("\r") for line in self.text(since).split("\n")[:-1]]

    def counters(self, kind, since=None, owner=None):
        """The parsed lines of one program that carry counters."""
        found = [parse_fields(line) for line in self.lines(since)
                 if line.startswith(kind + " ") and " up=" in line]
        return [f for f in found if owner is None or f.get("owner") == owner]

    def errors(self, since=None):
        """Every line that says something is wrong in the guest."""
        bad = re.compile(r"ERROR|Kernel panic|BUG:|Oops|segfault|general protection|^E [0-9a-f]{8}|"
                         r"\berrors=[1-9]|soft lockup|rcu.*stall|EXT4-fs error")
        return [line for line in self.lines(since) if bad.search(line)]


class Guest:
    """One QEMU. Options that the constructor doesn't know go to the guest's command line as
    vmsnap.NAME=VALUE (tests/guest/init lists them)."""

    def __init__(self, t, name="vm", memory_mib=512, machine="pc", cpus=1, accel="tcg", ram="anon",
                 boot="linux", work="selfcheck,vio", user=None, sandbox=False, extra=(),
                 boot_pages=4096, devices=("rng", "disk"), thp=True, initrd=None,
                 append="", **options):
        self.t = t
        self._shape = {"memory_mib": memory_mib, "machine": machine, "cpus": cpus, "accel": accel,
                       "ram": ram, "boot": boot, "work": work, "user": user, "sandbox": sandbox,
                       "extra": extra, "boot_pages": boot_pages, "devices": devices, "thp": thp,
                       "initrd": initrd, "append": append, **options}
        self.name = t.unique(name)
        self.memory_mib, self.machine, self.cpus = memory_mib, machine, cpus
        self.accel, self.ram, self.boot, self.work = accel, ram, boot, work
        self.user, self.sandbox, self.extra, self.thp = user, sandbox, list(extra), thp
        if ram.startswith("shm"): # its QEMU makes the file, whoever starts that
            t.defer(_remove, self.shm_path())
        self.devices = devices if boot == "linux" else ()
        self.append = append
        self.boot_pages, self.initrd = boot_pages, initrd or guest_file("initramfs.gz")
        self.options = {"mib": 32, **options}
        self.options.setdefault("rounds", 2 if self.options["mib"] <= 64 else 1)
        self.dir = t.path(self.name)
        os.mkdir(self.dir)
        if user:
            shutil.chown(self.dir, user)
        self.qmp_path = os.path.join(self.dir, "qmp")
        self.test_qmp_path = os.path.join(self.dir, "ctl")
        self.console = Console(os.path.join(self.dir, "serial"))
        self.stderr_path = os.path.join(self.dir, "stderr")
        self.process = None
        self.pid = None
        self.qmp = None

    def shape(self, **changes):
        """What another Guest needs to be the same machine."""
        return {**self._shape, **changes}

    # ---- how it is started

    def _ram_arguments(self):
        size = f"{self.memory_mib}M"
        machine = self.machine
        if self.ram == "anon":
            return ["-machine", machine, "-m", size]
        backend = {"memfd": f"memory-backend-memfd,id=ram,size={size},share=on",
                   "shm": f"memory-backend-file,id=ram,size={size},mem-path={self.shm_path()},"
                          "share=on",
                   "shm-private": f"memory-backend-file,id=ram,size={size},"
                                  f"mem-path={self.shm_path()},share=off",
                   "prealloc": f"memory-backend-ram,id=ram,size={size},prealloc=on"}[self.ram]
        return ["-object", backend, "-machine", f"{machine},memory-backend=ram", "-m", size]

    def shm_path(self):
        return f"/dev/shm/vmsnap-test-{os.getpid()}-{self.name}"

    def _boot_arguments(self):
        if self.boot == "firmware":
            return ["-bios", self._firmware()]
        # no_timer_check: on a busy host the kernel finds its timer too slow, and panics.
        words = ["console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check",
                 f"vmsnap.work={self.work}", self.append]
        words += [f"vmsnap.{k}={v}" for k, v in self.options.items()]
        if "phys" in self.options:
            words.append(f"memmap=16M${self.options['phys']}")
        return ["-kernel", self._readable(guest_file("vmlinuz")), "-initrd",
                self._readable(self.initrd),
                "-append", " ".join(words)]

    def _readable(self, path):
        """A file of the clone, which another user may not be able to reach (below /root)."""
        if not self.user:
            return path
        copy = os.path.join(self.dir, os.path.basename(path))
        if not os.path.exists(copy):
            shutil.copyfile(path, copy)
            os.chmod(copy, 0o644)
        return copy

    def _firmware(self):
        """The guest without an operating system, with this guest's number of pages."""
        path = os.path.join(self.dir, "boot.rom")
        if not os.path.exists(path):
            shutil.copyfile(guest_file("boot.rom"), path)
            with open(path, "r+b") as f:
                f.seek(0xffe0)
                f.write(self.boot_pages.to_bytes(4, "little"))
            os.chmod(path, 0o644)
        return path

    def _device_arguments(self):
        arguments = []
        if "rng" in self.devices:
            arguments += ["-device", "virtio-rng-pci"]
        if "disk" in self.devices:
            arguments += ["-drive", f"if=none,id=d0,format=raw,readonly=on,file={self._disk()}",
                          "-device", "virtio-blk-pci,drive=d0"]
        if "scratch" in self.devices:
            arguments += ["-drive", f"if=none,id=d0,format=raw,file={self._scratch()}",
                          "-device", "virtio-blk-pci,drive=d0"]
        if "null" in self.devices:
            arguments += ["-drive", "if=none,id=d0,driver=null-co,read-zeroes=on,size=64M",
                          "-device", "virtio-blk-pci,drive=d0"]
        if "balloon" in self.devices:
            arguments += ["-device", "virtio-balloon-pci,id=balloon0"]
        return arguments

    def _disk(self):
        """A disk with the pattern of tests/guest/vio.c, 4 MiB, one for all guests of a case."""
        path = self.t.path("disk.img")
        if not os.path.exists(path):
            mask = (1 << 64) - 1

            def mix(x):
                x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & mask
                x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & mask
                return x ^ (x >> 31)
            n_sectors = 4 * MIB // 512
            mixed = [mix(i).to_bytes(8, "little") for i in range(n_sectors + 64)]
            with open(path, "wb") as f:
                for sector in range(n_sectors):
                    f.write(DISK_MAGIC.to_bytes(8, "little") + sector.to_bytes(8, "little"))
                    f.write(b"".join(mixed[sector + 2:sector + 64]))
            os.chmod(path, 0o644)
        return path

    def _scratch(self):
        """A writable disk of this guest's own, 64 MiB."""
        path = os.path.join(self.dir, "scratch.img")
        if not os.path.exists(path):
            with open(path, "wb") as f:
                f.truncate(64 * MIB)
            os.chmod(path, 0o666)
        return path

    def argv(self):
        """The whole command line."""
        argv = ["qemu-system-x86_64", "-name", self.name, "-accel", self.accel,
                "-smp", str(self.cpus), "-display", "none", "-nodefaults", "-no-user-config",
                "-no-reboot"]
        argv += self._ram_arguments() + self._boot_arguments() + self._device_arguments()
        argv += ["-chardev", f"file,id=serial,path={self.console.path},append=on",
                 "-serial", "chardev:serial",
                 "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
                 "-qmp", f"unix:{self.test_qmp_path},server=on,wait=off"]
        if self.sandbox:
            argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
                                 "resourcecontrol=deny"]
        return argv + self.extra

    def wrapper(self):
        """What stands before QEMU on the command line: QEMU asks for huge pages by itself, and
        without them means PR_SET_THP_DISABLE, which survives exec."""
        if self.thp:
            return []
        return ["/usr/bin/python3", "-c",
                "import ctypes, os, sys; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0); "
                "os.execvp(sys.argv[1], sys.argv[1:])"]

    def start(self):
        """Starts QEMU and connects to its QMP socket; does not wait for the guest."""
        if not os.path.exists(guest_file("vmlinuz")):
            raise Failed("no guest: run tools/guest.sh first")
        self.t.say(f"{self.name}: {self.accel} {self.machine} {self.cpus} vCPU {self.memory_mib} MiB "
                   f"{self.ram} {self.work if self.boot == 'linux' else self.boot}")
        with open(self.stderr_path, "ab") as err:
            self.process = self.t.spawn(self.wrapper() + self.argv(), user=self.user, stderr=err,
                                        stdout=subprocess.DEVNULL)
        self.pid = self.process.pid
        try:
            wait_until(lambda: os.path.exists(self.test_qmp_path) or not is_alive(self.pid), 30,
                       "the QMP socket")
            self.check_alive()
            self.connect()
        except QmpGone as error:
            raise Failed(f"{self.name}: QEMU does not start: {error}\n{self.stderr()}") from error
        return self

    def connect(self):
        """(Re)connects the test's own QMP connection."""
        if self.qmp:
            self.qmp.close()
        self.qmp = Qmp(self.test_qmp_path, 30.0)
        self.t.defer(self.qmp.close)

    def stderr(self):
        with open(self.stderr_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def boot_up(self):
        """start(), and waits until every workload says that it is under way."""
        self.start()
        self.wait_working()
        return self

    def wait_working(self, since=None, seconds=BOOT_SECONDS):
        """Waits until each workload has printed a line after `since`."""
        def all_speak():
            self.check_alive()
            lines = self.console.lines(since)
            return all(any(line.startswith(start) for line in lines) for start in self._starts())
        wait_until(all_speak, seconds, f"{self.name}: console lines of {self.work}")

    def _starts(self):
        if self.boot == "firmware":
            return ["R "]
        starts = []
        for name in self.work.split(","):
            if name == "selfcheck":
                n = self.options.get("procs", 1) + ("phys" in self.options)
                starts += [f"SELFCHECK {i} up=" for i in range(n)]
            elif name in ("stepper", "syncer", "vio", "writer"):
                starts.append(name.upper() + " up=")
        return starts

    # ---- how it is judged

    def check_alive(self):
        if not is_alive(self.pid):
            raise Failed(f"{self.name}: QEMU has ended\n{self.stderr()}\n"
                         + "\n".join(self.console.lines()[-10:]))

    def progress(self, since=None):
        """A number that rises as the guest works; -1 before it has said anything."""
        if self.boot == "firmware":
            rounds = [int(line.split()[1], 16) for line in self.console.lines(since)
                      if re.fullmatch(r"R [0-9a-f]{8}", line)]
            return rounds[-1] if rounds else -1
        latest = [c[-1] for c in (self.console.counters(kind, since)
                                  for kind in ("SELFCHECK", "STEPPER")) if c]
        return max((c["up"] for c in latest), default=-1)

    def check_no_errors(self, since=None):
        bad = self.console.errors(since)
        if bad:
            raise Failed(f"{self.name}: the guest's own check failed:\n  " + "\n  ".join(bad[:8]))

    def check_goes_on(self, seconds=20, what="the guest goes on"):
        """The guest's console must show progress from now on, and no error ever."""
        mark = self.console.size()
        try:
            wait_until(lambda: self.check_alive() or self._has_progressed(mark), seconds, what)
        except Failed as error:
            raise Failed(f"{self.name}: {error}; {where_it_hangs(self.pid)}") from error
        self.check_no_errors()

    def _has_progressed(self, mark):
        if self.boot == "firmware":
            return len([line for line in self.console.lines(mark) if line.startswith("R ")]) >= 2
        lines = self.console.lines(mark)
        return all(sum(line.startswith(start) for line in lines) >= 2 for start in self._starts())

    def check_stands(self, seconds=0.5):
        """The guest must not run: nothing may appear on its console."""
        before = self.console.size()
        time.sleep(seconds)
        if self.console.size() != before:
            raise Failed(f"{self.name}: runs, but should stand still")

    def check_whole(self, rounds=1, seconds=60):
        """Every page of selfcheck must have been looked at `rounds` times from now on, or for the
        other workloads as many rounds of steps, with no error."""
        mark = self.console.size()
        self.check_goes_on(seconds)

        def done():
            self.check_alive()
            if self.boot == "firmware":
                seen = [line for line in self.console.lines(mark) if line.startswith("R ")]
                return len(seen) > rounds + 1
            owners = {}
            for kind in ("SELFCHECK", "STEPPER"):
                for c in self.console.counters(kind, mark):
                    owners.setdefault((kind, c.get("owner", 0)), []).append(c)
            return owners and all(_rounds_made(c[0], c[-1]) >= rounds for c in owners.values())
        wait_until(done, seconds, f"{self.name}: {rounds} more rounds of its check", every=0.05)
        self.check_no_errors()

    def longest_gap_ms(self, since=None):
        """The longest the guest's programs waited between two turns, by the guest's own clock."""
        found = [c["gap_ms"] for kind in ("SELFCHECK", "STEPPER")
                 for c in self.console.counters(kind, since)]
        return max(found, default=0.0)

    # ---- memory from outside

    def ram_mapping(self):
        """(start, end) of the guest's main memory in QEMU's address space: the mapping of exactly
        that size, or more where neighbours have merged."""
        best = None
        with open(f"/proc/{self.pid}/maps", encoding="ascii", errors="replace") as f:
            for line in f:
                fields = line.split()
                start, end = (int(x, 16) for x in fields[0].split("-"))
                length = end - start
                if fields[1].startswith("rw") and length >= self.memory_mib * MIB:
                    if best is None or length < best[1] - best[0]:
                        best = (start, end)
        if best is None:
            raise Failed(f"{self.name}: no mapping of {self.memory_mib} MiB")
        return best

    def smaps(self):
        """The numbers and flags of the main memory's mapping: {"Rss": bytes..., "VmFlags": set}"""
        start, _ = self.ram_mapping()
        fields, inside = {}, False
        with open(f"/proc/{self.pid}/smaps", encoding="ascii", errors="replace") as f:
            for line in f:
                first, _, rest = line.partition(":")
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    inside = line.startswith(f"{start:x}-")
                elif inside and first == "VmFlags":
                    fields[first] = set(rest.split())
                elif inside and rest.strip().endswith("kB"):
                    fields[first] = int(rest.split()[0]) * 1024
        return fields

    # ---- how it ends

    def stop(self):
        """Ends QEMU at once, by its pid."""
        if self.qmp:
            self.qmp.close()
        if self.process:
            self.process.kill()
            self.process.wait(30)


def _rounds_made(first, last):
    """How many times all pages have been looked at, or written, for certain between two lines."""
    rounds = last["rounds"] - first["rounds"]
    if "next" not in first: # it may have been at the end of one when it printed the first line
        return rounds - 1
    return rounds - (last["next"] < first["next"])


def _remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
