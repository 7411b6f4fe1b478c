#!/usr/bin/python3
"""`restore --learn` and what it is for: the next restore has what the guest touched before it asks; nothing is
ever half written; what does not fit is said and left out."""

import os
import shutil
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, descendants, main, process_name, process_state, wait_until  # noqa: E402
from minivm import MiniVmPlace, take_image  # noqa: E402
from slowfile import SlowFile  # noqa: E402
from vmsnap import Restore, check_no_litter, vmsnap  # noqa: E402

# One vCPU that goes through 24 of 64 MiB again and again, and never touches the rest.
SIZES = ("--memory", "64M", "--populate", "48M", "--cpus", "1", "--pattern", "hot:24M")
HEADER = struct.Struct("<8sII16sQQQQ")


def image_alone(t):
    """In a directory of its own."""
    os.mkdir(t.path("images"))
    return take_image(t, *SIZES, path=os.path.join(t.path("images"), "image"))


def restore(t, image, *args, **options):
    """A restore that runs; the guest's measurements begin anew with it."""
    return Restore(t, image, MiniVmPlace(t, *SIZES), *args, **options).wait_running()


def end(t, restored):
    """Judged, and ended; the summary."""
    place = restored.guest
    place.wait_for_writes(20000)
    place.stop()
    t.equal(place.stats()["wrong_pages"], 0, "wrong pages that the guest found")
    result = restored.end()
    t.equal(result.code, 0, result.text())
    return result.summary


def learn(t, image, *args, **options):
    """A run of the guest that is recorded, to its end: its summary."""
    return end(t, restore(t, image, "--learn", *args, **options))


def entries(path):
    with open(path, "rb") as f:
        data = f.read()
    magic, version, _, _, _, n, _, _ = HEADER.unpack_from(data)
    assert (magic, version, len(data)) == (b"VMSNAPWS", 1, HEADER.size + 8 * n)
    return [e & (1 << 63) - 1 for e in struct.unpack_from(f"<{n}Q", data, HEADER.size)]


@case("minivm.learn.next-restore", "kernel", 60)
def next_restore(t):
    """N faults; after that run was learned at most 3 % of them. What is not touched does not come in."""
    image = image_alone(t)
    before = os.stat(image)
    first = learn(t, image, "--no-fill", "--prefetch", "hot")
    learned = entries(image + ".workset")
    t.equal(first["pages_prefetched"], 0, "prefetched while it was learned")
    t.equal(first["clusters_learned"], len(learned), "clusters_learned")
    t.equal(len(set(learned)), len(learned), "each cluster once")
    # 24 MiB in clusters of 16 KiB, and what the state of the vCPU takes.
    t.check(1536 <= len(learned) <= 1600, f"{len(learned)} clusters learned")
    t.check(first["demand_faults"] >= len(learned), f"as many faults at least: {first}")
    after = os.stat(image)
    t.equal((after.st_mtime_ns, after.st_size, after.st_ino),
            (before.st_mtime_ns, before.st_size, before.st_ino), "the image was not touched")
    t.equal(os.stat(image + ".workset").st_mode & 0o777, 0o600, "mode of the working set")
    check_no_litter(os.path.dirname(image), "image", "image.workset")

    # Paused until it is in: how much of it comes in time is the benchmark's business.
    again = restore(t, image, "--no-fill", "--paused")
    place = again.guest
    wait_until(lambda: place.mapping()[1]["Rss"] != "0 kB" and rss_rests(place), 20,
               "what is prefetched comes in")
    place.cont()
    summary = end(t, again)
    t.say(f"{first['demand_faults']} faults, then {summary['demand_faults']}")
    t.check(summary["demand_faults"] <= 0.03 * first["demand_faults"], f"{summary}")
    t.check(summary["pages_prefetched"] >= 4 * 1536, f"{summary}")
    t.equal(summary["workset_clusters"], len(learned), "the working set that was used")
    t.equal(vmsnap(t, "info", image).summary["workset_clusters"], len(learned), "info tells of it")
    t.check(f"{len(learned)} clusters" in vmsnap(t, "info", image, json_=False).out, "in its text, too")
    items = {o["name"]: o for o in vmsnap(t, "check", image, "--", *place.argv()).of_type("item")}
    t.check(str(len(learned)) in items["working-set"]["reason"], f"check tells of it: {items['working-set']}")
    t.check(summary["pages_prefetched"] <= 4 * len(learned) + 4 * hot_clusters(image),
            f"no more than was learned and is hot: {summary}")

    # Recorded anew, over a set that is there: nothing is lost, and what comes in is the guest's own doing.
    again = learn(t, image, "--no-fill")
    t.equal(again["pages_prefetched"], 0, "prefetched while it was learned anew")
    t.check(set(learned) <= set(entries(image + ".workset")), "what was touched before is touched again")

    none = end(t, restore(t, image, "--no-fill", "--prefetch", "none"))
    t.equal(none["pages_prefetched"], 0, "--prefetch none")


