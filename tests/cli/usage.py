"""Usage errors, exit codes, and the form of what is printed. No guest is needed."""

import json
import os
import pty
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import TOP, case, main, tool  # noqa: E402

VMSNAP = tool("vmsnap")


def refused(t, words, code, cause, hint=None):
    """The command fails with this code, one line of cause, a hint, and nothing on stdout."""
    run = t.run([VMSNAP, *words], timeout=20)
    lines = run.stderr.splitlines()
    what = f"vmsnap {' '.join(words)}"
    t.equal(run.returncode, code, f"{what}: exit code ({run.stderr.strip()})")
    t.equal(run.stdout, "", f"{what}: stdout")
    t.equal(len(lines), 2, f"{what}: lines on stderr: {lines}")
    t.check(lines[0].startswith("vmsnap: error: ") and cause in lines[0],
            f"{what}: says {lines[0]!r}, should say {cause!r}")
    t.check(lines[1].startswith("vmsnap: hint: "), f"{what}: {lines[1]!r} is no hint")
    if hint:
        t.check(hint in lines[1], f"{what}: hint {lines[1]!r}, should say {hint!r}")


USAGE_ERRORS = [
    ([], "no command given", "vmsnap --help"),
    (["snapshto"], "unknown command 'snapshto'", "vmsnap --help"),
    (["--nonsense"], "unknown option '--nonsense'", "vmsnap --help"),
    (["-q", "info", "a"], "unknown option '-q'", "come after the command"),
    (["import", "vm.mem", "vm.img"], "IMAGE is missing", "firecracker [OPTIONS] MEMFILE IMAGE"),
    (["snapshot"], "IMAGE is missing", "vmsnap snapshot --help"),
    (["snapshot", "--qmp", "s"], "IMAGE is missing", "vmsnap snapshot --help"),
    (["snapshot", "--qmp", "s", "a", "b"], "unexpected argument 'b'", None),
    (["snapshot", "--qmp", "s", "--nonsense", "a"], "unknown option '--nonsense'", None),
    (["snapshot", "--qm", "s", "a"], "unknown option '--qm'", "--qmp"),
    (["snapshot", "a", "--qmp"], "option '--qmp' needs an argument", None),
    (["snapshot", "--qmp", "s", "--buffer", "64", "a"], "--buffer: at least", None),
    (["snapshot", "--qmp", "s", "--bwlimit", "1K", "a"], "--bwlimit: 1024 is less than 65536", None),
    (["snapshot", "--qmp", "s", "--bwlimit", "0", "a"], "--bwlimit: 0 is less than 65536", None),
    (["snapshot", "--qmp", "s", "--bwlimit", "fast", "a"], "'fast' is not a size", "64MiB"),
    (["snapshot", "--qmp", "s", "--buffer", "64Q", "a"], "'64Q' is not a size", "64MiB"),
    (["snapshot", "--qmp", "s", "--timeout", "10", "a"], "'10' is not a duration", "10s"),
    (["snapshot", "--qmp", "s", "--level", "20", "a"], "20 is not in 1 to 19", None),
    (["snapshot", "--qmp", "s", "--threads", "0", "a"], "0 is not in 1 to 256", None),
    (["snapshot", "--qmp", "s", "--precopy", "101", "a"], "101 is not in 0 to 100", None),
    (["snapshot", "--qmp", "s", "--pid", "0", "a"], "--pid: 0", None),
    (["snapshot", "--qmp", "s", "--allow", "everything", "a"], "unknown HAZARD", "disks"),
    (["snapshot", "--qmp", "s", "--overwrite=yes", "a"], "takes no argument", None),
    # Named in the contract, but not there yet: refused, not ignored.
    (["snapshot", "--qmp", "s", "--base", "b", "a"], "unknown option '--base'", None),
    (["snapshot", "--pid", "1", "a"], "--qmp SOCK or --api SOCK is missing", None),
    (["restore", "--listen", "s"], "IMAGE is missing", None),
    (["restore", "--listen", "s", "--paused", "a"], "--paused can't be given with --listen", None),
    (["restore", "--listen", "s", "--resume", "1"], "either", None),
    (["restore", "--listen", "s", "--report", "r", "a"], "--detach", None),
    (["restore", "--listen", "s", "a", "--", "qemu"], "command line after -- can't", None),
    (["restore"], "IMAGE is missing", None),
    (["restore", "--resume", "x"], "--resume", None),
    (["restore", "--resume", "1", "--detach"], "--detach can't be given with --resume", None),
    (["restore", "--resume", "1", "--learn"], "--learn can't be given with --resume", None),
    (["restore", "--resume", "1", "--allow", "disks"], "--allow can't be given with --resume", None),
    (["restore", "a", "qemu"], "unexpected argument 'qemu'", "after --"),
    (["restore", "a", "--"], "nothing follows '--'", None),
    (["restore", "--prefetch", "all", "a"], "unknown", "hot, none"),
    (["info"], "IMAGE is missing", None),
    (["verify"], "IMAGE is missing", None),
    (["export", "--format", "elf", "a", "b"], "unknown FORMAT 'elf'", "raw"),
    (["export", "a", "b"], "--format FORMAT is missing", None),
    (["export", "--format", "raw", "a"], "OUT is missing", None),
]


