#!/usr/bin/python3
"""An image is damaged, or can't be read, while its guest runs: `restore --on-damage`."""

import ctypes
import os
import shutil
import signal
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, is_alive, kill, main, open_files, process_name, wait_until  # noqa: E402
from minivm import PAGE, MiniVmPlace, need_huge_pages, take_image  # noqa: E402
from slowfile import SlowFile  # noqa: E402
from vmsnap import Restore, finish, pause_log, start_vmsnap, vmsnap  # noqa: E402

try:
    from imagefile import damage_cluster, damage_clusters, stored_clusters
except ImportError: # no python3-xxhash
    damage_cluster = None

CLUSTER = 4 * PAGE
CPUS = 2
SIZES = ("--memory", "24M", "--populate", "16M", "--cpus", str(CPUS))


def places_of(t, image):
    """{cluster: (offset, length) of its record in the file}, in order, of all that hold anything."""
    t.need(damage_cluster, "no xxhash module for Python")
    with open(image, "rb") as f:
        return dict(sorted(stored_clusters(f.read()).items()))


def damage_middle(t, image):
    """A copy of the image with one cluster of the populated memory damaged: (path, cluster, file
    offset)."""
    bad = image + ".bad"
    shutil.copyfile(image, bad)
    clusters = list(places_of(t, image))
    cluster = clusters[len(clusters) // 2]
    offset = damage_cluster(bad, cluster)
    t.say(f"cluster {cluster} is damaged, at {offset} in the file")
    return bad, cluster, offset


def content_of(t, image):
    raw = image + ".raw"
    t.equal(vmsnap(t, "export", "--format", "raw", "--region", "ram", image, raw).code, 0, "export")
    with open(raw, "rb") as f:
        return f.read()


def unreadable_pages(t, place, wanted):
    """Reads all of the guest's memory: the pages that can't be read. All others are right, less those
    of the vCPUs' states, which the VMM writes."""
    found, fd = set(), os.open(f"/proc/{place.pid}/mem", os.O_RDONLY)
    for page in range(place.pages):
        try:
            there = os.pread(fd, PAGE, place.ram["hva"] + page * PAGE)
        except OSError:
            found.add(page)
            continue
        right = wanted[page * PAGE:(page + 1) * PAGE].ljust(PAGE, b"\0")
        t.check(there == right or page < CPUS, f"page {page} is right")
    os.close(fd)
    return found


def check_error(t, error, cluster, offset):
    t.equal(error["exit_code"], 13, "exit_code")
    for text in (f"0x{cluster * CLUSTER:x}", f"file offset {offset}", "'ram'"):
        t.check(text in error["message"], f"'{text}' in '{error['message']}'")


def poison_one(t, kind, unit=4):
    image = take_image(t, *SIZES, "--kind", kind)
    bad, cluster, offset = damage_middle(t, image)
    place = MiniVmPlace(t, *SIZES, "--kind", kind)
    restored = Restore(t, bad, place, "--paused", "--on-damage", "poison").wait_running()
    summary = restored.wait_complete()
    t.equal((summary["clusters_damaged"], summary["pages_poisoned"]), (1, unit), "in the summary")
    t.check(summary["complete_ns"], f"all that can be had is in: {summary}")
    check_error(t, restored.result().error, cluster, offset)
    t.check("poisoned" in restored.result().error["hint"], "what became of it")
    links = open_files(place.pid)
    t.check(not any("userfaultfd" in link for link in links), f"its descriptors: {links}")
    t.equal(unreadable_pages(t, place, content_of(t, image)),
            set(range(4 * cluster // unit * unit, 4 * cluster // unit * unit + unit)), "poisoned pages")
    restored.end()


@case("minivm.damage.poison", "kernel", 60)
def poison(t):
    """Exactly the pages of the damaged cluster are poisoned; the restore comes to its end."""
    for kind in ("anon", "memfd"):
        poison_one(t.sub(), kind)


@case("minivm.damage.poison-ends", "kernel", 60)
def poison_ends(t):
    """A VMM without KVM dies of what is poisoned: warned of, and said when it has happened. A takeover by hand
    that poisons ends with a warning's exit status."""
    sizes = (*SIZES, "--accel", "threads")
    image = take_image(t, *sizes)
    bad, cluster, _ = damage_middle(t, image)
    place = MiniVmPlace(t, *sizes)
    restored = Restore(t, bad, place, "--paused", "--on-damage", "poison").wait_running()
    restored.wait_complete()
    t.check("with KVM only" in restored.result().err, f"a warning: {restored.result().err}")
    place.cont()
    t.equal(restored.process.wait(20), 128 + signal.SIGBUS, "exit status")
    t.check("ended by SIGBUS" in restored.result().err, f"why: {restored.result().err}")

    place = MiniVmPlace(t, *sizes)
    restored = Restore(t, bad, place, "--paused", "--no-fill").wait_running()
    kill_all(restored.process)
    done = vmsnap(t, "restore", "--resume", str(place.pid), "--on-damage", "poison", bad)
    t.equal(done.code, 3, f"of a takeover: {done.text()}")
    t.equal(done.summary["pages_poisoned"], 4, "in its summary")
    t.equal(unreadable_pages(t, place, content_of(t, image)), set(range(4 * cluster, 4 * cluster + 4)),
            "poisoned pages")


@case("minivm.damage.poison-huge", "kernel", 60, lock="hugepages")
def poison_huge(t):
    """Of memory on hugetlbfs the huge page is."""
    need_huge_pages(t, 24)
    poison_one(t, "hugetlbfs", 512)


@case("minivm.damage.stop-huge", "kernel", 60, lock="hugepages")
def stop_huge(t):
    """The guest waits at a huge page of which a part is damaged, and nowhere else; with a sound copy it goes
    on."""
    need_huge_pages(t, 24)
    image = take_image(t, *SIZES, "--kind", "hugetlbfs")
    bad, cluster, offset = damage_middle(t, image)
    place = MiniVmPlace(t, *SIZES, "--kind", "hugetlbfs")
    restored = wait_at_damage(t, bad, place)
    check_error(t, restored.result().of_type("error")[0], cluster, offset)
    check_stands(t, place)
    page = 4 * cluster // 512 * 512
    for there in (page - 512, page + 512):
        t.check(demand_page(place, there + 3) is not None, f"page {there + 3} is served")
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"a sound copy: {done.text()}")
    check_goes_on(place, "taken over")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.damage.poison-refused", "kernel", 60)
def poison_refused(t):
    """A kernel that can't poison: refused before anything is started, and on a takeover too."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    for what in ([image, "--", *place.argv()], ["--resume", str(os.getpid())]):
        result = vmsnap(t, "restore", "--on-damage", "poison", *what, hooks={"mask_features": "poison"})
        t.equal(result.code, 12, f"exit status: {result.text()}")
        t.check("6.6" in result.error["message"], f"why: {result.error}")
    t.check(not os.path.exists(place.control), "nothing was started")
    t.equal(vmsnap(t, "restore", "--on-damage", "panic", image).code, 2, "no such way")


def check_goes_on(place, what):
    place.wait_for_writes(2000)
    place.stop()
    place.check_right(what)


def wait_at_damage(t, bad, place):
    """A guest that has come to the damage: the restore that goes on serving it."""
    restored = Restore(t, bad, place).wait_running()
    wait_for_state(restored, "waiting")
    return restored


def wait_for_state(restored, state):
    """Until an error has said so of the guest."""
    wait_until(lambda: state in [e["guest_state"] for e in restored.result().of_type("error")], 20, state)


@case("minivm.damage.resume", "kernel", 60)
def resume(t):
    """The guest waits at the damage, served by a vmsnap that lives. With a sound copy another takes it
    over from that one; without one it doesn't. Who asks for it and dies does no harm."""
    image = take_image(t, *SIZES)
    bad, cluster, offset = damage_middle(t, image)
    place = MiniVmPlace(t, *SIZES)
    restored = wait_at_damage(t, bad, place)
    check_error(t, restored.result().of_type("error")[0], cluster, offset)
    hint = restored.result().of_type("error")[0]["hint"]
    t.check(f"--resume {place.pid} IMAGE" in hint, f"what to do: {hint}")
    plain = vmsnap(t, "restore", "--resume", str(place.pid))
    t.equal(plain.code, 11, f"it is served: {plain.text()}")
    t.equal(plain.error["guest_state"], "unknown", "that guest waits or not: its server knows")
    killed = vmsnap(t, "restore", "--resume", str(place.pid), image,
                    hooks={"kill_at": "asked-for-guest", "pause_log": t.path("killed"),
                           "break": "not-supervised"})
    t.equal(killed.code, -9, f"killed: {killed.text()}")
    time.sleep(4) # nobody came for the guest: it is served again, and what is damaged still waits
    check_stands(t, place)
    flags = set(place.mapping()[1]["VmFlags"].split())
    t.check("um" in flags, f"its memory is registered still: {flags}")
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"a sound copy: {done.text()}")
    t.check(done.summary["complete_ns"], f"all is in: {done.summary}")
    t.equal(restored.process.poll(), None, "the first one stays until the VMM's end")
    check_goes_on(place, "taken over")
    result = restored.end()
    t.equal(result.code, 0, f"the VMM's exit status: {result.text()}")
    t.equal(result.summary.get("handed_over"), True, f"what it says: {result.summary}")


@case("minivm.damage.much", "kernel", 60)
def much(t):
    """More places are damaged than are named, and errors come faster than they are told: the guest waits,
    and from then on nothing says otherwise."""
    image = take_image(t, *SIZES)
    bad = image + ".bad"
    shutil.copyfile(image, bad)
    clusters = list(places_of(t, image))[1::4]
    damage_clusters(bad, clusters)
    t.check(len(clusters) > 100, f"{len(clusters)} clusters are damaged")
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, bad, place).wait_running()
    # On a busy machine that word is one of those for which there was no room; their number is told then.
    wait_for_error(restored, "not named", "more errors")
    wait_for_state(restored, "waiting")
    check_stands(t, place)
    states = [e["guest_state"] for e in restored.result().of_type("error")]
    t.equal(states[states.index("waiting"):], ["waiting"] * (len(states) - states.index("waiting")),
            f"what is said of the guest: {states}")
    os.kill(restored.process.pid, signal.SIGUSR1)
    line = wait_until(lambda: [line for line in restored.result().err.split("\n")
                               if line.startswith("vmsnap: filled")], 5, "an answer to SIGUSR1")[0]
    t.check(line.endswith("can't be restored; guest waits") and "100 %" not in line, f"it says: {line}")
    os.kill(place.pid, signal.SIGSTOP) # stands for QEMU, which ends no more while a vCPU waits
    restored.process.send_signal(signal.SIGINT)
    wait_until(lambda: "has not ended 3 s after signal 2" in restored.result().err, 10,
               "a word about the VMM that does not end")
    restored.process.send_signal(signal.SIGINT)
    t.equal(restored.process.wait(10), 137, "the second one kills it")


def kill_all(process, name="vmsnap"):
    """Kills it and all of that name below it."""
    for pid in [process.pid, *descendants(process.pid)]:
        if process_name(pid).startswith(name):
            kill(pid)
    process.wait(5)


@case("minivm.damage.stand-by", "kernel", 60)
def stand_by(t):
    """Another image does not make a server give way; and if the one that it gave way to dies, it serves
    again."""
    image = take_image(t, *SIZES)
    other_image = take_image(t, *SIZES)
    bad, _, _ = damage_middle(t, image)
    place = MiniVmPlace(t, *SIZES)
    restored = wait_at_damage(t, bad, place)
    other = vmsnap(t, "restore", "--resume", str(place.pid), other_image)
    t.equal(other.code, 15, f"another image: {other.text()}")
    t.check("gives way" not in restored.result().err and "from here on" not in restored.result().err,
            f"nobody gave way: {restored.result().err}")
    log, reached, _ = pause_log(t)
    second = start_vmsnap(t, "restore", "--resume", str(place.pid), image,
                          hooks={"pause_at": "resume-taken", "pause_log": log})
    reached("resume-taken")
    kill_all(second)
    time.sleep(2)
    plain = vmsnap(t, "restore", "--resume", str(place.pid))
    t.equal(plain.code, 11, f"the first serves again: {plain.text()}")
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"a sound copy: {done.text()}")
    check_goes_on(place, "taken over, back, and over again")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.damage.no-trouble", "kernel", 60)
