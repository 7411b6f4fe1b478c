#!/usr/bin/python3
"""`vmsnap snapshot --api`, and what goes wrong: its processes are killed, what it needs is taken, the API or the VM
does not do as it should. minivm stands for Firecracker."""

import os
import shutil
import signal
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from apiproxy import ApiProxy, write_state  # noqa: E402
from case import case, main, wait_until  # noqa: E402
from fc_snapshot import check_no_litter, check_runs, check_whole, started, take  # noqa: E402
from firecracker import Api  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

POINTS = ("snapshot-before-pause", "source-before-stop", "source-after-stop", "source-after-state",
          "snapshot-armed", "source-before-cont", "source-after-cont", "snapshot-sweeping:5")


@case("minivm.firecracker.killed", "kernel", 90, lock="firecracker-places")
def killed(t):
    """The worker is killed at each step: the guardian lets the VM go and run, nothing is left behind."""
    vm = started(t)
    for point in POINTS:
        log, _, _ = pause_log(t)
        process = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                               hooks={"kill_at": point, "pause_log": log})
        ended = finish(t, process)
        t.check(os.path.exists(log), f"{point} is reached")
        t.equal(ended.code, 1, f"{point}: {ended.text()}")
        check_runs(t, vm, point)
    check_whole(t, vm, "workers killed")
    check_no_litter(t)
    take(t, vm, "afterwards")


@case("minivm.firecracker.all-killed", "kernel", 60, lock="firecracker-places")
def all_killed(t):
    """Worker and guardian are killed in the pause: the VM stays paused and answers nobody, until the next
    vmsnap that comes lets it go."""
    vm = started(t)
    log, reached, _ = pause_log(t)
    before = held()
    guardian = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                            hooks={"pause_at": "source-after-state", "pause_log": log})
    worker = reached("source-after-state")
    os.kill(worker, signal.SIGSTOP) # so that it does not end in order
    for pid in (guardian.pid, worker):
        os.kill(pid, signal.SIGKILL)
    guardian.communicate(timeout=5)
    left = held() - before
    t.equal(len(left), 1, f"what holds the VM: {left}")
    take(t, vm, "young", "--timeout", "500ms", expect=17)
    os.utime(left.pop(), (0, 0))
    result, _, _ = take(t, vm, "old", expect=3)
    t.check("a vmsnap that was killed" in result.summary["warnings"][0], f"{result.summary}")
    t.equal(Api(t, vm.api).get("/")["state"], "Paused", "as it was left")
    Api(t, vm.api).request("PATCH", "/vm", {"state": "Resumed"})
    check_whole(t, vm, "afterwards")
    check_no_litter(t)


def held():
    return {os.path.join("/dev/shm", n) for n in os.listdir("/dev/shm") if n.startswith(".vmsnap-")}


@case("minivm.firecracker.litter", "kernel", 60, lock="firecracker-places")
def litter(t):
    """What only looks like ours is left alone; what a vmsnap left that was killed while it removed it is not."""
    vm = started(t)
    number = int(t.run(["sh", "-c", "echo $$"]).stdout) # of a process that has ended
    base = f"/dev/shm/.vmsnap-{number}-"
    alike = [base + "0" * 16 + "0", base + "0" * 15, base + "notes", base + "1" * 16]
    left = [base + "a" * 16, base + "b" * 16 + ".gone", base + "c" * 16]
    for path in (*alike, *left):
        os.mkdir(path)
        t.defer(lambda path=path: shutil.rmtree(path, ignore_errors=True))
        with open(os.path.join(path, "state"), "wb"):
            pass
        if path in left:
            os.mkfifo(os.path.join(path, "memory"))
        os.utime(path, (0, 0))
    for name in ("state", "memory"):
        os.unlink(os.path.join(left[2], name)) # killed just before the last step
    os.utime(left[2], (0, 0))
    take(t, vm, "one")
    t.equal([p for p in alike if not os.path.exists(os.path.join(p, "state"))], [], "not ours, and removed")
    t.equal([p for p in left if os.path.exists(p)], [], "ours, and left")