@case("cli.usage-errors", labels="cli", timeout=60)
def usage_errors(t):
    for words, cause, hint in USAGE_ERRORS:
        refused(t, words, 2, cause, hint)


@case("cli.files-named-twice", labels="cli", timeout=60)
def files_named_twice(t):
    """A file that is named twice is refused before anything is done to it, whatever it is called."""
    made = t.run([tool("tests", "reader", "image_sample"), t.path("im")])
    t.equal(made.returncode, 0, made.stderr)
    with open(t.path("im"), "rb") as f:
        content = f.read()
    os.link(t.path("im"), t.path("hard"))
    os.symlink("im", t.path("soft"))
    os.mkdir(t.path("sub"))
    im, new = t.path("im"), t.path("new")
    for other in (im, t.path("hard"), t.path("soft"), t.path("sub/../im")):
        for words in (["restore", "--detach", "--pidfile", other, im],
                      ["restore", "--detach", "--report", other, im, "--", "false"],
                      ["restore", "--listen", new, "--pidfile", other, im],
                      ["export", "--format", "raw", "--overwrite", im, other],
                      ["snapshot", "--api", new, "--overwrite", "--vmstate", im, other],
                      ["import", "firecracker", "--overwrite", im, other],
                      ["import", "firecracker", "--overwrite", "--vmstate", im, new, other]):
            refused(t, words, 2, "name the same file")
    for words in (["restore", "--detach", "--pidfile", new, "--report", t.path("sub/../new"), im],
                  ["restore", "--detach", "--pidfile", im, "--report", im, new]):
        refused(t, words, 2, "name the same file")
    with open(im, "rb") as f:
        t.check(f.read() == content, "the image has changed")
    t.equal(sorted(os.listdir(t.dir)), ["hard", "im", "soft", "sub"], "files")


@case("cli.errors-as-json", labels="cli", timeout=30)
def errors_as_json(t):
    for words, code in ((["snapshot", "--json"], 2), (["--json"], 2), (["info", "--json", "/"], 13),
                        (["snapshot", "--json", "--nonsense"], 2),
                        (["snapshot", "--qmp", "/nonexistent", "--json", t.path("i")], 10)):
        run = t.run([VMSNAP, *words])
        t.equal(run.returncode, code, f"{words}: exit code ({run.stderr})")
        t.equal(run.stdout, "", f"{words}: stdout")
        t.equal(run.stderr.count("\n"), 1, f"{words}: lines on stderr ({run.stderr})")
        error = json.loads(run.stderr)
        t.equal(list(error), ["type", "schema_version", "exit_code", "message", "guest_state",
                              "hint"], f"{words}: keys")
        t.equal((error["type"], error["exit_code"]), ("error", code), f"{words}: error")
        t.check(error["message"] and error["guest_state"] == "untouched", f"{words}: {error}")


@case("cli.targets-that-are-none", labels="cli", timeout=60)
def targets_that_are_none(t):
    image = t.path("image")
    plain = t.path("plain")
    with open(plain, "wb") as f:
        f.write(os.urandom(70000))
    refused(t, ["snapshot", "--qmp", "/nonexistent", image], 10, "/nonexistent")
    refused(t, ["snapshot", "--qmp", plain, image], 10, plain)
    t.equal(os.listdir(t.dir), ["plain"], "files left behind")
    refused(t, ["restore", "--resume", "4194304"], 10, "No such process", "vmm_pid")
    for command in ("info", "verify", "restore"):
        refused(t, [command, "-"], 1, "image -", "in a file first")
    for command in (["info"], ["verify"], ["export", "--format", "raw"], ["restore"]):
        more = [t.path("out")] if command[0] == "export" else []
        refused(t, [*command, plain, *more], 13, plain)
    t.check(not os.path.exists(t.path("out")), "export left a file behind")


