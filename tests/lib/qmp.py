"""A small QMP client whose every wait has a deadline."""

import json
import socket
import time


class QmpError(Exception):
    """The VMM answered a command with an error."""


class QmpGone(Exception):
    """The connection ended, or no answer came in time."""


class Qmp:
    """A connection to a QMP UNIX socket. Events that arrive are kept in `events`."""

    def __init__(self, path, timeout=10.0):
        self.timeout = timeout
        self.events = []
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end = time.monotonic() + timeout
        while True:
            try:
                self._socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > end:
                    raise QmpGone(f"{path}: {error}") from error
                time.sleep(0.01)
        try:
            self._read_object(end)
            self.command("qmp_capabilities")
        except Exception:
            self._socket.close()
            raise

    def close(self):
        self._socket.close()

    def _read_object(self, end):
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise QmpGone(f"no answer within {self.timeout} s")
            self._socket.settimeout(left)
            try:
                more = self._socket.recv(65536)
            except (socket.timeout, ConnectionResetError) as error:
                raise QmpGone(f"no answer within {self.timeout} s ({error})") from error
            if not more:
                raise QmpGone("the VMM closed the connection")
            self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, timeout=None, fds=(), **arguments):
        """Runs a command and returns what it returns. `fds` travel with it."""
        request = {"execute": name}
        if arguments:
            request["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        data = json.dumps(request).encode() + b"\n"
        end = time.monotonic() + (timeout or self.timeout)
        try:
            self._socket.settimeout(timeout or self.timeout)
            if fds:
                socket.send_fds(self._socket, [data], list(fds))
            else:
                self._socket.sendall(data)
        except OSError as error:
            raise QmpGone(str(error)) from error
        while True:
            reply = self._read_object(end)
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError(f"{name}: {reply['error'].get('desc')}")
            elif "return" in reply:
                return reply["return"]

    def hmp(self, line, timeout=None):
        return self.command("human-monitor-command", timeout=timeout, command_line=line)

    def status(self):
        return self.command("query-status")["status"]

    def take_events(self, wait=0.0):
        """Returns and forgets the events so far; waits up to `wait` seconds for more."""
        end = time.monotonic() + wait
        while True:
            try:
                reply = self._read_object(max(end, time.monotonic() + 0.001))
            except QmpGone:
                break
            if "event" in reply:
                self.events.append(reply)
        events, self.events = self.events, []
        return events


def event_seconds(event):
    stamp = event["timestamp"]
    return stamp["seconds"] + stamp["microseconds"] * 1e-6
