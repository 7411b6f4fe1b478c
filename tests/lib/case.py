"""Test cases in Python: registration, cleanup, deadlines.

A test file registers functions with @case and ends with main(). It is run as `FILE NAME` (one case),
as `FILE --list`, and by CMake as `FILE --cmake` to learn what to add to CTest. A case gets a Case:
a temporary directory of its own, processes that are ended whatever happens, checks, and skips
(exit status 77). Python's standard library only.
"""

import copy
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

SKIP_STATUS = 77
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_cases = {}


class Failed(AssertionError):
    """A check did not hold."""


class Skipped(Exception):
    """The case can't run here; the text says why."""


class DeadlineError(Exception):
    """The case as a whole took too long."""


def case(name, labels="qemu", timeout=120, lock=None):
    """Registers a test. labels: comma separated; timeout: seconds for the whole case; lock: a
    RESOURCE_LOCK, for what the host has only once."""
    def register(function):
        if function.__module__ == "__main__": # not what a file imports from another
            assert name not in _cases, name
            _cases[name] = (function, labels, timeout, lock)
        return function
    return register


def tool(*path):
    """A program of the build that is tested: CTest says which; by hand it is the dev build."""
    return os.path.join(os.environ.get("VMSNAP_BUILD") or os.path.join(TOP, "build", "dev"), *path)


def wait_until(condition, seconds, what, every=0.01):
    """Returns the first true value of condition(); Failed after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise Failed(f"{what}: not within {seconds} s")
        time.sleep(every)


def open_files(pid):
    """What process `pid` has open, by name."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass # closed since
    return found


