#!/usr/bin/python3
"""`vmsnap restore --listen`: its socket, its report and pidfile, its end and that of its VMs."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, is_alive, kill, main, process_state, tool, wait_until  # noqa: E402
from launcher import Manager, need_library  # noqa: E402
from listener import Listener, check_left, is_registered  # noqa: E402
from rawvm import MIB, RawVm, check_content, random_memory  # noqa: E402
from vmsnap import pause_log, report_lines, vmsnap  # noqa: E402


@case("minivm.listen.socket", "kernel", 40)
def socket_file(t):
    """In use: refused by name; left by the dead: replaced; no socket: not touched; another's: not removed."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    result = vmsnap(t, "restore", "--listen", listener.path, image)
    t.equal((result.code, "in-use" in result.error["message"]), (14, True), f"{result.text()}")
    kill(listener.process.pid)
    listener.process.wait(5)
    t.check(os.path.exists(listener.path), "it is left there")
    second = Listener(t, image, path=listener.path)
    os.unlink(second.path)
    with open(second.path, "w", encoding="ascii") as f:
        f.write("precious")
    t.equal(second.end(), 0, "exit status")
    with open(second.path, encoding="ascii") as f:
        t.equal(f.read(), "precious", "the file that another has put there")
    result = vmsnap(t, "restore", "--listen", second.path, image)
    t.equal(result.code, 1, f"no socket: {result.text()}")
    t.equal(vmsnap(t, "restore", "--listen", "/tmp/" + "x" * 120, image).code, 2, "too long")
    t.equal(vmsnap(t, "restore", "--listen", t.path("s"), image + ".none").code, 1, "no image")
    t.check(not os.path.exists(t.path("s")), "no socket without an image")


@case("minivm.listen.signals", "kernel", 60)
def signals(t):
    """Ctrl-C: who is served is served on until all is in; nobody else is taken. Twice: it leaves at once, and who
    is served is served on."""
    data, image = random_memory(t, 8 * MIB)
    for times in (1, 2):
        listener = Listener(t, image, "--bwlimit", "4M", "--prefetch", "none")
        vm = RawVm(t, 8 * MIB)
        vm.hand_over(listener.path)
        listener.wait_for("running", vm.pid)
        mute = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mute.connect(listener.path)
        os.killpg(listener.process.pid, signal.SIGINT)
        wait_until(lambda path=listener.path: not os.path.exists(path), 5, "the socket is removed")
        t.equal(listener.process.poll(), None, f"it ends before its VMs: {listener.text()}")
        if times == 2:
            servers = listener.processes()
            listener.process.send_signal(signal.SIGTERM)
            t.equal(listener.process.wait(5), 143, "exit status")
            t.check(all(is_alive(p) for p in servers), "its servers live")
            t.equal(listener.of_type("summary")[-1]["vms_left"], 1, "vms_left")
        mute.settimeout(5)
        try:
            t.equal(mute.recv(1), b"", "the connection of one that has said nothing")
        except ConnectionResetError: # it was not even accepted
            pass
        check_content(t, vm, data, f"{times} times")
        listener.wait_for("summary", vm.pid)
        if times == 1:
            t.equal(listener.process.wait(10), 0, "exit status")
        vm.kill()