@case("minivm.firecracker.late", "kernel", 60, lock="firecracker-places")
def late(t):
    """A request that the VMM comes to when it is given up finds no place to make a file as long as all memory."""
    vm = started(t)
    asked = []

    def rule(method, _target, body):
        if method == "PUT":
            asked.append(body)
            return "hang"
        return None
    proxy = ApiProxy(t, vm.api, rule)
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--api", proxy.path, "--pid", str(vm.pid), "--timeout", "600ms", t.path("none"),
                           hooks={"pause_at": "firecracker-releasing", "pause_log": log})
    reached("firecracker-releasing")
    for key in ("snapshot_path", "mem_file_path"):
        try:
            os.open(asked[0][key], os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK)
            t.check(False, f"{key} could be made")
        except FileNotFoundError:
            pass
    go()
    t.equal(finish(t, process).code, 17, "given up")
    check_runs(t, vm, "given up")
    check_no_litter(t)


@case("minivm.firecracker.place-taken", "kernel", 60, lock="firecracker-places")
def place_taken(t):
    """Who owns the place exchanges our directory for another: nothing in there changes its owner."""
    vm = started(t)
    before = held()
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                           hooks={"pause_at": "firecracker-place-made", "pause_log": log})
    reached("firecracker-place-made")
    made = (held() - before).pop()
    os.rmdir(made)
    os.mkdir(made, 0o700)
    t.defer(lambda: shutil.rmtree(made, ignore_errors=True))
    with open(os.path.join(made, "keys"), "wb"):
        pass
    go()
    ended = finish(t, process)
    t.equal(ended.code, 10, ended.text())
    t.check("cannot make a place" in ended.error["message"], f"{ended.error}")
    t.equal(os.listdir(made), ["keys"], "what lay there")
    check_runs(t, vm, "refused")


@case("minivm.firecracker.asked-again", "kernel", 60, lock="firecracker-places")
def asked_again(t):
    """The worker dies in the pause, and what the guardian asks gets no good answer at first: it asks again."""
    vm = started(t)
    left = []

    def rule(_method, _target, body):
        if body == {"state": "Paused"}:
            left.extend([(503, {"fault_message": "busy"}), "cut", (200, [1])] * 2)
            return None
        return left.pop() if left else None
    proxy = ApiProxy(t, vm.api, rule)
    process = start_vmsnap(t, "snapshot", "--api", proxy.path, "--pid", str(vm.pid), t.path("none"),
                           hooks={"kill_at": "source-after-stop", "pause_log": t.path("log")})
    t.equal(finish(t, process).code, 1, "killed")
    t.equal(left, [], "answers that are no good")
    check_runs(t, vm, "killed")


@case("minivm.firecracker.cut-off", "kernel", 60, lock="firecracker-places")
def cut_off(t):
    """The connection of the request ends while the VMM is held: nobody knows whether it was until the end."""
    vm = started(t)
    cut = threading.Event()

    def rule(method, target, body):
        if method != "PUT":
            return None
        threading.Thread(target=pass_on, args=(t, vm, target, body), daemon=True).start()
        cut.wait(20)
        return "cut"
    proxy = ApiProxy(t, vm.api, rule)
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--api", proxy.path, "--pid", str(vm.pid), t.path("none"),
                           hooks={"pause_at": "source-after-state", "pause_log": log})
    reached("source-after-state")
    cut.set()
    wait_until(lambda: proxy.n_cut, 5, "the connection is cut")
    go()
    ended = finish(t, process)
    t.equal(ended.code, 10, ended.text())
    t.check("PUT /snapshot/create" in ended.error["message"], f"{ended.error}")
    check_runs(t, vm, "cut off")
    check_no_litter(t)


