"""Runs the `vmsnap` program under test: commands that end, and restores that stay."""

import contextlib
import json
import os
import re
import subprocess
import threading
import time

from case import TOP, Failed, descendants, end_process, is_alive, kill, tool, wait_until, where_it_hangs
from guest import Guest

COMMAND_SECONDS = 60


class Result:
    """What a finished vmsnap left: exit status, text, and its JSON objects."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        self.objects = json_lines(out) + json_lines(err)

    def of_type(self, name):
        return [o for o in self.objects if o.get("type") == name]

    @property
    def summary(self):
        found = self.of_type("summary")
        if len(found) != 1:
            raise Failed(f"{len(found)} summaries in:\n{self.text()}")
        return found[0]

    @property
    def error(self):
        """The object of the error; an error must be told exactly once."""
        found = self.of_type("error")
        if len(found) != 1:
            raise Failed(f"{len(found)} error objects in:\n{self.text()}")
        return found[0]

    def text(self):
        return f"exit status {self.code}\nstdout: {self.out}\nstderr: {self.err}"


def json_lines(text):
    found = []
    for line in text.split("\n"):
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found


def report_lines(path, kind, pid=None):
    """The objects of that type (of that VM) in a file of --report, which may not be there yet."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as f:
        return [o for o in json_lines(f.read())
                if o.get("type") == kind and (pid is None or o.get("vmm_pid") == pid)]
    return []


_broken_rules = []


@contextlib.contextmanager
def broken(rule):
    """Inside, every vmsnap that is run breaks the rule (common/testhook.h)."""
    _broken_rules.append(rule)
    try:
        yield
    finally:
        _broken_rules.pop()


def environment(hooks):
    """The environment with the test hooks named: kill_at="..." sets VMSNAP_KILL_AT."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VMSNAP_")}
    env.update({"VMSNAP_" + k.upper(): str(v) for k, v in (hooks or {}).items()})
    if _broken_rules:
        env["VMSNAP_BREAK"] = ",".join(_broken_rules)
    return env


def vmsnap(t, *args, timeout=COMMAND_SECONDS, hooks=None, json_=True, **options):
    """Runs a vmsnap command to its end."""
    argv = [tool("vmsnap"), *args]
    if json_:
        argv.insert(2, "--json")
    done = t.run(argv, timeout=timeout, env=environment(hooks), **options)
    result = Result(done.returncode, done.stdout, done.stderr)
    t.say(f"vmsnap {' '.join(map(str, args[:2]))}...: exit {result.code} "
          + (done.stderr.strip().split("\n")[-1][:300] if result.code else ""))
    return result


def start_vmsnap(t, *args, hooks=None, json_=True, **options):
    """Starts a vmsnap command and returns its process; stdout and stderr are pipes to it."""
    argv = [tool("vmsnap"), *args]
    if json_:
        argv.insert(2, "--json")
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return t.spawn(argv, env=environment(hooks), **options)


def finish(t, process, timeout=COMMAND_SECONDS):
    """Waits for a process of start_vmsnap()."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as stuck:
        t.say(where_it_hangs(process.pid))
        end_process(process)
        raise Failed(f"vmsnap still runs after {timeout} s") from stuck
    return Result(process.returncode, (out or b"").decode("utf-8", "replace"),
                  (err or b"").decode("utf-8", "replace"))


def snapshot(t, guest, image, *args, expect=0, **options):
    """`vmsnap snapshot` of a guest; returns the Result, of which the summary exists."""
    result = vmsnap(t, "snapshot", "--qmp", guest.qmp_path, *args, image, **options)
    if result.code != expect:
        raise Failed(f"snapshot: wanted exit status {expect}: {result.text()}")
    return result


def import_memory(t, memory):
    """The image of a memory file, beside it."""
    image = memory + ".vmsnap"
    made = vmsnap(t, "import", "firecracker", memory, image)
    if made.code:
        raise Failed(f"import: {made.text()}")
    return image


def check_no_litter(directory, *expected):
    """Nothing but `expected` may lie in the image's directory."""
    there = sorted(os.listdir(directory))
    if there != sorted(expected):
        raise Failed(f"in {directory}: {there}, wanted {sorted(expected)}")


