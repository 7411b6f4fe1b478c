#!/usr/bin/python3
"""Shows on this machine, without any VM, that the test guests' programs and their outside checker
find what they are there to find."""

import json
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, process_state, tool, wait_until  # noqa: E402

MAGIC = (0x5041534d565f4547).to_bytes(8, "little") + (0x9e3779b97f4a7c15).to_bytes(8, "little")


def start(t, program, *args):
    path = t.path(program + ".out")
    with open(path, "wb") as out:
        process = t.spawn([tool("tests", "guest", f"guest_{program}"), *args], stdout=out)

    def said(word):
        with open(path, encoding="ascii") as f:
            return [line for line in f.read().split("\n")[:-1] if word in line]
    wait_until(lambda: said("up="), 20, f"{program} works")
    return process, said


def work_area(pid, n_bytes):
    with open(f"/proc/{pid}/maps", encoding="ascii") as f:
        for line in f:
            start_, end = (int(x, 16) for x in line.split()[0].split("-"))
            if end - start_ >= n_bytes and " rw-p " in line:
                return start_, end
    raise AssertionError(f"no mapping of {n_bytes} bytes")


def pagecheck(t, *args):
    result = t.run([tool("tests", "guest", "pagecheck"), *args])
    t.say(result.stdout.strip() + result.stderr.strip())
    return result.returncode, json.loads(result.stdout) if result.stdout else None


def freeze(t, process):
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: process_state(process.pid) == "T", 5, "the program stands still")


@case("guest.stepper-oracle", "cli", 60)
def stepper_oracle(t):
    """A frozen stepper is a point in time; a copy taken while it runs is caught as torn."""
    process, said = start(t, "stepper", "mib=64", "interval=20")
    span = "%x-%x" % work_area(process.pid, 64 << 20)
    torn = 0
    for _ in range(5):
        code, report = pagecheck(t, "--pid", process.pid, span)
        t.equal(report["stepper"]["found"], 64 * 256, "pages found")
        torn += code == 1
    t.check(torn >= 4, f"a copy of running memory must be torn, but only {torn} of 5 were")
    for _ in range(3):
        freeze(t, process)
        code, report = pagecheck(t, "--pid", process.pid, span)
        t.equal(code, 0, "verdict on a program that stands still")
        t.equal(report["stepper"]["verdict"], "point in time", "verdict")
        os.kill(process.pid, signal.SIGCONT)
    t.equal(said("ERROR"), [], "errors of the stepper")


@case("guest.stepper-one-wrong-page", "cli", 60)
def stepper_one_wrong_page(t):
    """In a copy of frozen memory, each kind of single fault is found."""
    process, _ = start(t, "stepper", "mib=4", "interval=20")
    freeze(t, process)
    first, last = work_area(process.pid, 4 << 20)
    with open(f"/proc/{process.pid}/mem", "rb") as memory:
        memory.seek(first)
        good = memory.read(last - first)
    at = good.index(MAGIC) + 77 * 4096

    def verdict(data):
        path = t.path("copy")
        with open(path, "wb") as f:
            f.write(data)
        code, report = pagecheck(t, path)
        return code, report["stepper"]["verdict"]
    t.equal(verdict(good)[0], 0, "verdict on the good copy")
    value = int.from_bytes(good[at + 48:at + 56], "little")

    def with_value(new):
        word = new.to_bytes(8, "little")
        return good[:at + 48] + word + good[at + 56:at + 4088] + word + good[at + 4096:]
    for what, data in {
            "one step behind": with_value(value - 1),
            "two steps behind": with_value(value - 2),
            "one step ahead": with_value(value + 1),
            "page lost": good[:at] + bytes(4096) + good[at + 4096:],
            "neighbour's content": good[:at] + good[at + 4096:at + 8192] + good[at + 4096:],
            "half old": good[:at + 4088] + (value - 1).to_bytes(8, "little") + good[at + 4096:],
            "bit flipped": good[:at + 999] + bytes([good[at + 999] ^ 4]) + good[at + 1000:]}.items():
        code, reason = verdict(data)
        t.say(f"{what}: {reason}")
        t.equal(code, 1, f"verdict on a copy with one page wrong ({what})")


@case("guest.selfcheck-sees", "cli", 60)
def selfcheck_sees(t):
    """selfcheck runs clean, and finds a page that is lost, changed, or put back to an older
    generation behind its back; so does the checker outside."""
    process, said = start(t, "selfcheck", "mib=8", "interval=20", "rate=500")
    first, _ = work_area(process.pid, 8 << 20)
    wait_until(lambda: "rounds=2" in said("up=")[-1], 20, "two rounds")
    t.equal(said("ERROR"), [], "errors of an undisturbed selfcheck")
    span = "%x-%x" % work_area(process.pid, 8 << 20)
    freeze(t, process)
    t.equal(pagecheck(t, "--pid", process.pid, span)[0], 0, "verdict on undisturbed memory")
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(first)
        pages = [memory.read(4096) for _ in range(4)]
        lost = 100
        while True: # every sixteenth generation of a page is zeros: there nothing can be lost
            memory.seek(first + lost * 4096)
            if memory.read(4096) != bytes(4096):
                break
            lost += 1
        for number, data in ((lost, bytes(4096)), (200, pages[2])):
            memory.seek(first + number * 4096)
            memory.write(data)
    code, report = pagecheck(t, "--pid", process.pid, span)
    t.check(report["selfcheck"][0]["found"] > 0, "pages are found")
    with open(f"/proc/{process.pid}/mem", "r+b", buffering=0) as memory:
        for number in range(10, 26): # a sixteenth of the pages are zero and have no header
            memory.seek(first + number * 4096 + 1000)
            memory.write(b"wrong")
    code, report = pagecheck(t, "--pid", process.pid, span)
    t.check(report["selfcheck"][0]["inconsistent"] > 8, "damaged pages are found")
    t.equal(code, 1, "verdict on damaged memory")
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: len(said("ERROR")) >= 3, 20, "ERROR lines of the disturbed selfcheck")
    wait_until(lambda: any(f"page={lost} " in line for line in said("ERROR")), 20,
               "the lost page is named")
    wait_until(lambda: "errors=0" not in said("up=")[-1], 20, "errors are counted")


@case("guest.selfcheck-rate", "cli", 60)
def selfcheck_rate(t):
    """The set rate is kept, so that tests know what a guest does."""
    _, said = start(t, "selfcheck", "mib=8", "interval=50", "rate=1000")

    def rewritten(line):
        return int(line.split("rewritten=")[1].split()[0]), float(line.split("up=")[1].split()[0])
    wait_until(lambda: len(said("up=")) > 20, 20, "twenty lines")
    (n0, t0), (n1, t1) = rewritten(said("up=")[1]), rewritten(said("up=")[-1])
    rate = (n1 - n0) / (t1 - t0)
    t.check(500 < rate < 1500, f"rewrites per second: {rate:.0f}, wanted about 1000")


if __name__ == "__main__":
    main()