def pass_on(t, vm, target, body):
    try:
        Api(t, vm.api).request("PUT", target, body)
    except (OSError, AssertionError):
        pass # it fails, as it is to


@case("minivm.firecracker.other-pid", "kernel", 60, lock="firecracker-places")
def other_pid(t):
    """The state of one VM and the memory of another are no snapshot."""
    vm, other = started(t), started(t)
    refused, _, _ = take(t, vm, "mixed", "--pid", str(other.pid), "--timeout", "2s", expect=10)
    t.check(f"process {other.pid} is not" in refused.error["message"], f"{refused.error}")
    for one in (vm, other):
        check_runs(t, one, "refused")
    check_no_litter(t)


@case("minivm.firecracker.hangs", "kernel", 60, lock="firecracker-places")
def hangs(t):
    """An API that does not answer, at each request: exit 17 in time, the guest runs wherever that can be had."""
    vm = started(t)
    for at in (("GET", "/"), ("GET", "/machine-config"), ("GET", "/vm/config"), ("PATCH", "/vm"),
               ("PUT", "/snapshot/create")):
        once = [at]

        def rule(method, target, body, once=once):
            if body == {"state": "Resumed"} or (method, target) not in once:
                return None
            once.remove((method, target))
            return "hang"
        proxy = ApiProxy(t, vm.api, rule)
        result, _, _ = take(t, vm, "none", "--pid", str(vm.pid), "--timeout", "600ms", api=proxy.path, expect=17)
        t.check("reply" in result.error["message"] or "no state" in result.error["message"], f"{at}: {result.error}")
        check_runs(t, vm, f"{at} hangs")
    check_whole(t, vm, "afterwards")
    check_no_litter(t)


@case("minivm.firecracker.refuses", "kernel", 60, lock="firecracker-places")
def refuses(t):
    """What the VMM refuses is told, and the guest goes on; so with answers that make no sense."""
    vm = started(t)
    no = (400, {"fault_message": "not today"})
    rules = {
        "pause": (lambda m, p, b: no if b == {"state": "Paused"} else None, 10, "not today"),
        "create": (lambda m, p, b: no if m == "PUT" else None, 16, "not today"),
        "cut": (lambda m, p, b: "cut" if m == "PUT" else None, 10, "API socket"),
        "garbled": (lambda m, p, b: (200, [1, 2]) if p == "/" else None, 10, "GET /"),
        "huge": (lambda m, p, b: (200, {"state": "x" * 2000000}) if p == "/" else None, 10, "longer than"),
        "not-started": (lambda m, p, b: (200, {"state": "Not started"}) if p == "/" else None, 10, "not started"),
        "other-size": (lambda m, p, b: (200, {"mem_size_mib": 77}) if p == "/machine-config" else None, 2, "77 MiB"),
        "no-size": (lambda m, p, b: (200, {"mem_size_mib": -1}) if p == "/machine-config" else None, 10, "mem_size"),
        "drives": (lambda m, p, b: (200, {"drives": [{"drive_id": "rootfs", "is_read_only": False}]})
                   if p == "/vm/config" else None, 14, "disks"),
    }
    for name, (rule, code, words) in rules.items():
        proxy = ApiProxy(t, vm.api, rule)
        result, _, _ = take(t, vm, "none", "--pid", str(vm.pid), api=proxy.path, expect=code)
        t.check(words in result.error["message"], f"{name}: {result.error}")
        t.check(not os.path.exists(t.path("none.img")) and not os.path.exists(t.path("none.state")), f"{name}: files")
        check_runs(t, vm, name)
    proxy = ApiProxy(t, vm.api, rules["drives"][0])
    take(t, vm, "allowed", "--pid", str(vm.pid), "--allow", "disks", api=proxy.path)
    proxy = ApiProxy(t, vm.api, lambda m, p, b: (404, {}) if p == "/vm/config" else None)
    result, _, _ = take(t, vm, "untold", "--pid", str(vm.pid), api=proxy.path, expect=3)
    t.check("does not tell" in result.summary["warnings"][0], f"{result.summary}")
    check_whole(t, vm, "afterwards")