def descendants(pid):
    """Every process below `pid`, parents before their children."""
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as f:
                parent = int(f.read().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for one in found:
        found.extend(children.get(one, []))
    return found[1:]


def process_state(pid):
    """The letter of /proc/PID/stat (R, S, D, T, Z...), or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid):
    return process_state(pid) not in (None, "Z", "X")


def process_name(pid):
    """What the kernel calls it (comm), or "" when there is no such process."""
    try:
        with open(f"/proc/{pid}/comm", encoding="ascii", errors="replace") as f:
            return f.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def command_line(pid):
    """Its words, as bytes; none when there is no such process."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().split(b"\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def tracer_of(task):
    """The pid of who traces it, or 0."""
    with open(f"/proc/{task}/status", encoding="ascii", errors="replace") as f:
        return int(next(line.split()[1] for line in f if line.startswith("TracerPid")))


def kill(pid, number=signal.SIGKILL):
    """It may have ended by then."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Case:
    """What a running test case has at hand."""

    def __init__(self, name, output=None):
        self.name = name
        self.output = output or sys.stdout
        # QEMU's UNIX sockets lie below: their paths must stay short.
        self.dir = tempfile.mkdtemp(prefix="vmsnap-")
        os.chmod(self.dir, 0o755)
        self.began = time.monotonic()
        self.quiet = False
        self._deferred = []
        self._count = 0

    def sub(self):
        """The same case with a directory and processes of its own inside, for a check that is run
        again; end() ends those."""
        other = copy.copy(self)
        other._deferred = []
        self.defer(other.end)
        other.dir = os.path.join(self.dir, self.unique("sub"))
        os.mkdir(other.dir)
        return other

    def path(self, name):
        return os.path.join(self.dir, name)

    def unique(self, stem):
        self._count += 1
        return f"{stem}{self._count}"

    def say(self, text):
        if not self.quiet:
            print(f"[{time.monotonic() - self.began:7.2f}] {text}", file=self.output, flush=True)

    def skip(self, why):
        raise Skipped(why)

    def need(self, condition, why):
        if not condition:
            raise Skipped(why)

    def check(self, condition, text):
        """Fails the case unless `condition`; `text` says what should have been."""
        if not condition:
            raise Failed(text)

    def equal(self, there, wanted, what):
        if there != wanted:
            raise Failed(f"{what}: {there!r}, wanted {wanted!r}")

    def defer(self, function, *args):
        """Calls function(*args) at the end, the last deferred first."""
        self._deferred.append((function, args))

    def spawn(self, argv, user=None, **options):
        """Popen in a session of its own, as `user` if given. It is ended when the case ends, or
        when we die (setpriv's --pdeathsig; never call this from a thread that ends early)."""
        wrapper = ["setpriv", "--pdeathsig", "KILL"]
        if user:
            wrapper += [f"--reuid={user}", "--regid=nogroup", "--clear-groups"]
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(wrapper + [str(a) for a in argv], start_new_session=True,
                                   **options)
        self.defer(end_process, process)
        return process

    def run(self, argv, timeout=30, **options):
        """Runs to the end, stdout and stderr as text; Failed when it takes too long."""
        process = self.spawn(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             errors="replace", **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as stuck:
            self.say(where_it_hangs(process.pid))
            end_process(process)
            raise Failed(f"{argv[0]} {argv[1] if len(argv) > 1 else ''}: still running after "
                         f"{timeout} s") from stuck
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def end(self):
        """Calls what was deferred; once."""
        deferred, self._deferred[:] = list(reversed(self._deferred)), []
        for function, args in deferred:
            try:
                function(*args)
            except Exception:  # the rest must be cleaned up, too
                traceback.print_exc()

    def clean_up(self):
        self.end()
        for pid in descendants(os.getpid()):
            kill(pid)
        _reap()
        shutil.rmtree(self.dir, ignore_errors=True)


def where_it_hangs(pid):
    """What each thread of a process and of its descendants waits for, as far as we may see."""
    lines = [f"process {pid} hangs:"]
    for one in [pid] + descendants(pid):
        try:
            tasks = os.listdir(f"/proc/{one}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                base = f"/proc/{one}/task/{task}"
                name, channel, call = (open(f"{base}/{f}", encoding="ascii", errors="replace")
                                       .read().strip() for f in ("comm", "wchan", "syscall"))
                lines.append(f"  {one}/{task} {name}: {channel} syscall {call}")
            except OSError:
                pass
    return "\n".join(lines)


def end_process(process, grace=0.0):
    """Ends a Popen: SIGTERM and `grace` seconds if any, then SIGKILL. Never waits for long."""
    if process.poll() is None and grace:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            pass
    if process.poll() is None:
        process.kill()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            print(where_it_hangs(process.pid), flush=True)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            try:
                pipe.close()
            except OSError:
                pass


def _reap():
    """Collects ended children, orphans that came to us among them; at most a few seconds."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def run_function(function, name, timeout, output=None, passed="PASSED"):
    """Calls function(Case) and cleans up after it, whatever happens: an exit status and a verdict. It
    is ended after `timeout` seconds, and by SIGINT, SIGTERM or SIGHUP (status 130)."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def interrupted(number, _frame):
        if number == signal.SIGALRM:
            raise DeadlineError(f"not done after {timeout} s")
        raise KeyboardInterrupt
    before = {number: signal.signal(number, interrupted)
              for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    t = Case(name, output)
    status, verdict = 1, "FAILED"
    signal.alarm(timeout)
    try:
        function(t)
        status, verdict = 0, passed
    except Skipped as why:
        status, verdict = SKIP_STATUS, f"SKIPPED, {why}:"
    except (Failed, DeadlineError) as why:
        traceback.print_exc(file=t.output)
        verdict = f"FAILED, {why}:"
    except KeyboardInterrupt:
        status, verdict = 130, "INTERRUPTED"
    except Exception:
        traceback.print_exc(file=t.output)
        verdict = "FAILED by an error in the test or its tools, see above:"
    finally:
        signal.alarm(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        t.quiet = False
        t.say(f"{verdict} {name}")
        t.clean_up()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status, verdict


def main():
    """Runs what the command line names."""
    args = sys.argv[1:]
    if args == ["--list"]:
        print("\n".join(_cases))
        sys.exit(0)
    if args == ["--cmake"]: # NAME LABELS TIMEOUT LOCK, one case per list element
        print(";".join(f"{n} {labels} {timeout} {lock or '-'}"
                       for n, (_, labels, timeout, lock) in _cases.items()), end="")
        sys.exit(0)
    if len(args) != 1 or args[0] not in _cases:
        print(f"usage: {sys.argv[0]} --list | NAME; names: {' '.join(_cases)}", file=sys.stderr)
        sys.exit(2)
    function, _, timeout, _ = _cases[args[0]]
    sys.exit(run_function(function, args[0], timeout)[0])
