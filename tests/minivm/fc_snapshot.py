#!/usr/bin/python3
"""`vmsnap snapshot --api`: a VM behind Firecracker's API, taken while it runs, served to another one by `restore
--listen`, and taken again from that; and whatever may go wrong in between. minivm stands for Firecracker."""

import os
import shutil
import signal
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from apiproxy import ApiProxy, write_state  # noqa: E402
from case import case, is_alive, main, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from listener import Listener  # noqa: E402
from minivm import MiniVm, MiniVmPlace, end_and_wait, judge_memory, need_huge_pages  # noqa: E402
from vmsnap import finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

SIZES = ("--memory", "64M", "--populate", "48M", "--cpus", "2")
POINTS = ("snapshot-before-pause", "source-before-stop", "source-after-stop", "source-after-state",
          "snapshot-armed", "source-before-cont", "source-after-cont", "snapshot-sweeping:5")


def with_api(t, *options):
    path = t.path(t.unique("api") + ".sock")
    vm = MiniVm(t, *options, "--api", path)
    vm.api = path
    return vm


def started(t, *options):
    vm = with_api(t, *SIZES, "--pattern", "random", *options)
    vm.wait_for_writes(5000)
    return vm


def take(t, vm, stem, *options, expect=0, api=None, **more):
    """`snapshot --api`: (Result, image, state file)."""
    image, state = t.path(stem + ".img"), t.path(stem + ".state")
    result = vmsnap(t, "snapshot", "--api", api or vm.api, "--vmstate", state, *options, image, **more)
    t.equal(result.code, expect, f"{stem}: {result.text()}")
    return result, image, state


def check_no_litter(t):
    """Nothing of ours lies where the VMM's files were, and no FIFO holds it."""
    mine = [n for d in ("/dev/shm", "/run", "/tmp", "/") for n in os.listdir(d) if n.startswith(".vmsnap-")
            and not is_alive(int(n.split("-")[1]))]
    t.equal(mine, [], "litter")


def check_runs(t, vm, what):
    t.equal(Api(t, vm.api).get("/")["state"], "Running", f"{what}: state")
    vm.wait_for_writes(500)


def serve(t, image, state, *options):
    """(the VM that goes on from there, the listener); its memory is complete."""
    listener = Listener(t, image)
    vm = with_api(t, "--vmstate", state, "--uffd-backend", listener.path, *options)
    wait_until(lambda: listener.of_type("summary"), 30, f"the last page is in: {listener.text()}")
    return vm, listener


def check_whole(t, vm, what):
    vm.wait_for_writes(2000)
    vm.stop()
    vm.check_right(what)
    vm.cont()


def region_maps(vm):
    """--map for each block, in the order of offsets."""
    found = []
    for block in vm.description["memory"]:
        found += ["--map", f"{block['hva']:#x}:{block['bytes']}"]
    return found


# ---- what is to work

@case("minivm.firecracker.generations", "kernel", 60, lock="firecracker-places")
def generations(t):
    """Taken while it runs; served to a second VM; that one taken and served to a third. Every page right, the
    state file in the image the same as the one beside it."""
    vm = started(t)
    for n in (1, 2):
        result, image, state = take(t, vm, f"generation{n}")
        t.check(result.summary["pause_ns"] < 5e9, f"{result.summary}")
        t.equal((result.summary["vm_name"], result.summary["warnings"]), ("anonymous-instance", []), "summary")
        check_runs(t, vm, f"generation {n}")
        again = t.path("again")
        t.equal(vmsnap(t, "export", "--overwrite", "--format", "vmstate", image, again).code, 0, "export")
        with open(state, "rb") as a, open(again, "rb") as b:
            t.check(a.read() == b.read(), "the state file and that in the image")
        check_whole(t, vm, f"the VM that generation {n} was taken of")
        end_and_wait(vm)
        vm, _ = serve(t, image, state)
        check_whole(t, vm, f"generation {n}, served")
    check_no_litter(t)


@case("minivm.firecracker.memory-file", "kernel", 60, lock="firecracker-places")
def memory_file(t):
    """The image is what Firecracker would have written itself: the memory of one instant."""
    vm = started(t)
    _, image, _ = take(t, vm, "one")
    t.equal(vmsnap(t, "export", "--format", "raw", image, t.path("mem")).code, 0, "export")
    with open(t.path("mem"), "rb") as f:
        t.equal(judge_memory(f.read()), [], "the memory")


