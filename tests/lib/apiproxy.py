"""Between vmsnap and a VMM's HTTP API: passes requests on, but for those that a test wants otherwise."""

import json
import os
import socket
import threading


class ApiProxy:
    """Listens on `path`. `rule(method, target, body)` is asked for each request, in a thread of its
    connection: None passes it on, a (status, object) answers it, "hang" never answers, "cut" closes the
    connection. What it returns as a dict is passed on in place of the body."""

    def __init__(self, t, behind, rule):
        self.path = t.path(t.unique("proxy") + ".sock")
        self.seen = []
        self.n_cut = 0
        self._behind, self._rule = behind, rule
        self._held = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(8)
        t.defer(self.close)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()
        for connection in self._held:
            connection.close()

    def _accept(self):
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        try:
            request = _read_message(connection)
            if not request:
                connection.close()
                return
            head, body = request
            method, target = head.split(b" ", 2)[:2]
            method, target = method.decode(), target.decode()
            self.seen.append((method, target))
            found = self._rule(method, target, json.loads(body) if body else None)
            if found == "hang":
                self._held.append(connection)
                return
            if found == "cut":
                connection.close()
                self.n_cut += 1
                return
            if isinstance(found, tuple):
                connection.sendall(_answer(*found))
            else:
                connection.sendall(self._pass_on(method, target, found if found else
                                                 json.loads(body) if body else None))
            connection.close()
        except OSError:
            pass # vmsnap was killed, or the VMM has ended

    def _pass_on(self, method, target, body):
        data = json.dumps(body).encode() if body else b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
            vmm.connect(self._behind)
            length = f"Content-Length: {len(data)}\r\n" if data else ""
            vmm.sendall(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode() + data)
            head, answer = _read_message(vmm)
            return head + b"\r\n\r\n" + answer


def _read_message(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


def _answer(status, body):
    data = json.dumps(body).encode()
    return (f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "\r\n").encode() + data


def write_state(path, data):
    """As a VMM writes its state file: whole, then closed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.close(fd)
