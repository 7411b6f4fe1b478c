#!/usr/bin/python3
"""`snapshot -vv` and `restore -vv` tell what each stage did: the lines are there, and what they say agrees with the
image and the summary."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main  # noqa: E402
from minivm import MiniVm, MiniVmPlace, take_image  # noqa: E402
from vmsnap import Restore, finish, snapshot, start_vmsnap  # noqa: E402

SIZES = ("--memory", "64M", "--populate", "48M")
POPULATED_MIB = 48
STAGES = ("fault", "sweep", "encode", "write")


def table(err):
    """The lines of -vv: {stage: text}, in order."""
    return dict(re.findall(r"^vmsnap: stage (\w+)[:,] (.*)$", err, re.M))


def number(t, line, pattern):
    found = re.search(pattern.replace("N", r"([\d.]+)"), line)
    t.check(found, f"'{pattern}' in '{line}'")
    return float(found[1])


def check_table(t, result, image_bytes):
    lines = table(result.err)
    t.equal(tuple(lines), STAGES, f"stages told in {result.err}")
    write, encode, sweep, fault = (lines[s] for s in reversed(STAGES))
    seen = number(t, encode, "N MiB seen")
    t.check(number(t, encode, "zstd N") > 0, f"the compressors were busy: {encode}")
    t.check(seen >= POPULATED_MIB - 1, f"all that is there was looked at: {encode}")
    saved = number(t, fault, "N MiB saved") + number(t, sweep, "N MiB copied")
    t.check(saved > seen - 0.3, f"and had been copied: {fault}, {sweep}")
    t.equal(number(t, write, "N bytes in"), image_bytes, f"bytes written: {write}")
    t.check(number(t, write, "N writes") >= image_bytes / (1 << 20), f"of 1 MiB at most: {write}")
    t.equal(number(t, fault, "N faults"), result.summary["write_faults"], f"faults: {fault}")
    t.equal(number(t, fault, "waiting for buffers N"),
            round(result.summary["throttled_ns"] / 1e6, 1), f"throttled_ns: {fault}")


@case("minivm.stages.file", "kernel", 30)
def to_file(t):
    vm = MiniVm(t, *SIZES)
    vm.wait_for_writes(2000)
    image = t.path("image")
    result = snapshot(t, vm, image, "-vv")
    t.equal(result.summary["image_bytes"], os.path.getsize(image), "image_bytes")
    check_table(t, result, os.path.getsize(image))
    for quieter in ((), ("-v",)):
        result = snapshot(t, vm, image, "--overwrite", *quieter)
        t.equal(table(result.err), {}, f"stages told with {quieter}")


@case("minivm.stages.pipe", "kernel", 30)
def to_pipe(t):
    """The image on standard output; the summary is on standard error then."""
    vm = MiniVm(t, *SIZES)
    size = t.path("size")
    into, out = os.pipe()
    with open(size, "wb") as f:
        count = t.spawn(["wc", "-c"], stdin=into, stdout=f)
    process = start_vmsnap(t, "snapshot", "--qmp", vm.control, "-vv", "-", stdout=out)
    os.close(into)
    os.close(out)
    result = finish(t, process)
    t.equal(result.code, 0, result.text())
    t.equal(count.wait(10), 0, "wc's exit status")
    with open(size, encoding="ascii") as f:
        check_table(t, result, int(f.read()))


@case("minivm.stages.restore", "kernel", 30)
def of_restore(t):
    image = take_image(t, *SIZES, writes=2000)
    for level in ("-vv", "-v"):
        restored = Restore(t, image, MiniVmPlace(t, *SIZES), level).wait_running()
        summary = restored.wait_complete()
        result = restored.end()
        lines = dict(re.findall(r"^vmsnap: stage (\w+)[:,] (.*)$", result.err, re.M))
        if level == "-v":
            t.equal(lines, {}, "stages told with -v")
            continue
        t.equal(tuple(lines), ("serve", "decode"), f"stages told in {result.err}")
        t.equal(number(t, lines["serve"], "N faults"), summary["demand_faults"], lines["serve"])
        decoded = (summary["pages_prefetched"] + summary["pages_filled"]) / 256
        brought = decoded + summary["pages_ahead"] / 256 # zeros, too: those aren't decoded
        t.check(number(t, lines["serve"], "N MiB installed") >= brought - 0.1, f"{lines}, {summary}")
        t.check(number(t, lines["decode"], "N MiB decoded") >= decoded - 0.1, f"{lines}, {summary}")


if __name__ == "__main__":
    main()
