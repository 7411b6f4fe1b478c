"""How long from the launch until a restored redis-server has answered its first, tenth, hundredth and
thousandth request, against QEMU's own load of all memory and a guest that was never away."""

import os
import threading
import time

from case import wait_until
from figures import at_most
from linux_guest import UNLIMITED
from measure import NoFigure
from redis_guest import RedisGuest, ask, prepare, put_in
from restore_touches import LEFT, NO_LEARNING
from restores import VmmWatch, Watched, has_option, middle, plot_memory, prepare_cache, sibling
from rounds import in_turns, remove, values
from vmsnap import vmsnap

N_REQUESTS = 1000
SHOWN = (1, 10, 100, 1000)
LOAD_SECONDS = 120
OTHER_SEED = 5 # of the requests that are under way while the image is taken
FIRST_FACTOR = 1.25
QEMU_RAW, QEMU_ZSTD = "QEMU's load", "QEMU's load, zstd"
WARM = "warm"
PLAIN = "vmsnap, no prefetch, no fill"


class Redis:
    """The guest that is warm, and what it is restored from."""

    def __init__(self, t, run):
        self.t, self.run = t, run
        self.n_keys = 32 << 10 if run.quick else 256 << 10 # of a KiB
        self.guest = RedisGuest(t, 512 if run.quick else 1024)
        self.guest.serve()
        put_in(self.guest.port, self.n_keys)
        self.image = self.take_image()
        self.streams = {QEMU_RAW: self.take_stream("raw", "cat", "cat"),
                        QEMU_ZSTD: self.take_stream("zst", "zstd -q -1 -T0", "zstd -q -d -c")}
        self.guest.qmp.command("stop")
        self.learned = self.learn()

    def path(self, name):
        return os.path.join(self.run.work_dir, name)

    def take_image(self):
        """A snapshot of the server at work: what it writes just then is the hot list."""
        done = threading.Event()

        def keep_asking():
            while not done.is_set():
                ask(self.guest.port, self.n_keys, 50, 0.0, OTHER_SEED)
        asking = threading.Thread(target=keep_asking, daemon=True)
        asking.start()
        try:
            result = vmsnap(self.t, "snapshot", "--qmp", self.guest.qmp_path, self.path("image"),
                            timeout=120)
        finally:
            done.set()
            asking.join(60)
        if result.code not in (0, 3):
            raise NoFigure(f"vmsnap snapshot: {result.error['message']}")
        return self.path("image")

    def take_stream(self, name, writer, reader):
        """(file, what reads it) of QEMU's own stream of the stopped guest."""
        path, qmp = self.path("stream." + name), self.guest.qmp
        qmp.command("stop")
        qmp.command("migrate-set-parameters", max_bandwidth=UNLIMITED)
        qmp.command("migrate", uri=f"exec:{writer} > {path}")
        wait_until(lambda: qmp.command("query-migrate", timeout=60).get("status") in
                   ("completed", "failed"), LOAD_SECONDS, "QEMU's stream is complete", every=0.02)
        status = qmp.command("query-migrate")["status"]
        qmp.command("cont") # or it could not be migrated once more
        if status != "completed":
            raise NoFigure(f"migrate: {status}")
        return path, reader

    def learn(self):
        """The image's other name, beside which lies what was learned, or None."""
        if not has_option(self.t, "--learn"):
            return None
        path = sibling(self.t, self.run, self.image)
        self.by_vmsnap(path, "--learn")
        return path

    def remove(self):
        for path in (self.image, *(path for path, _ in self.streams.values())):
            remove(path)

    def _ask(self, port, began):
        return ask(port, self.n_keys, N_REQUESTS, began)

    def by_vmsnap(self, image, *options):
        prepare_cache(self.run, image)
        place = self.guest.again()
        with Watched(self.t, image, place, *options, asking=True) as watched:
            times = self._ask(place.port, watched.began)
            return {**watched.end(), "times": times}

    def by_qemu(self, name):
        """Started with all memory to load first; it runs when that is in."""
        path, reader = self.streams[name]
        prepare_cache(self.run, path)
        guest = self.guest.again()
        guest.extra += ["-incoming", f"exec:{reader} {path}"]
        began = time.monotonic()
        guest.start()
        watch = VmmWatch(guest.pid, began)
        try:
            wait_until(lambda: guest.qmp.command("query-status", timeout=LOAD_SECONDS)["status"] !=
                       "inmigrate", LOAD_SECONDS, "QEMU has loaded the guest", every=0.002)
            guest.qmp.command("cont")
            launch = time.monotonic() - began
            times = self._ask(guest.port, began)
            return {"times": times, "launch": launch, "wall": time.monotonic() - began,
                    "samples": watch.end()}
        finally:
            watch.end()
            guest.stop()

    def warm(self):
        """The guest that was never away: it goes on, and is stopped again."""
        began = time.monotonic()
        self.guest.qmp.command("cont")
        times = self._ask(self.guest.port, began)
        self.guest.qmp.command("stop")
        return {"times": times, "wall": time.monotonic() - began, "launch": 0.0}


