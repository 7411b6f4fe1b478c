"""The systemd units that are installed are such that systemd takes them."""

import os
import re
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import TOP, case, main, tool  # noqa: E402

UNIT = "vmsnap-restore@.service"


def unit_text(unit=UNIT):
    with open(tool("tools", unit), encoding="utf-8") as f:
        return f.read()


def verify(t, text, unit=UNIT):
    """What systemd says of a unit of this text, for an image whose path needs escaping."""
    directory = t.path(t.unique("units"))
    os.mkdir(directory)
    with open(os.path.join(directory, unit), "w", encoding="utf-8") as f:
        f.write(text)
    name = t.run(["systemd-escape", "--path", f"--template={unit}", t.path("an image-1")]).stdout.strip()
    return t.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
                  os.path.join(directory, name)], env={**os.environ, "SYSTEMD_UNIT_PATH": directory + ":"})


LISTEN_UNIT = "vmsnap-listen@.service"


@case("cli.systemd-listen-unit", labels="cli", timeout=60)
def systemd_listen_unit(t):
    text = unit_text(LISTEN_UNIT)
    for line in ("Type=notify", "KillMode=process"): # its servers outlive it
        t.check(line in text.split("\n"), line)
    program = re.findall(r"^ExecStart=(\S+) restore --listen", text, re.M)
    t.check(os.path.isabs(program[0]), f"an absolute path: {program}")
    with open(os.path.join(TOP, "docs", "vmsnap.1"), encoding="utf-8") as f:
        t.check("vmsnap\\-listen@.service" in f.read(), "the man page knows of it")
    try:
        subprocess.run(["systemd-analyze", "--version"], stdout=subprocess.DEVNULL, check=True)
    except FileNotFoundError:
        t.skip("no systemd-analyze (package systemd): the unit is not verified")
    good = verify(t, text.replace(program[0], tool("vmsnap")), LISTEN_UNIT)
    t.equal((good.returncode, good.stderr), (0, ""), "what systemd says of the unit")


@case("cli.systemd-unit", labels="cli", timeout=60)
def systemd_unit(t):
    text = unit_text()
    program = re.findall(r"^ExecStart=(\S+)", text, re.M)
    t.equal([os.path.basename(p) for p in program], ["vmsnap"], "what it starts")
    t.check(os.path.isabs(program[0]), f"an absolute path: {program}")
    try:
        subprocess.run(["systemd-analyze", "--version"], stdout=subprocess.DEVNULL, check=True)
    except FileNotFoundError:
        t.skip("no systemd-analyze (package systemd): the unit is not verified")
    text = text.replace(program[0], tool("vmsnap"))
    good = verify(t, text)
    t.equal((good.returncode, good.stderr), (0, ""), "what systemd says of the unit")
    bad = verify(t, text.replace("KillMode=mixed", "KillMode=sometimes"))
    t.check("kill mode" in bad.stderr, f"a mistake is found: {bad.stderr!r}")


@case("cli.systemd-unit-says-what-it-leaves-out", labels="cli", timeout=30)
def unit_hardening(t):
    """Settings that would break a restore: each is named in the comments, none is set."""
    lines = unit_text().split("\n")
    comments = " ".join(line for line in lines if line.startswith("#"))
    for name in ("SystemCallFilter", "SystemCallArchitectures", "MemoryDenyWriteExecute",
                 "LockPersonality", "Restrict", "ProtectClock", "ProtectHostname", "ProtectKernelLogs",
                 "ProtectKernelModules", "ProtectKernelTunables", "PrivateDevices", "PrivateUsers",
                 "ProtectProc"):
        t.check(not any(re.match(name + r"\w*=", line) for line in lines), f"{name}= is not set")
        t.check(name in comments, f"{name}: said why")
    with open(os.path.join(TOP, "docs", "vmsnap.1"), encoding="utf-8") as f:
        t.check("vmsnap\\-restore@.service" in f.read(), "the man page knows of it")


if __name__ == "__main__":
    main()
