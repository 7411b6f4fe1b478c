"""Every key that JSON output must have is there, and every key that is there is in the man page.
The VM is a bare QEMU: firmware and no disk."""

import json
import os
import re
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import Failed, TOP, case, main, wait_until  # noqa: E402
from vmsnap import finish, start_vmsnap, vmsnap  # noqa: E402

SNAPSHOT = """pause_ns stop_ns state_ns arm_ns cont_ns wall_ns throttled_ns ram_bytes image_bytes
    pages_total pages_zero pages_stored pages_from_faults pages_poisoned write_faults fault_p50_ns
    fault_p99_ns fault_max_ns buffer_peak_bytes image longest_gap_ns image_id instant vm_name
    accelerator warnings huge_bytes_before huge_bytes_after"""
RUNNING = "launch_to_running_ns vmm_pid clock_behind_ns generation_id_renewed"
RESTORE = """launch_to_running_ns demand_faults fault_p50_ns fault_p99_ns fault_max_ns
    pages_prefetched pages_filled complete_ns vmm_pid"""
CLOCK = "clock_synced clock_difference_ns clock_sync_ns warnings"
INFO = "format_version image_id ram_bytes regions hot_pages base vmgenid"
VERIFY = "pages_checked pages_damaged"
CHECK = "name ok reason allow"


def man_section(title):
    """The words in bold of the page's JSON paragraph on one command."""
    with open(os.path.join(TOP, "docs", "vmsnap.1"), encoding="utf-8") as f:
        text = f.read().split(".SS JSON\n")[1].split("\n.SH ")[0]
    parts = re.split(r"^\.TP\n(.*)\n", text, flags=re.M)
    paragraphs = {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}
    return set(re.findall(r"^\.BR? (\w+)", paragraphs[""] + paragraphs[title], re.M))


def judge(t, title, found, wanted):
    """`found`: an object; `wanted`: the keys it must have."""
    keys = set(found)
    t.equal(found.get("schema_version"), 1, f"{title}: schema_version")
    t.equal(sorted(set(wanted.split()) - keys), [], f"{title}: keys that are missing")
    t.equal(sorted(keys - man_section(title)), [], f"{title}: keys that the man page lacks")
    for key, value in found.items():
        if key.endswith(("_ns", "_bytes")) or key.startswith("pages_"):
            t.check(value is None or isinstance(value, int), f"{title}: {key} is {value!r}")


def start_qemu(t):
    socket = t.path("qmp")
    qemu = t.spawn(["qemu-system-x86_64", "-accel", "tcg", "-m", "64", "-nodefaults", "-display",
                    "none", "-vga", "none", "-name", "keys", "-qmp",
                    f"unix:{socket},server=on,wait=off"])
    wait_until(lambda: os.path.exists(socket), 20, "QEMU's QMP socket")
    return qemu, socket


def restore(t, image):
    """Restores in the foreground, ends the VMM by SIGINT when all is in; {type: object}."""
    process = start_vmsnap(t, "restore", "--sync-clock", image)
    lines = []
    while not any('"summary"' in line for line in lines):
        line = process.stdout.readline().decode()
        if not line:
            raise Failed(f"the restore ended: {finish(t, process).err}")
        lines.append(line)
    process.send_signal(signal.SIGINT)
    result = finish(t, process)
    t.equal(result.code, 0, f"exit status of the restore ({result.err})")
    return {o["type"]: o for o in [*map(json.loads, lines), *result.objects]}


@case("cli.json-keys", labels="cli,qemu", timeout=90)
def json_keys(t):
    qemu, socket = start_qemu(t)
    image = t.path("image")
    taken = vmsnap(t, "snapshot", "--qmp", socket, image)
    t.equal(taken.code, 0, taken.text())
    judge(t, "snapshot", taken.summary, SNAPSHOT)
    t.equal(taken.summary["image"], image, "image")
    t.equal(taken.summary["vm_name"], "keys", "vm_name")
    t.equal(taken.summary["image_bytes"], os.path.getsize(image), "image_bytes")
    t.check(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", taken.summary["instant"]),
            taken.summary["instant"])

    items = [o for o in vmsnap(t, "check", "--qmp", socket).objects if o["type"] != "summary"]
    t.check(len(items) > 15, f"check lists only {len(items)} items")
    for item in items:
        judge(t, "check", item, CHECK)
    qemu.kill()
    qemu.wait(10)

    info = vmsnap(t, "info", image).summary
    judge(t, "info", info, INFO)
    t.equal(info["image_id"], taken.summary["image_id"], "image_id")
    verified = vmsnap(t, "verify", image).summary
    judge(t, "verify", verified, VERIFY)
    t.equal(verified["pages_damaged"], 0, "pages_damaged")

    objects = restore(t, image)
    judge(t, "restore", objects["running"], RUNNING)
    judge(t, "restore", objects["summary"], RESTORE)
    judge(t, "restore", objects["clock"], CLOCK)
    judge(t, "restore", objects["exit"], "")


@case("cli.closing-line", labels="cli,qemu", timeout=60)
def closing_line(t):
    """What a person sees: the line of a snapshot, nothing with -q; with - all on stderr."""
    _, socket = start_qemu(t)
    line = re.compile(r"paused \d[\d.]* (us|ms) \(TCG\); \d[\d.]* MiB RAM, \d[\d.]* [KM]iB stored "
                      r"\(\d[\d.]*:1\) in \d[\d.]* m?s; \d+ write faults?(, p99 \d[\d.]* (us|ms))?; "
                      r"guest running\n")
    spoken = vmsnap(t, "snapshot", "--qmp", socket, t.path("a"), json_=False)
    t.check(line.fullmatch(spoken.out), f"the closing line: {spoken.out!r}")
    t.equal(spoken.err, "", "stderr of a snapshot into a pipe")
    silent = vmsnap(t, "snapshot", "-q", "--qmp", socket, t.path("b"), json_=False)
    t.equal((silent.code, silent.out, silent.err), (0, "", ""), "with -q")
    with open(t.path("c"), "wb") as out:
        process = start_vmsnap(t, "snapshot", "--qmp", socket, "-", json_=False, stdout=out)
        piped = finish(t, process)
    t.check(piped.code == 0 and line.fullmatch(piped.err), f"with -: {piped.err!r}")
    t.equal(vmsnap(t, "verify", t.path("c")).code, 0, "verify of an image from a pipe")


if __name__ == "__main__":
    main()