def no_learning():
    raise NoFigure(NO_LEARNING)


def redis(t, run):
    prepare()
    server = Redis(t, run)

    def learned(*options):
        if not server.learned:
            return no_learning
        return lambda: server.by_vmsnap(server.learned, *options)
    results = in_turns(t, run, {
        QEMU_RAW: lambda: server.by_qemu(QEMU_RAW),
        QEMU_ZSTD: lambda: server.by_qemu(QEMU_ZSTD),
        PLAIN: lambda: server.by_vmsnap(server.image, "--prefetch", "none", "--no-fill"),
        "vmsnap, no prefetch": lambda: server.by_vmsnap(server.image, "--prefetch", "none"),
        "vmsnap, hot list": lambda: server.by_vmsnap(server.image),
        "vmsnap, learned": learned(),
        "vmsnap, learned, no fill": learned("--no-fill"),
        WARM: server.warm})
    server.remove()
    case = (f"redis-server, QEMU (TCG) {server.guest.memory_mib / 1024:g} GiB, "
            f"{server.n_keys >> 10} MiB of values")
    report(run.figures, case, results)
    plot(run.figures, results)


def report(figures, case, results):
    ours = [m for m in results if m.startswith("vmsnap")]
    for n in SHOWN:
        for method in ours:
            figures.add(f"launch to answer {n}: {method}", case, answered(results, method, n),
                        answered(results, QEMU_RAW, n), QEMU_RAW, "ms")
        figures.add(f"launch to answer {n}: {QEMU_ZSTD}", case, answered(results, QEMU_ZSTD, n),
                    answered(results, QEMU_RAW, n), QEMU_RAW, "ms")
    for other, name in ((WARM, WARM), (QEMU_RAW, "QEMU's load since all is in")):
        figures.add("launch to answer 1: vmsnap, learned", case,
                    answered(results, "vmsnap, learned", 1), resident_and_launch(results, other),
                    f"{FIRST_FACTOR} x {name}, and launch to running", "ms", "<= it", at_most(1.0))
    for n in SHOWN:
        for method in ours:
            for other, name in ((QEMU_RAW, "QEMU's load, since all is in"), (WARM, WARM)):
                figures.add(f"running to answer {n}: {method}", case,
                            answered_since(results, method, n), answered_since(results, other, n),
                            name, "ms")
    for method in ours:
        aimed = method == "vmsnap, learned, no fill"
        figures.add(f"demand faults, {N_REQUESTS} answers: {method}", case,
                    values(results, method, lambda r: r["faults"]),
                    values(results, PLAIN, lambda r: r["faults"]), PLAIN, "",
                    f"<= {LEFT:.2f} of it" if aimed else "", at_most(LEFT) if aimed else None)


def answered(results, method, n):
    return values(results, method, lambda r: r["times"][n - 1])


def answered_since(results, method, n):
    """Since the guest runs."""
    return values(results, method, lambda r: r["times"][n - 1] - r["launch"])


def resident_and_launch(results, method):
    """What the first answer of a guest whose memory is all there takes, a quarter more, and what it takes
    until a restored one runs, its device state loaded: round by round."""
    resident = answered_since(results, method, 1)
    launch = values(results, "vmsnap, learned", lambda r: r["launch"])
    for one in (resident, launch):
        if isinstance(one, NoFigure):
            return one
    return [FIRST_FACTOR * r + l for r, l in zip(resident, launch)]


def plot(figures, results):
    for method in results:
        one = middle(results, method, lambda r: r["times"][-1])
        if not one:
            continue
        figures.plot("requests-redis", method,
                     [(n + 1, seconds * 1e3) for n, seconds in enumerate(one["times"])])
        if "samples" in one:
            plot_memory(figures, "filled-redis", method, one["samples"])
        if one.get("demanded"):
            figures.plot("demands-redis", method, one["demanded"])
