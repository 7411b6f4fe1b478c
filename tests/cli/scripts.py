"""tools/*.sh where they can't do their work: they print what to install and exit 2."""

import os
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from case import TOP, case, main  # noqa: E402

SCRIPTS = ["bench.sh", "demo.sh", "test.sh"]


def copy_of_tools(t):
    """The scripts where anyone may read them; beside them, no clone to build."""
    folder = t.path("tools")
    os.mkdir(folder)
    for name in os.listdir(os.path.join(TOP, "tools")):
        if name.endswith(".sh"):
            shutil.copy(os.path.join(TOP, "tools", name), folder)
    return folder


def refuses(t, argv, *said, **options):
    """The script exits 2, says this on stderr, and leaves nothing behind."""
    run = t.run(argv, timeout=20, **options)
    t.equal(run.returncode, 2, f"{argv}: exit code ({run.stderr.strip()})")
    t.equal(run.stdout, "", f"{argv}: stdout")
    for text in said:
        t.check(text in run.stderr, f"{argv}: says {run.stderr!r}, should say {text!r}")
    t.equal(sorted(os.listdir(t.dir)), ["tools"], f"{argv}: left behind")


@case("cli.scripts-need-root", labels="cli", timeout=60)
def scripts_need_root(t):
    for script in SCRIPTS:
        refuses(t, [os.path.join(copy_of_tools(t), script)], "not root", user="nobody")
        shutil.rmtree(t.path("tools"))


@case("cli.scripts-need-debian", labels="cli", timeout=60)
def scripts_need_debian(t):
    """In a mount namespace whose /etc/os-release is another distribution's."""
    folder = copy_of_tools(t)
    other = os.path.join(folder, "os-release")
    with open(other, "w", encoding="ascii") as f:
        f.write('ID=plan9\nPRETTY_NAME="Plan 9"\n')
    for script in SCRIPTS:
        refuses(t, ["unshare", "--mount", "sh", "-c",
                    f"mount --bind {other} /etc/os-release && exec {folder}/{script}"],
                "not Debian", "libzstd-dev")


@case("cli.scripts-install-nothing-if-told-so", labels="cli", timeout=60)
def scripts_install_nothing_if_told_so(t):
    """With a dpkg-query that knows no package and an apt-get that tells if it is called."""
    folder = copy_of_tools(t)
    for name, text in (("dpkg-query", "exit 1"), ("apt-get", f"touch {t.dir}/apt-get-was-called")):
        with open(os.path.join(folder, name), "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\n{text}\n")
        os.chmod(f.name, 0o755)
    path = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    for script in SCRIPTS:
        refuses(t, [os.path.join(folder, script), "--no-install"], "apt-get install", "gcc",
                "qemu-system-x86", env=path)


if __name__ == "__main__":
    main()