def no_trouble(t):
    """One whose image is sound does not give its guest away."""
    image = take_image(t, *SIZES)
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--no-fill", "--paused").wait_running()
    other = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(other.code, 11, f"it is served: {other.text()}")
    t.equal(other.error["guest_state"], "paused", f"it waits for nothing: {other.error}")
    t.check("no trouble" in other.error["hint"], f"why: {other.error}")
    place.cont()
    place.wait_for_writes(2000)
    restored.end()


# ---- storage that fails ----

def upper_half(t, image):
    """The places (offset, length) in the file of the clusters in the upper half of memory."""
    places = list(places_of(t, image).values())
    return places[len(places) // 2:]


def restore_slowly(t, what, *args):
    """A guest whose image's storage fails or hangs (`what`) for the upper half of its memory."""
    image = take_image(t, *SIZES)
    slow = SlowFile(t, image)
    if what:
        getattr(slow, what)(upper_half(t, image))
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, slow.path, place, *args).wait_running()
    return image, slow, place, restored


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


def demand_page(place, page):
    """A page of the guest, brought in if it is not there (/proc/PID/mem does not wait for that); None: it
    can't be read."""
    buffer = ctypes.create_string_buffer(PAGE)
    mine = _Iovec(ctypes.addressof(buffer), PAGE)
    other = _Iovec(place.ram["hva"] + page * PAGE, PAGE)
    n = ctypes.CDLL(None).process_vm_readv(place.pid, ctypes.byref(mine), ctypes.c_ulong(1),
                                           ctypes.byref(other), ctypes.c_ulong(1), ctypes.c_ulong(0))
    return buffer.raw if n == PAGE else None