@case("cli.no-right-to-userfaultfd", labels="cli", timeout=30)
def no_right_to_userfaultfd(t):
    """A lack of rights is not called a lack of the kernel's."""
    made = t.run([tool("tests", "reader", "image_sample"), t.path("im")])
    t.equal(made.returncode, 0, made.stderr)
    os.chmod(t.path("im"), 0o644)
    run = t.run([VMSNAP, "restore", "--json", t.path("im"), "--", "qemu-system-x86_64"], user="nobody")
    if run.returncode != 12:
        t.skip(f"whoever may not is still let: {run.stderr}")
    error = json.loads(run.stderr)
    t.check("not permitted" in error["message"] and "missing" not in error["message"], error)
    t.check("as root" in error["hint"], error)


@case("cli.help-and-version", labels="cli", timeout=30)
def help_and_version(t):
    with open(os.path.join(TOP, "CMakeLists.txt"), encoding="utf-8") as f:
        version = re.search(r"project\(vmsnap VERSION ([\d.]+)", f.read())[1]
    t.equal(t.run([VMSNAP, "--version"]).stdout, f"vmsnap {version}\n", "--version")
    whole = t.run([VMSNAP, "--help"])
    t.equal((whole.returncode, whole.stderr), (0, ""), "--help")
    for name in ("snapshot", "restore", "info", "verify", "export", "check"):
        run = t.run([VMSNAP, name, "--help"])
        t.equal((run.returncode, run.stderr), (0, ""), f"{name} --help")
        t.check(run.stdout.startswith(f"usage: vmsnap {name} "), f"{name} --help: {run.stdout}")
        t.check(max(map(len, run.stdout.splitlines())) <= 80, f"{name} --help is wider than 80")
        t.equal(t.run([VMSNAP, name, "-h"]).stdout, run.stdout, f"{name} -h")


@case("cli.lost-output-is-an-error", labels="cli", timeout=30)
def lost_output_is_an_error(t):
    with open("/dev/full", "w", encoding="ascii") as full:
        run = subprocess.run([VMSNAP, "--help"], stdout=full, stderr=subprocess.PIPE, text=True,
                             timeout=10, check=False)
    t.equal(run.returncode, 1, "exit code with a full disk behind stdout")
    t.check("could not be written" in run.stderr, run.stderr)
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([VMSNAP, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True,
                         timeout=10, check=False)
    os.close(writer)
    t.equal(run.returncode, 1, "exit code with a closed pipe: an error, not SIGPIPE")


def on_terminal(words, environment):
    """Runs with stderr on a terminal; returns what came there."""
    master, slave = pty.openpty()
    process = subprocess.Popen([VMSNAP, *words], stderr=slave, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    os.close(slave)
    text = b""
    try:
        while chunk := os.read(master, 4096):
            text += chunk
    except OSError:
        pass  # EIO: the terminal's other side is closed
    process.wait(10)
    os.close(master)
    return text.decode()


@case("cli.colour-only-on-a-terminal", labels="cli", timeout=30)
def colour_only_on_a_terminal(t):
    red = "\033[31m"
    t.check(red in on_terminal(["nonsense"], {"TERM": "xterm", "NO_COLOR": ""}), "no red")
    t.check(red not in on_terminal(["nonsense"], {"TERM": "xterm", "NO_COLOR": "1"}), "NO_COLOR")
    t.check(red not in on_terminal(["nonsense"], {"TERM": "dumb", "NO_COLOR": ""}), "TERM=dumb")
    t.check("\033" not in t.run([VMSNAP, "nonsense"]).stderr, "an escape in a pipe")


@case("cli.image-not-to-a-terminal", labels="cli", timeout=30)
def image_not_to_a_terminal(t):
    master, slave = pty.openpty()
    run = subprocess.run([VMSNAP, "snapshot", "--qmp", "/nonexistent", "-"], stdout=slave,
                         stderr=subprocess.PIPE, text=True, timeout=10, check=False)
    os.close(slave)
    os.close(master)
    t.equal(run.returncode, 2, f"exit code ({run.stderr})")
    t.check("terminal" in run.stderr, run.stderr)


if __name__ == "__main__":
    main()
