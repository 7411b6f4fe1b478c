#!/usr/bin/python3
"""The ten lines of docs/firecracker.md, run as they stand there. minivm stands in for Firecracker and for
the call of its API that loads the snapshot."""

import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import TOP, case, is_alive, main, tool, wait_until  # noqa: E402
from minivm import MiniVm, end_and_wait  # noqa: E402


def ten_lines():
    """The page's block from the import on, comments off, words that go over several lines put together."""
    with open(os.path.join(TOP, "docs", "firecracker.md"), encoding="utf-8") as f:
        block = re.search(r"^    vmsnap import firecracker --vmstate.*\n(?:^    .*\n)+", f.read(), re.M)[0]
    found, text = [], ""
    for line in block.splitlines():
        text += re.sub(r" {2,}#.*", "", line).strip() + " "
        if text.count("'") % 2 == 0:
            found.append(text.strip())
            text = ""
    return len(block.splitlines()), found


@case("minivm.firecracker-page", "kernel", 60)
def firecracker_page(t):
    vm = MiniVm(t, "--memory", "32M", "--populate", "20M", accel="threads")
    vm.wait_for_writes(3000)
    vm.stop()
    state, memory = t.path("vm.state"), t.path("vm.mem")
    vm.save_files(state, memory)
    end_and_wait(vm)
    with open(state, "rb") as f:
        saved = f.read()
    n_lines, commands = ten_lines()
    t.check(n_lines <= 10, f"{n_lines} lines")
    done = []
    for text in commands:
        word = text.split()[0]
        if word == "curl": # Firecracker loads the snapshot, and connects
            t.check('"backend_type": "Uffd"' in text and "/run/vm.sock" in text, text)
            vm = MiniVm(t, "--vmstate", state, "--uffd-backend", t.path("vm.sock"), accel="threads")
            vm.wait_for_writes(1000)
            vm.stop()
            vm.check_right("a VM of the image")
        elif word not in ("firecracker", "until"): # minivm has no API's socket to wait for
            if "export" in text: # as on the host that has the image alone
                os.unlink(state)
                os.unlink(memory)
            line = text.replace("/run/", t.dir + "/").replace("vmsnap ", tool("vmsnap") + " ", 1)
            run = t.run(["bash", "-euc", line], cwd=t.dir)
            t.equal(run.returncode, 0, f"{text}: {run.stdout}{run.stderr}")
        if "--pidfile" in text:
            with open(t.path("vm.pid"), encoding="ascii") as f:
                listener = int(f.read())
            t.defer(lambda: is_alive(listener) and os.kill(listener, 9))
        done.append(word)
    for word in ("vmsnap", "firecracker", "curl", "kill"):
        t.check(word in done, f"the page does not say {word}: {done}")
    with open(state, "rb") as f:
        t.check(f.read() == saved, "the state that came back out of the image")
    wait_until(lambda: not is_alive(listener), 20, "the listener ends, all memory is in")
    vm.cont()
    vm.wait_for_writes(1000)
    vm.stop()
    vm.check_right("with nothing of vmsnap left")
    t.equal(end_and_wait(vm), 0, "exit status")


if __name__ == "__main__":
    main()