def rss_rests(place, state={}): # pylint: disable=dangerous-default-value
    """Whether the VMM's memory has not grown for a while."""
    now = place.mapping()[1]["Rss"]
    same = state.get(place) == (now, 20)
    last, n = state.get(place, (None, 0))
    state[place] = (now, min(n + 1, 20) if now == last else 0)
    return same


def hot_clusters(image):
    """How many entries the image's own hot list has."""
    with open(image, "rb") as f:
        f.seek(-4096, os.SEEK_END)
        trailer = f.read()
    for i in range(struct.unpack_from("<I", trailer, 96)[0]):
        kind, _, _, size = struct.unpack_from("<IIQQ", trailer, 104 + 32 * i)
        if kind == 4:
            return size // 16
    return 0


@case("minivm.learn.then-fills", "kernel", 60)
def then_fills(t):
    """The minute is over: the file is written, and the rest comes in while the guest runs on."""
    image = image_alone(t)
    restored = restore(t, image, "--learn", hooks={"mask_features": "learn.minute"})
    summary = restored.wait_complete()
    t.check(summary["pages_filled"] > 0 and summary["complete_ns"], f"it filled: {summary}")
    t.equal(summary["clusters_learned"], len(entries(image + ".workset")), "clusters_learned")
    end(t, restored)


@case("minivm.learn.too-short", "kernel", 60)
def too_short(t):
    """A guest that ends at once does not spoil what a longer run has shown; a whole minute replaces it, and so
    does what is of another image."""
    image = image_alone(t)
    learn(t, image)
    with open(image + ".workset", "rb") as f:
        whole = f.read()
    for args, kept in (((), True), (("minute",), False)):
        restored = Restore(t, image, MiniVmPlace(t, *SIZES), "--learn", "--paused",
                           hooks={"mask_features": "learn.minute"} if args else None).wait_running()
        result = restored.end()
        with open(image + ".workset", "rb") as f:
            t.equal(f.read() == whole, kept, f"{args}: the earlier one stays: {result.text()}")
        t.equal("is kept" in result.err, kept, f"{args}: it is said: {result.err}")
        t.equal(result.summary["clusters_learned"] == 0, kept, f"{args}: {result.summary}")


@case("minivm.learn.lost", "kernel", 60)
def lost(t):
    """The server that records is killed: that this is lost is said, unless the file was there already."""
    image = image_alone(t)
    for hooks, words in ((None, True), ({"mask_features": "learn.minute"}, False)):
        restored = restore(t, image, "--learn", "--bwlimit", "1M", hooks=hooks)
        if hooks:
            wait_until(lambda: os.path.exists(image + ".workset"), 20, "the working set")
            time.sleep(1) # told to the supervisor
        os.kill(next(p for p in descendants(restored.process.pid) if process_name(p).startswith("vmsnap-server")),
                signal.SIGKILL)
        wait_until(lambda restored=restored: len(restored.result().of_type("running")) == 2, 20, "a takeover")
        t.equal("--learn recorded is lost" in restored.result().err, words, restored.result().err)
        restored.give_up()