class Restore:
    """A `vmsnap restore` in the foreground (or, with --detach, one that has returned) and the
    guest that it started. `guest` is used for judging: its console, its QMP, its pid."""

    def __init__(self, t, image, guest, *args, recorded=False, hooks=None, wrapper=()):
        self.t, self.guest = t, guest
        command = ["restore", *args, image]
        if not recorded:
            command += ["--", *wrapper, *guest.wrapper(), *guest.argv()]
        self.mark = guest.console.size()
        self.began = time.monotonic()
        self.process = start_vmsnap(t, *command, hooks=hooks)
        self._text = {"out": b"", "err": b""}
        self._threads = [threading.Thread(target=self._read, args=(name, pipe), daemon=True)
                         for name, pipe in (("out", self.process.stdout),
                                            ("err", self.process.stderr))]
        for thread in self._threads:
            thread.start()
        self._read_out = False
        self.pid = None

    def _read(self, name, pipe):
        while True:
            try:
                data = os.read(pipe.fileno(), 65536)
            except (OSError, ValueError): # the case is over, and a process that outlived it held the pipe
                return
            if not data:
                return
            self._text[name] += data

    def result(self):
        """The Result so far; its code is None while vmsnap runs."""
        code = self.process.poll()
        if code is not None and not self._read_out: # a VMM that lives on may hold the pipes
            for thread in self._threads:
                thread.join(1)
            self._read_out = True
        return Result(code, *(self._text[n].decode("utf-8", "replace")
                                             for n in ("out", "err")))

    def wait_running(self, seconds=COMMAND_SECONDS):
        """Waits for the object "running" and takes the guest over."""
        def running():
            if self.result().of_type("running"):
                return True
            if self.process.poll() is not None:
                if not self.result().of_type("running"):
                    raise Failed(f"restore ended: {self.result().text()}\n{self.guest.stderr()}")
            return False
        try:
            wait_until(running, seconds, "the restored guest runs")
        except Failed:
            self.t.say(where_it_hangs(self.process.pid))
            raise
        self.pid = self.guest.pid = self.result().of_type("running")[0]["vmm_pid"]
        if not is_alive(self.pid):
            raise Failed(f"no process {self.pid} (vmm_pid): {self.result().text()}")
        self.t.defer(kill, self.pid)
        self.guest.connect()
        return self

    def wait_complete(self, seconds=COMMAND_SECONDS):
        """Waits for the summary: the last page is in."""
        try:
            wait_until(lambda: self.result().of_type("summary") or self.process.poll() is not None,
                       seconds, "the last page is in")
        except Failed:
            self.t.say(where_it_hangs(self.process.pid))
            raise
        return self.result().summary

    def give_up(self):
        """Ends vmsnap and everything below it at once."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            kill(pid)
        if self.pid:
            kill(self.pid)
        self.process.wait(20)

    def end(self, seconds=20):
        """Asks the VMM to quit and waits for vmsnap; returns its Result."""
        self.guest.qmp.command("quit")
        self.process.wait(seconds)
        return self.result()


def restored_guest(t, source, image, *args, **options):
    """Restores an image of `source` (ended, or another one lives on its own sockets) into a Guest
    of the same shape with sockets and console of its own, and waits until it runs."""
    guest = Guest(t, name="re", **source.shape())
    return Restore(t, image, guest, *args, **options).wait_running()


def first_counters(guest, mark, kind="SELFCHECK", owner=0, seconds=30):
    """The first line of counters that a restored guest prints after `mark`."""
    def found():
        return guest.console.counters(kind, mark, owner)
    return wait_until(found, seconds, f"{guest.name}: a line of {kind} after the restore")[0]


def pause_log(t):
    """A file for VMSNAP_PAUSE_LOG; returns (path, function that waits for a name -> pid, go)."""
    path = t.path(t.unique("pause"))

    def reached(name, seconds=20):
        def seen():
            try:
                with open(path, encoding="ascii") as f:
                    found = re.search(rf"^{re.escape(name)} (\d+)$", f.read(), re.M)
                return int(found.group(1)) if found else None
            except FileNotFoundError:
                return None
        return wait_until(seen, seconds, f"vmsnap reaches {name}", every=0.002)

    def go():
        with open(path + ".go", "w", encoding="ascii"):
            pass
    return path, reached, go


def hooks_in_sources(macro):
    """The names that the sources give to a hook, so that a new one is tested without anyone
    thinking of it."""
    found = set()
    for folder in ("common", "snapshot", "restore", "tools"):
        for path, _, files in os.walk(os.path.join(TOP, folder)):
            for name in files:
                if name.endswith(".c"):
                    with open(os.path.join(path, name), encoding="utf-8") as f:
                        found.update(re.findall(macro + r'\("([^"]+)"\)', f.read()))
    return found


def hook_points(*prefixes):
    """The names of all pause points in the sources that begin with one of `prefixes`."""
    chosen = sorted(n for n in hooks_in_sources("TESTHOOK_POINT") if n.startswith(prefixes))
    if not chosen:
        raise Failed(f"no pause points named {prefixes}")
    return chosen
