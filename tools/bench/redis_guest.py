"""A Linux guest in QEMU with redis-server in it, reached from here through QEMU's user network, and a client
that asks it one question after the other."""

import hashlib
import random
import socket
import subprocess
import time

from case import Failed, TOP, wait_until
from guest import Guest, guest_file
from measure import NoFigure

PREPARE_SECONDS = 180
ANSWER_SECONDS = 60
READY = "Ready to accept connections"
VALUE_BYTES = 1024
BATCH = 256 # SETs under way while the data are put in
SEED = 4


def prepare():
    """The initramfs with the server in it; NoFigure where it can't be had."""
    done = subprocess.run([f"{TOP}/tools/bench/redis.sh"], capture_output=True, text=True,
                          timeout=PREPARE_SECONDS, check=False)
    if done.returncode:
        raise NoFigure("redis-server: " + done.stderr.strip().split("\n")[-1])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class RedisGuest(Guest):
    """One vCPU under TCG. `port`: on 127.0.0.1, the server's. A place for a restore is made by again()."""

    def __init__(self, t, memory_mib, name="redis"):
        self.port = free_port()
        network = ["-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:6379",
                   "-device", "virtio-net-pci,netdev=n0,romfile="]
        super().__init__(t, name=name, memory_mib=memory_mib, work="none", devices=(), extra=network,
                         initrd=guest_file("redis.gz"), run="/redis/run")

    def again(self, name="re"):
        """The same machine, with a port of its own."""
        return RedisGuest(self.t, self.memory_mib, name)

    def serve(self):
        """Starts it; the server answers."""
        self.start()
        wait_until(lambda: self.check_alive() or READY in self.console.text(), 120,
                   "redis-server is ready")
        self.check_no_errors()


def key_of(number):
    return b"key:%08d" % number


def value_of(number):
    """As long as VALUE_BYTES and of the sort that halves: no two alike."""
    return hashlib.shake_128(key_of(number)).hexdigest(VALUE_BYTES // 2).encode()


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


class Client:
    """One connection."""

    def __init__(self, port, seconds=ANSWER_SECONDS):
        self._end = time.monotonic() + seconds
        self._rest = b""
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
                break
            except ConnectionRefusedError as why:
                if time.monotonic() > self._end:
                    raise Failed(f"nobody listens on port {port}") from why
                time.sleep(0.001)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self):
        self._socket.close()

    def send(self, data):
        self._socket.sendall(data)

    def _more(self):
        try:
            data = self._socket.recv(1 << 16)
        except socket.timeout as why:
            raise Failed("redis-server does not answer") from why
        if not data:
            raise Failed("redis-server has closed the connection")
        self._rest += data

    def line(self):
        while b"\r\n" not in self._rest:
            self._more()
        line, self._rest = self._rest.split(b"\r\n", 1)
        return line

    def get(self, number):
        """The value, which must be the right one."""
        self.send(command(b"GET", key_of(number)))
        line = self.line()
        while len(self._rest) < VALUE_BYTES + 2:
            if line != b"$%d" % VALUE_BYTES:
                raise Failed(f"GET {key_of(number)}: {line}")
            self._more()
        value, self._rest = self._rest[:VALUE_BYTES], self._rest[VALUE_BYTES + 2:]
        if value != value_of(number):
            raise Failed(f"GET {key_of(number)}: a wrong value")


def put_in(port, n_keys):
    """Fills the server."""
    client = Client(port)
    for first in range(0, n_keys, BATCH):
        batch = range(first, min(first + BATCH, n_keys))
        client.send(b"".join(command(b"SET", key_of(n), value_of(n)) for n in batch))
        for _ in batch:
            if client.line() != b"+OK":
                raise Failed("redis-server took no SET")
    client.close()


def ask(port, n_keys, n_requests, began, seed=SEED):
    """GETs of keys at random, the same ones in the same order each time, each after the answer to
    the one before: when each was answered, in seconds since `began`."""
    chosen = random.Random(seed)
    numbers = [chosen.randrange(n_keys) for _ in range(n_requests)]
    client, times = Client(port), []
    for number in numbers:
        client.get(number)
        times.append(time.monotonic() - began)
    client.close()
    return times