@case("minivm.firecracker.regions", "kernel", 60, lock="firecracker-places")
def regions(t):
    """Several regions that no layout of Firecracker's has: never guessed, but listed; taken as they are named, in
    their order, and served."""
    vm = started(t, "--regions", "2")
    refused, image, state = take(t, vm, "regions", expect=2)
    t.check(f"{vm.ram['hva']:#x}" in refused.error["message"], f"candidates: {refused.error}")
    t.check("--map" in refused.error["hint"], f"what to do: {refused.error}")
    t.equal(vmsnap(t, "check", "--api", vm.api).code, 2, "check")
    maps = region_maps(vm)
    t.equal(vmsnap(t, "check", "--api", vm.api, *maps).code, 0, "check with --map")
    for bad in (maps[:2], [*maps, "--map", "0x1000:1048576"], ["--map", "nonsense"], [*maps[:2], *maps[:2]]):
        take(t, vm, "bad", *bad, expect=2)
    take(t, vm, "regions", *maps)
    end_and_wait(vm)
    vm, _ = serve(t, image, state)
    check_whole(t, vm, "two regions")


@case("minivm.firecracker.huge", "kernel", 60, lock="hugepages")
def huge(t):
    """Memory in huge pages of 2 MiB."""
    need_huge_pages(t, 70)
    vm = started(t, "--hugetlb")
    _, image, state = take(t, vm, "huge")
    check_whole(t, vm, "the VM that it was taken of")
    end_and_wait(vm)
    vm, _ = serve(t, image, state, "--hugetlb")
    check_whole(t, vm, "huge pages, served")


@case("minivm.firecracker.paused", "kernel", 60, lock="firecracker-places")
def paused(t):
    """A VM that was paused before stays so, and is not held."""
    vm = started(t)
    vm.stop()
    _, image, state = take(t, vm, "paused")
    t.equal(Api(t, vm.api).get("/")["state"], "Paused", "state")
    log, _, _ = pause_log(t)
    for point in ("source-after-state", "snapshot-armed"):
        process = start_vmsnap(t, "snapshot", "--api", vm.api, t.path("none"),
                               hooks={"kill_at": point, "pause_log": log})
        t.equal(finish(t, process).code, 1, f"killed at {point}")
        t.equal(Api(t, vm.api).get("/")["state"], "Paused", f"killed at {point}: state")
    vm.check_right("a VM that was paused")
    end_and_wait(vm)
    vm, _ = serve(t, image, state)
    check_whole(t, vm, "taken of a paused VM")
    check_no_litter(t)


@case("minivm.firecracker.other-root", "kernel", 60, lock="firecracker-places")
def other_root(t):
    """A VMM with file systems of its own, and another user, as a jailed one: its paths are not ours."""
    path = t.path("jailed.sock")
    os.chmod(t.dir, 0o777)
    place = MiniVmPlace(t, *SIZES, "--api", path, accel="threads")
    argv = ["unshare", "--mount", "sh", "-c",
            'mount -t tmpfs -o mode=1777 none /dev/shm && exec setpriv --reuid=nobody --regid=nogroup '
            '--clear-groups "$@"', "sh", *place.argv()]
    process = t.spawn(argv)
    wait_until(lambda: os.path.exists(path) and os.path.exists(place.control), 10, "the VMM is there")
    place.pid, place.api = process.pid, path
    place.connect()
    with open(f"/proc/{place.pid}/status", encoding="ascii") as f:
        t.check("Uid:\t0" not in f.read(), "the VMM must not run as root")
    place.wait_for_writes(2000)
    _, image, state = take(t, place, "jailed")
    t.equal(os.listdir(f"/proc/{place.pid}/root/dev/shm"), [], "nothing is left in its root")
    check_whole(t, place, "jailed")
    end_and_wait_process(place, process)
    vm, _ = serve(t, image, state)
    check_whole(t, vm, "taken of a jailed VM")


def end_and_wait_process(vm, process):
    vm.qmp.command("quit")
    process.wait(5)


@case("minivm.firecracker.filling", "kernel", 60, lock="firecracker-places")
def filling(t):
    """Refused as long as the page-fault backend brings memory in."""
    vm = started(t)
    _, image, state = take(t, vm, "one")
    end_and_wait(vm)
    listener = Listener(t, image, "--bwlimit", "1M", "--prefetch", "none")
    vm = with_api(t, "--vmstate", state, "--uffd-backend", listener.path, "--paused")
    refused, _, _ = take(t, vm, "none", expect=11)
    t.check("bringing its memory in" in refused.error["message"], f"why: {refused.error}")
    t.equal(vmsnap(t, "check", "--api", vm.api).code, 11, "check")
    vm.cont()
    check_runs(t, vm, "refused")


# ---- what goes wrong

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