def wait_for_error(restored, *texts, seconds=20):
    """An error that says one of these."""
    def found():
        return [e for e in restored.result().of_type("error") if any(text in e["message"] for text in texts)]
    return wait_until(found, seconds, f"an error that says one of {texts}")[0]


def check_stands(t, place):
    """It comes to where each vCPU waits, which on a busy machine takes a while."""
    def stands():
        before = place.writes()
        time.sleep(0.4)
        return place.writes() == before
    wait_until(stands, 10, "the guest waits")
    t.equal(place.stats()["wrong_pages"], 0, "wrong pages that it found")


def start_while_reading(t, line, *args):
    """A restore whose image is being read ahead, in a process that does not get on, when `line` (of the
    shell; it is not a VMM) does what is behind `until` in it."""
    image = take_image(t, *SIZES)
    slow = SlowFile(t, image)
    log, reached, _ = pause_log(t)
    until = f"until grep -q reader-ahead {log}; do sleep 0.05; done 2>/dev/null"
    process = start_vmsnap(t, "restore", "--timeout", "200s", slow.path, "--", "sh", "-c",
                           line.format(until=until), *args,
                           hooks={"pause_at": "reader-ahead", "pause_log": log})
    return process, reached("reader-ahead")


@case("minivm.damage.no-start", "kernel", 60)
def no_start(t):
    """A VMM that ends instead of coming up is noticed at once, however long the image is being read; with
    a wrapper that has left it to us as well. Nothing is left."""
    for line, code in (("{until}; exit 3", 3), ("({until}; sleep 0.3; exit 5) & exit 0", 0)):
        process, reader = start_while_reading(t.sub(), line)
        result = finish(t, process, 15)
        t.equal(result.code, 16, f"exit status: {result.text()}")
        t.check(f"ended with status {code}" in result.error["message"], f"why: {result.error}")
        wait_until(lambda pid=reader: not is_alive(pid), 5, "the reader is gone")