@case("minivm.learn.never-half", "kernel", 90)
def never_half(t):
    """Whoever is killed, and whenever: what lies under the name is whole, and the older one until then."""
    image = image_alone(t)
    learn(t, image)
    with open(image + ".workset", "rb") as f:
        whole = f.read()
    for point in ("learn-writing", "sink-before-link", "sink-before-rename"):
        # The child that writes is killed: said, and the guest goes on.
        restored = restore(t, image, "--learn", hooks={
            "kill_at": point, "pause_log": t.path(t.unique("log"))})
        restored.guest.wait_for_writes(20000)
        result = restored.end()
        t.equal(result.code, 0, f"{point}: {result.text()}")
        t.check("--learn" in result.error["message"], f"{point}: {result.text()}")
        t.equal(result.summary["clusters_learned"], 0, f"{point}: clusters_learned")
        with open(image + ".workset", "rb") as f:
            t.check(f.read() == whole, f"{point}: the older one stays")
        check_no_litter(os.path.dirname(image), "image", "image.workset")
    # The server itself, while it is recorded.
    restored = restore(t, image, "--learn")
    restored.guest.wait_for_writes(2000)
    restored.give_up()
    wait_until(lambda: process_state(restored.process.pid) in (None, "Z"), 10, "its end")
    with open(image + ".workset", "rb") as f:
        t.check(f.read() == whole, "the older one stays")
    check_no_litter(os.path.dirname(image), "image", "image.workset")
    # And a signal ends the VMM, and with it the recording, well.
    os.unlink(image + ".workset")
    restored = restore(t, image, "--learn")
    restored.guest.wait_for_writes(20000)
    restored.process.send_signal(signal.SIGTERM)
    restored.process.wait(20)
    t.check(len(entries(image + ".workset")) >= 1500, "what was learned until SIGTERM")


@case("minivm.learn.refused", "kernel", 60)
def refused(t):
    """A file that is damaged, cut, or of another image is said and not used; where none can be written, that is
    said before anything starts."""
    image = image_alone(t)
    learn(t, image)
    other = t.path("other")
    shutil.copy(image, other)
    with open(image + ".workset", "rb") as f:
        good = f.read()
    flipped = bytearray(good)
    flipped[HEADER.size + 9] ^= 1
    foreign = bytearray(good)
    foreign[20] ^= 1
    for data, says in ((flipped, "damaged"), (good[:-1], "wrong length"), (good[:40], "not a working"),
                       (foreign, "another image"), (b"", "not a working")):
        with open(other + ".workset", "wb") as f:
            f.write(data)
        restored = restore(t, other)
        end(t, restored)
        t.check(says in restored.result().err and "not used" in restored.result().err,
                f"{says}: {restored.result().err}")
    os.unlink(other + ".workset")
    os.mkfifo(other + ".workset")
    end(t, restore(t, other)) # does not hang
    result = failing(t, other)
    t.check(result.error["guest_state"] == "not-started" and ".workset" in result.error["message"],
            f"no file can be written there: {result.text()}")


@case("minivm.learn.hangs", "kernel", 60)
def hangs(t):
    """A storage that hangs under the working set's file delays neither the start nor a takeover: that is said,
    and the guest's faults are answered. When it answers, the next restore uses the file."""
    image = image_alone(t)
    learn(t, image)
    copy = t.path("copy")
    shutil.copy(image + ".workset", copy)
    slow = SlowFile(t, copy)
    slow.cover(image + ".workset")
    slow.hang([(0, 1 << 30)])
    began = time.monotonic()
    restored = restore(t, image)
    restored.guest.wait_for_writes(1000)
    t.check(time.monotonic() - began < 20, f"the start took {time.monotonic() - began:.1f} s")
    t.check("does not answer" in restored.result().err, f"said: {restored.result().err}")
    end(t, restored)
    restored = restore(t, image, "--bwlimit", "1M", hooks={"kill_at": "restore-running",
                                                             "pause_log": t.path("log")})
    began = time.monotonic()
    wait_until(lambda: restored.result().of_type("takeover"), 10, "another server")
    restored.guest.wait_for_writes(2000)
    t.check(time.monotonic() - began < 20, f"the takeover took {time.monotonic() - began:.1f} s")
    t.equal(restored.result().err.count("does not answer"), 2, "said by both servers")
    restored.give_up()
    slow.work()
    t.check(end(t, restore(t, image))["pages_prefetched"] > 4 * 1400, "what was learned is used")


@case("minivm.learn.reader-killed", "kernel", 60)
def reader_killed(t):
    """So it is if the process that reads the file is killed."""
    image = image_alone(t)
    learn(t, image)
    restored = restore(t, image, hooks={"kill_at": "workset-reading", "pause_log": t.path("log")})
    end(t, restored)
    t.check("was killed" in restored.result().err, f"said: {restored.result().err}")


def failing(t, image):
    place = MiniVmPlace(t, *SIZES)
    restored = Restore(t, image, place, "--learn")
    restored.process.wait(20)
    result = restored.result()
    t.equal(result.code, 1, result.text())
    return result


if __name__ == "__main__":
    main()