@case("minivm.listen.in-flight", "kernel", 40)
def in_flight(t):
    """Told to end while a handoff is half read, or lies in the socket: that VM is served."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image)
    vm = RawVm(t, 4 * MIB)
    vm.begin("hand_over", listener.path, pieces=2, pause=0.5)
    wait_until(lambda: listener.processes(), 5, "its process", every=0.01)
    time.sleep(0.2)
    for pid in [listener.process.pid, *listener.processes()]:
        kill(pid, signal.SIGTERM)
    vm.end()
    check_content(t, vm, data, "half read")
    t.equal(listener.process.wait(10), 0, "exit status")
    t.equal(listener.of_type("summary")[-1]["vms"], 1, "vms")
    listener = Listener(t, image)
    kill(listener.process.pid, signal.SIGSTOP)
    second = RawVm(t, 4 * MIB)
    second.hand_over(listener.path)
    kill(listener.process.pid, signal.SIGTERM)
    kill(listener.process.pid, signal.SIGCONT)
    check_content(t, second, data, "not yet accepted")
    t.equal(listener.process.wait(10), 0, "exit status")


@case("minivm.listen.no-process", "kernel", 40)
def no_process(t):
    """No process can be had: a VM that connects waits for one; one on another's connection is counted, and the
    listener ends all the same."""
    data, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, hooks={"fail_at": "listen-fork"})
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "it had to wait")
    t.check("has to wait" in listener.text(), f"it is said: {listener.text()}")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1)
    listener = Listener(t, image, hooks={"fail_at": "listen-fork-next"})
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("summary", vm.pid)
    vm.hand_over(listener.path, again=True)
    t.check(vm.closed(5), "the connection is closed")
    listener.check_served(1, refused=1)


@case("minivm.listen.detached", "kernel", 40)
def detached(t):
    """Returns once it listens; the rest is in the report."""
    data, image = random_memory(t, 4 * MIB)
    path, pidfile, report = t.path("l.sock"), t.path("pid"), t.path("report")
    result = vmsnap(t, "restore", "--listen", path, "--detach", "--pidfile", pidfile, "--report", report, image)
    t.equal(result.code, 0, result.text())
    pid = result.of_type("listening")[0]["listener_pid"]
    t.defer(kill, pid)
    with open(pidfile, encoding="ascii") as f:
        t.equal(int(f.read()), pid, "in the pidfile")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(path)
    check_content(t, vm, data, "detached")
    wait_until(lambda: report_lines(report, "summary"), 10, "the summary")
    vm.kill()
    wait_until(lambda: report_lines(report, "exit"), 10, "its end")
    kill(pid, signal.SIGTERM)
    wait_until(lambda: len(report_lines(report, "summary")) == 2, 10, "the last summary")
    wait_until(lambda: not is_alive(pid), 10, "its end")
    t.check(not os.path.exists(path) and not os.path.exists(pidfile), "nothing is left")


@case("minivm.listen.zombie", "kernel", 40)
def zombie(t):
    """The pidfile of a listener that was killed is free before anybody has waited for that one."""
    _, image = random_memory(t, 4 * MIB)
    pidfile = t.path("pid")
    first = Listener(t, image, "--pidfile", pidfile)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: process_state(first.pid) == "Z", 10, "a zombie")
    second = Listener(t, image, "--pidfile", pidfile)
    with open(pidfile, encoding="ascii") as f:
        t.equal(int(f.read()), second.pid, "in the pidfile")


@case("minivm.listen.report-again", "kernel", 40)
def report_again(t):
    """A listener that was killed is started again with the same report, while its VMs live; these go on there."""
    data, image = random_memory(t, 4 * MIB)
    path, pidfile, report = t.path("l.sock"), t.path("pid"), t.path("report")
    argv = ("restore", "--listen", path, "--detach", "--pidfile", pidfile, "--report", report, image)

    def started():
        result = vmsnap(t, *argv)
        t.equal(result.code, 0, result.text())
        pid = result.of_type("listening")[0]["listener_pid"]
        t.defer(kill, pid)
        return pid
    first, vms = started(), [RawVm(t, 4 * MIB), RawVm(t, 4 * MIB)]
    vms[0].hand_over(path)
    wait_until(lambda: report_lines(report, "summary", vms[0].pid), 10, "the summary")
    t.equal(vmsnap(t, *argv[:2], path + "2", *argv[3:]).code, 11, "while it lives")
    kill(first)
    wait_until(lambda: not is_alive(first), 5, "its end")
    os.unlink(pidfile)
    started()
    vms[1].hand_over(path)
    check_content(t, vms[1], data, "of the second listener")
    for vm in vms:
        dead = vm.pid
        vm.kill()
        wait_until(lambda pid=dead: report_lines(report, "exit", pid), 10, "its end")


@case("minivm.listen.closed", "kernel", 40)
def closed(t):
    """Started with its standard descriptors closed: nothing of it takes their numbers."""
    data, image = random_memory(t, 4 * MIB)
    path, report, pidfile = t.path("l.sock"), t.path("report"), t.path("pid")
    started = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&- 2>&-', "sh", tool("vmsnap"), "restore", "--listen", path,
                              "--detach", "--pidfile", pidfile, "--report", report, image], timeout=20, check=False,
                             stdout=subprocess.DEVNULL)
    t.equal(started.returncode, 0, "exit status")
    with open(pidfile, encoding="ascii") as f:
        t.defer(kill, int(f.read()))
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(path)
    check_content(t, vm, data, "with closed descriptors")
    wait_until(lambda: report_lines(report, "summary"), 10, "the summary")
    t.equal(report_lines(report, "error"), [], "errors")
    vm.kill()


@case("minivm.listen.ready", "kernel", 40)
def ready(t):
    """The service manager is told once it listens, and at the end; nothing of the single VMs."""
    need_library(t)
    data, image = random_memory(t, 4 * MIB)
    manager = Manager(t)
    listener = Listener(t, image)
    manager.wait_for(t, "READY=1")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    check_content(t, vm, data, "under a service manager")
    listener.wait_for("summary", vm.pid)
    listener.check_served(1)
    manager.wait_for(t, "STOPPING=1")
    t.equal(len([text for text in manager.told if "READY" in text]), 1, "once")
    t.check(not any("guest" in text for text in manager.told), f"{manager.told}")


@case("minivm.listen.ended", "kernel", 40)
def ended(t):
    """A VM that ends in the middle ends its own session, no other."""
    data, image = random_memory(t, 16 * MIB)
    listener = Listener(t, image, "--bwlimit", "8M")
    vms = [RawVm(t, 16 * MIB) for _ in range(2)]
    for vm in vms:
        vm.hand_over(listener.path)
        listener.wait_for("running", vm.pid)
    dead = vms[0].pid
    vms[0].kill()
    t.equal(listener.wait_for("summary", dead)["complete_ns"], None, "complete_ns")
    t.equal(listener.wait_for("exit", dead)["exit_status"], None, "exit_status")
    check_content(t, vms[1], data, "the other one")
    t.check(listener.wait_for("summary", vms[1].pid)["complete_ns"], "complete_ns")
    wait_until(lambda: not listener.servers(), 5, "the servers end")
    vms[1].kill()
    listener.check_served(2, complete=1)


@case("minivm.listen.dies-early", "kernel", 60)
def dies_early(t):
    """A VM that ends after its handoff and before its first fault, at each step of it: nothing is left of its session,
    and the next one is served."""
    data, image = random_memory(t, 4 * MIB)
    for point in ("listen-heard", "listen-checked", "listen-recorded", "listen-left", "listen-serving"):
        log, reached, go = pause_log(t)
        listener = Listener(t, image, "--no-fill", "--prefetch", "none", hooks={"pause_at": point, "pause_log": log})
        vm = RawVm(t, 4 * MIB)
        vm.hand_over(listener.path)
        reached(point)
        dead = vm.pid
        vm.kill()
        go()
        wait_until(lambda one=listener: not one.processes(), 10, f"{point}: its processes end")
        refused = 1 if point == "listen-heard" else 0
        told = listener.wait_for("error" if refused else "exit", dead)
        t.check(told.get("exit_code") in (None, 10), f"{point}: {told}")
        second = RawVm(t, 4 * MIB)
        second.hand_over(listener.path)
        check_content(t, second, data, f"after one that ended at {point}")
        second.kill()
        listener.check_served(2 - refused, refused=refused, complete=0)


@case("minivm.listen.report-full", "kernel", 40)
def report_full(t):
    """The disk that the report lies on is full later: who is served is served on, and those after him."""
    data, image = random_memory(t, 4 * MIB)
    path, pidfile, small = t.path("l.sock"), t.path("pid"), t.path("small")
    os.mkdir(small)
    t.need(t.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", small]).returncode == 0, "no mount here")
    t.defer(t.run, ["umount", "-l", small])
    report = os.path.join(small, "report")
    result = vmsnap(t, "restore", "--listen", path, "--detach", "--pidfile", pidfile, "--report", report, image)
    t.equal(result.code, 0, result.text())
    pid = result.of_type("listening")[0]["listener_pid"]
    t.defer(kill, pid)
    for name in (os.path.join(small, "ballast"), report): # the rest of its last page as well
        with open(name, "ab", 0) as f, contextlib.suppress(OSError):
            while f.write(bytes(256)):
                pass
    before = os.path.getsize(report)
    for n in (1, 2):
        vm = RawVm(t, 4 * MIB)
        vm.hand_over(path)
        check_content(t, vm, data, f"VM {n}, the disk full")
        wait_until(lambda pid=vm.pid: not is_registered(pid), 20, "all memory is in: no summary tells that")
        check_left(t, vm.pid, f"VM {n}, the disk full")
        vm.kill()
    t.equal(os.path.getsize(report), before, "bytes of the report: there was no room")
    kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), 10, "its end")
    t.check(not os.path.exists(path) and not os.path.exists(pidfile), "nothing is left")


@case("minivm.listen.immortal", "kernel", 40)
def immortal(t):
    """A VMM that makes the server's read of its userfaultfd wait, and ends: so does its session."""
    _, image = random_memory(t, 4 * MIB)
    listener = Listener(t, image, "--no-fill", "--prefetch", "none")
    vm = RawVm(t, 4 * MIB)
    vm.hand_over(listener.path)
    listener.wait_for("running", vm.pid)
    vm.make_blocking()
    vm.begin("digest", 0, 4 * MIB) # which is its own harm
    time.sleep(0.3)
    dead = vm.pid
    vm.kill()
    listener.wait_for("exit", dead)
    wait_until(lambda: not listener.processes(), 5, "its processes end")
    listener.check_served(1)


if __name__ == "__main__":
    main()