@case("minivm.damage.no-start-signal", "kernel", 60)
def no_start_signal(t):
    """Whoever breaks off a start needs no patience either."""
    process, reader = start_while_reading(t, "{until}; exec sleep 100")
    process.terminate()
    t.equal(finish(t, process, 15).code, 143, "exit status")
    wait_until(lambda: not is_alive(reader), 5, "the reader is gone")


@case("minivm.damage.io-error", "kernel", 60)
def io_error(t):
    """Clusters that can't be read for now: the guest waits, and goes on by itself when they can."""
    _, slow, place, restored = restore_slowly(t, "fail")
    error = wait_for_error(restored, "can't be read now")
    for text in ("'ram'", "file offset", "Input/output error"):
        t.check(text in error["message"], f"'{text}' in '{error['message']}'")
    wait_for_state(restored, "waiting")
    check_stands(t, place)
    t.equal(restored.result().of_type("summary"), [], "it is not through")
    slow.work()
    summary = restored.wait_complete(30)
    t.equal((summary["clusters_damaged"], bool(summary["complete_ns"])), (0, True), "in the summary")
    check_goes_on(place, "after errors")
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.damage.stall", "kernel", 60)
def stall(t):
    """The storage hangs: said, with the place; all that is not there is served on; and another copy can
    be given to a new server, while the old one lives."""
    image, slow, place, restored = restore_slowly(t, "hang")
    error = wait_for_error(restored, "does not answer")
    t.check("'ram'" in error["message"] and "file offset" in error["message"], f"where: {error}")
    check_stands(t, place)
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"another copy: {done.text()}")
    check_goes_on(place, "taken over")
    slow.work()
    t.equal(restored.end().code, 0, "exit status")