@case("minivm.firecracker.bad-state", "kernel", 60, lock="firecracker-places")
def bad_state(t):
    """A state file that is not complete is not taken; nor is a VM that goes on with its devices before its
    memory is protected."""
    vm = started(t)

    def writes(data):
        def rule(method, _target, body):
            if method == "PUT":
                write_state(body["snapshot_path"], data)
                return "hang"
            return None
        return rule

    def not_held(method, _target, body):
        return {**body, "mem_file_path": body["snapshot_path"] + "/none"} if method == "PUT" else None
    cases = [(writes(b"no check sum at all"), ("check sum",)), (writes(b""), ("empty",)),
             (not_held, ("before its memory was protected", "status 400"))]
    for rule, words in cases:
        proxy = ApiProxy(t, vm.api, rule)
        result, _, _ = take(t, vm, "none", "--pid", str(vm.pid), "--timeout", "1s", api=proxy.path, expect=16)
        t.check(any(w in result.error["message"] for w in words), f"{words}: {result.error}")
        check_runs(t, vm, words[0])
    check_no_litter(t)
    check_whole(t, vm, "afterwards")


@case("minivm.firecracker.state-hangs", "kernel", 60, lock="firecracker-places")
def state_hangs(t):
    """The storage of the state file hangs: a signal ends vmsnap there; the image is whole, of the other is nothing."""
    vm = started(t)
    os.mkdir(t.path("out"))
    image, state = t.path("out/image"), t.path("out/state")
    for mask, number, code in (("", signal.SIGTERM, 143), ("file.tmpfile", signal.SIGINT, 130)):
        log, reached, _ = pause_log(t)
        process = start_vmsnap(t, "snapshot", "--api", vm.api, "--overwrite", "--vmstate", state, image,
                               hooks={"pause_at": "firecracker-state-file", "pause_log": log, "mask_features": mask})
        reached("firecracker-state-file")
        process.send_signal(number)
        ended = finish(t, process)
        t.equal(ended.code, code, ended.text())
        t.equal(os.listdir(t.path("out")), ["image"], f"files, masked: {mask}")
        t.equal(vmsnap(t, "verify", image).code, 0, "the image")
        check_runs(t, vm, "interrupted")


@case("minivm.firecracker.ends", "kernel", 60, lock="firecracker-places")
def ends(t):
    """The VMM dies in the pause: exit 10, nothing published. Nobody listens: the same."""
    vm = started(t)
    log, reached, go = pause_log(t)
    process = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                           hooks={"pause_at": "source-after-stop", "pause_log": log})
    reached("source-after-stop")
    vm.process.kill()
    vm.process.wait(5)
    go()
    ended = finish(t, process)
    t.equal((ended.code, ended.error["guest_state"]), (10, "ended"), f"killed: {ended.text()}")
    t.check(not os.path.exists(t.path("none")), "nothing is published")
    nobody = vmsnap(t, "snapshot", "--api", vm.api, t.path("none"))
    t.equal(nobody.code, 10, nobody.text())
    check_no_litter(t)


@case("minivm.firecracker.usage", "cli", 20, lock="firecracker-places")
def usage(t):
    image = t.path("image")
    for words in (("--api", "a", "--qmp", "b"), (), ("--qmp", "b", "--map", "1:2"), ("--qmp", "b", "--vmstate", "s")):
        t.equal(vmsnap(t, "snapshot", *words, image).code, 2, f"{words}")
    with open(t.path("there"), "w", encoding="ascii"):
        pass
    there = vmsnap(t, "snapshot", "--api", "a", "--vmstate", t.path("there"), image)
    t.equal(there.code, 1, f"a state file that is there: {there.text()}")


if __name__ == "__main__":
    main()
