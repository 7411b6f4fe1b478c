#!/usr/bin/python3
"""The kernel-labelled programs inside a Linux 6.1 guest (Debian 12's own kernel, the oldest that is
supported), booted by QEMU under TCG: each with the shared libraries it needs, as root, in a file
system in memory. The guest's console has a line for each test. Kernel and first initramfs are
those of tools/guest.sh; the environment variable VMSNAP_GUEST names another folder with them."""

import json
import os
import re
import shlex
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import Failed, case, main, tool, wait_until  # noqa: E402
from guest import Guest, guest_file, initramfs_with  # noqa: E402

SLOWNESS = 4  # TCG on a busy machine against the host
GUEST_MIB = 2560 # kernel.engine_ended has a process of 1 GiB, and its image lies in memory too
DIRECTORY = "kernel-tests"
RUN = """#!/bin/busybox sh
export LD_LIBRARY_PATH=/{directory}/lib
cd /tmp
hostname guest
ip link set lo up 2>/dev/null
echo 8 >/proc/sys/vm/nr_hugepages
failed=0
run() {{ # run NAME SECONDS SKIP_STATUS COMMAND...
    name=$1 seconds=$2
    shift 2
    echo "KTEST begin $name"
    began=$(date +%s)
    busybox timeout -s KILL "$seconds" "$@" </dev/null 2>&1
    status=$?
    echo "KTEST end $name status=$status seconds=$(($(date +%s) - began))"
    [ $status = 0 ] || [ $status = 77 ] || failed=1
}}
{lines}
echo "KTEST all failed=$failed"
exit $failed
"""


class Test:
    """One test as CTest knows it."""

    def __init__(self, entry):
        self.name = entry["name"]
        self.command = entry["command"]
        properties = {p["name"]: p["value"] for p in entry["properties"]}
        self.timeout = int(properties.get("TIMEOUT", 60)) * SLOWNESS
        self.environment = properties.get("ENVIRONMENT", [])
        self.breaks_a_rule = any(e.startswith("VMSNAP_BREAK=") for e in self.environment)


def kernel_tests(t):
    """Those that are programs of this build (what is a script needs a host), less those that
    break a rule on purpose (they prove the others on any kernel)."""
    shown = t.run(["ctest", "--test-dir", tool(), "--show-only=json-v1", "-L", "^kernel$",
                   "-LE", "^qemu$"])
    t.equal(shown.returncode, 0, "ctest's list of tests: " + shown.stderr)
    tests = [Test(entry) for entry in json.loads(shown.stdout)["tests"] if "command" in entry]
    programs = os.path.realpath(tool()) + os.sep
    return [one for one in tests if not one.breaks_a_rule and
            os.path.realpath(one.command[0]).startswith(programs)]


def libraries(t, program):
    """The shared libraries of a program, the loader among them."""
    listed = t.run(["ldd", program])
    t.equal(listed.returncode, 0, f"ldd {program}: {listed.stderr}")
    return re.findall(r"(/\S+) \(0x", listed.stdout)


def put(t, source, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    result = t.run(["strip", "-o", target, os.path.realpath(source)])
    t.equal(result.returncode, 0, f"strip {source}: {result.stderr}")


def build_initramfs(t, tests):
    """A second archive behind the guest's own; the kernel unpacks both."""
    root = t.path("root")
    base = os.path.join(root, DIRECTORY)
    lines = []
    copied = set()
    for one in tests:
        words = ["env", *one.environment] if one.environment else []
        for word in one.command:
            if os.path.isfile(word) and word not in copied:
                copied.add(word)
                put(t, word, os.path.join(base, "bin", os.path.basename(word)))
                for library in libraries(t, word):
                    if library not in copied:
                        copied.add(library)
                        # where the program looks for it; the loader has an absolute name in it
                        put(t, library, root + library)
            words.append(f"/{DIRECTORY}/bin/{os.path.basename(word)}" if os.path.isfile(word)
                         else word)
        lines.append("run " + shlex.join([one.name, str(one.timeout), *words]))
    script = os.path.join(base, "run")
    with open(script, "w", encoding="ascii") as f:
        f.write(RUN.format(directory=DIRECTORY, lines="\n".join(lines)))
    os.chmod(script, 0o755)
    return initramfs_with(t, root)


def judge(t, guest, tests):
    """A line for each test, as the guest's console has it; the output of those that failed."""
    ends, output, current = {}, {}, None
    for line in guest.console.lines():
        if line.startswith("KTEST begin "):
            current = line.split()[2]
            output[current] = []
        elif line.startswith("KTEST end "):
            fields = dict(word.split("=") for word in line.split()[3:])
            ends[line.split()[2]] = (int(fields["status"]), int(fields["seconds"]))
            current = None
        elif current:
            output[current].append(line)
    bad = []
    for one in tests:
        status, seconds = ends.get(one.name, (None, 0))
        word = "pass" if status == 0 else "skip" if status == 77 else "FAIL"
        print(f"{word} {one.name} ({seconds} s)")
        for line in output.get(one.name, []):
            if word != "pass" or line.startswith("skip") or line.lstrip().startswith("skip:"):
                print("    " + line)
        if word == "FAIL":
            bad.append(f"{one.name} (status {status})")
    t.check(not bad, "in the guest: " + ", ".join(bad))
    t.check(any(status == 0 for status, _ in ends.values()), "no test ran in the guest")


# By name, each with what it is told besides.
QUICK = {"kernel.probe": [], "kernel.memory_facts": [], "kernel.region_read": [], "kernel.inject_calls": [],
         "kernel.engine_busy": [], "kernel.engine_huge_pieces": [],
         "kernel.engine_instant": ["2"]} # snapshots: one armed in the pause, one while the process ran


def in_guest(t, limit_s, names=None):
    t.need(os.path.exists(guest_file("vmlinuz")), "no guest kernel: run tools/guest.sh")
    tests = [one for one in kernel_tests(t) if not names or one.name in names]
    t.check(len(tests) == len(names or tests), f"of {names} only {[one.name for one in tests]}")
    for one in tests:
        one.command += (names or {}).get(one.name, [])
    initramfs = build_initramfs(t, tests)
    guest = Guest(t, cpus=2, memory_mib=GUEST_MIB, devices=(), work="",
                  initrd=initramfs, run=f"/{DIRECTORY}/run", extra=["-cpu", "max"])
    guest.start()
    try:
        wait_until(lambda: guest.process.poll() is not None or
                   any(line.startswith("KTEST all") for line in guest.console.lines()),
                   limit_s, "the tests in the guest", every=0.5)
    except Failed as late:
        t.say(str(late))
    print("\n".join(line for line in guest.console.lines() if line.startswith("GUEST ")))
    for line in guest.console.errors():
        t.say("the guest's kernel: " + line)
    judge(t, guest, tests)


@case("kernel.in_guest-quick", "kernel,qemu", 180)
def in_guest_quick(t):
    """What the rest stands on."""
    in_guest(t, 170, QUICK)


@case("kernel.in_guest", "kernel,qemu,slow", 1200)
def in_guest_all(t):
    """All of them, one after another."""
    in_guest(t, 1190)


if __name__ == "__main__":
    main()