@case("minivm.damage.readers-rank", "kernel", 60)
def readers_rank(t):
    """Who reads for the background comes behind the guest, and who reads what the guest waits for does
    not; neither only gets CPUs that nobody wants."""
    _, slow, place, restored = restore_slowly(t, "hang", "--prefetch", "none")
    wanted = {(os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0)), (os.SCHED_OTHER, 10)}

    def ranks():
        try:
            return {(os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid))
                    for pid in descendants(restored.process.pid) if "vmsnap-reader" in process_name(pid)}
        except (FileNotFoundError, ProcessLookupError): # one has just ended
            return None
    wait_until(lambda: ranks() == wanted, 10, f"readers of both kinds {wanted}, not {ranks()}")
    slow.work()
    restored.wait_complete(30)
    place.wait_for_writes(2000)
    restored.end()


@case("minivm.damage.stall-serves", "kernel", 60)
def stall_serves(t):
    """While reads hang, what can be read is served, and when they come back the rest as well."""
    image, slow, place, restored = restore_slowly(t, None, "--paused", "--no-fill", "--prefetch", "none")
    places = sorted((at, n, cluster) for cluster, (at, n) in places_of(t, image).items())
    content = content_of(t, image)
    hang = places[len(places) * 2 // 3:]
    slow.hang([place[:2] for place in hang])
    waiting = threading.Thread(target=demand_page, args=(place, 4 * hang[-1][2]), daemon=True)
    waiting.start()
    for _, _, cluster in places[1:len(places) // 2:5]:
        page = 4 * cluster + 1
        t.check(demand_page(place, page) == content[page * PAGE:(page + 1) * PAGE],
                f"page {page} is served")
    t.check(waiting.is_alive(), "the other is not")
    slow.work()
    waiting.join(10)
    t.check(not waiting.is_alive(), "it is when the storage answers")
    restored.end()


@case("minivm.damage.stall-killed", "kernel", 60)
def stall_killed(t):
    """A server whose reads hang can be killed: it is gone at once, and its guest can be taken over."""
    image, slow, place, restored = restore_slowly(t, "hang")
    wait_for_error(restored, "does not answer")
    kill_all(restored.process)
    done = vmsnap(t, "restore", "--resume", str(place.pid), image)
    t.equal(done.code, 0, f"taken over: {done.text()}")
    check_goes_on(place, "taken over")
    slow.work()


@case("minivm.damage.cut", "kernel", 60)
def cut(t):
    """The image is cut while the guest runs: what is missing is damage, and a copy helps."""
    image = take_image(t, *SIZES)
    short = image + ".short"
    shutil.copyfile(image, short)
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, short, place, "--paused", "--no-fill", "--prefetch", "none").wait_running()
    os.truncate(short, sorted(upper_half(t, image))[0][0])
    place.cont()
    error = wait_for_error(restored, "the file ends")
    t.equal(error["exit_code"], 13, f"exit_code: {error}")
    check_stands(t, place)
    start_vmsnap(t, "restore", "--resume", str(place.pid), image)
    check_goes_on(place, "a whole copy")


@case("minivm.damage.io-error-poison", "slow", 90)
def io_error_poison(t):
    """An I/O error that stays for about 10 s counts as damage where that is poisoned."""
    image, slow, place, restored = restore_slowly(t, None, "--paused", "--no-fill", "--prefetch",
                                                  "none", "--on-damage", "poison")
    places = places_of(t, image)
    cluster = list(places)[len(places) // 2]
    slow.fail([places[cluster]])
    t.check(demand_page(place, 4 * cluster) is None, "it can't be read")
    wait_for_error(restored, "can't be read now")
    wait_for_error(restored, "can't be restored")
    restored.end()


if __name__ == "__main__":
    main()
