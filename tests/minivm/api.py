#!/usr/bin/python3
"""minivm's HTTP API: Firecracker's requests, and what does not follow HTTP."""

import json
import os
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from case import case, main, wait_until  # noqa: E402
from firecracker import Api  # noqa: E402
from minivm import MiniVm, end_and_wait, judge_memory  # noqa: E402

SIZES = ("--memory", "16M", "--populate", "12M")


def with_api(t, *options):
    path = t.path(t.unique("api") + ".sock")
    vm = MiniVm(t, *SIZES, *options, "--api", path)
    return vm, Api(t, path)


def create(t, stem, **more):
    return {"snapshot_path": t.path(stem + ".state"), "mem_file_path": t.path(stem + ".mem"), **more}


@case("minivm.api.snapshot", "kernel", 30)
def snapshot(t):
    """Pause, snapshot, resume, all over the API; a second VM goes on from the files."""
    vm, api = with_api(t)
    vm.wait_for_writes(3000)
    t.equal(api.get("/")["state"], "Running", "state")
    status, answer = api.request("PUT", "/snapshot/create", create(t, "early"))
    t.equal(status, 400, "a snapshot of a VM that runs")
    t.check("while running" in answer["fault_message"], f"why: {answer}")
    t.check(not os.path.exists(t.path("early.state")), "no file was made")
    for _ in range(2): # also one that is paused
        t.equal(api.request("PATCH", "/vm", {"state": "Paused"}), (204, None), "Paused")
        t.equal((api.get("/")["state"], vm.qmp.status()), ("Paused", "paused"), "state")
    t.equal(api.request("PUT", "/snapshot/create", create(t, "full", snapshot_type="Full")),
            (204, None), "the snapshot")
    before = vm.writes()
    for _ in range(2):
        t.equal(api.request("PATCH", "/vm", {"state": "Resumed"}), (204, None), "Resumed")
    t.equal(api.get("/")["state"], "Running", "state")
    vm.wait_for_writes(100)
    t.check(vm.writes() > before, "it goes on")
    with open(t.path("full.mem"), "rb") as f:
        t.equal(judge_memory(f.read()), [], "the file is one instant")
    t.check([e["event"] for e in vm.qmp.events] == ["STOP", "RESUME"],
            f"told to who listens: {vm.qmp.events}")
    end_and_wait(vm)
    t.check(not os.path.exists(api.path), "the socket is gone")
    path = t.path("second.sock")
    second = MiniVm(t, "--vmstate", t.path("full.state"), "--memory-file", t.path("full.mem"),
                    "--api", path, "--paused")
    api = Api(t, path)
    t.equal(api.get("/")["state"], "Paused", "a VM that was loaded")
    second.check_right("as it was saved")
    api.request("PATCH", "/vm", {"state": "Resumed"})
    second.wait_for_writes(1000)


@case("minivm.api.describes", "kernel", 30)
def describes(t):
    _, api = with_api(t, "--cpus", "2", "--pattern", "idle")
    info = api.get("/")
    t.equal(list(info), ["id", "state", "vmm_version", "app_name"], "keys of GET /")
    t.equal(api.get("/version"), {"firecracker_version": info["vmm_version"]}, "GET /version")
    t.equal(api.get("/machine-config"),
            {"vcpu_count": 2, "mem_size_mib": 16, "smt": False, "track_dirty_pages": False,
             "huge_pages": "None"}, "GET /machine-config")


@case("minivm.api.no-memory-file", "kernel", 30)
def no_memory_file(t):
    """As in Firecracker the state file is written and synced first: it is there, and whole, when the
    memory file can't be written."""
    vm, api = with_api(t)
    vm.wait_for_writes(100)
    api.request("PATCH", "/vm", {"state": "Paused"})
    t.equal(api.request("PUT", "/snapshot/create", create(t, "whole"))[0], 204, "a snapshot")
    for memory in (t.path("no/such/folder"), "/dev/full", t.dir):
        state = t.path(t.unique("alone"))
        status, answer = api.request("PUT", "/snapshot/create",
                                     {"snapshot_path": state, "mem_file_path": memory})
        t.equal(status, 400, f"{memory}: {answer}")
        t.check(memory in answer["fault_message"], f"it is named: {answer}")
        with open(state, "rb") as f, open(t.path("whole.state"), "rb") as g:
            t.check(f.read() == g.read(), f"{memory}: the state is whole")
    t.equal(api.request("PUT", "/snapshot/create",
                        {"snapshot_path": t.path("no/state"), "mem_file_path": t.path("never")})[0],
            400, "a state file that can't be written")
    t.check(not os.path.exists(t.path("never")), "then no memory file is made")
    t.equal(api.get("/")["state"], "Paused", "it stays paused")
    vm.check_right("after all")


@case("minivm.api.faults", "kernel", 30)
def faults(t):
    """What Firecracker answers with 400 and a fault_message; the connection lives on."""
    vm, api = with_api(t, "--pattern", "idle")
    for method, path, body, words in (
            ("GET", "/nothing", None, "Invalid request method and/or path: GET nothing"),
            ("PUT", "/vm", {"state": "Paused"}, "Invalid request method"),
            ("PATCH", "/vm", None, "Empty PATCH request"),
            ("PUT", "/snapshot/create", None, "Empty PUT request"),
            ("GET", "/", {"a": 1}, "cannot have a body"),
            ("PATCH", "/vm", {}, "missing field `state`"),
            ("PATCH", "/vm", {"state": 1}, "missing field `state`"),
            ("PATCH", "/vm", {"state": "Stopped"}, "unknown variant `Stopped`"),
            ("PATCH", "/vm", {"state": "Paused", "now": True}, "unknown field `now`"),
            ("PATCH", "/vm", ["Paused"], "deserializing"),
            ("PUT", "/snapshot/create", {"snapshot_path": "x"}, "missing field `mem_file_path`"),
            ("PUT", "/snapshot/create", create(t, "x", snapshot_type="Diff"), "Diff"),
            ("PUT", "/snapshot/load", {"snapshot_path": "x"}, "after starting")):
        status, answer = api.request(method, path, body)
        t.equal(status, 400, f"{method} {path} {body}")
        t.equal(list(answer), ["fault_message"], f"{method} {path}: keys")
        t.check(words in answer["fault_message"], f"'{words}' is in {answer}")
    status, answer = api.request("PATCH", "/vm", raw_body=b'{"state": "Paused"')
    t.check(status == 400 and "deserializing" in answer["fault_message"], f"torn JSON: {answer}")
    t.equal((api.get("/")["state"], vm.qmp.events), ("Running", []), "nothing has happened")


def exchange(t, path, data, close=False):
    """All that comes back for these bytes, until the connection ends or nothing comes for a while."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(0.5 if not close else 10)
        s.connect(path)
        try:
            s.sendall(data)
        except BrokenPipeError:
            pass
        got = b""
        try:
            while True:
                more = s.recv(65536)
                if not more:
                    return got, True
                got += more
        except (TimeoutError, ConnectionResetError) as end:
            return got, isinstance(end, ConnectionResetError)


@case("minivm.api.wire", "kernel", 60)
def wire(t):
    """Exact bytes; pieces; several requests at once; what can't be understood ends the connection."""
    _, api = with_api(t, "--pattern", "idle")
    head = b"Server: Firecracker API\r\nConnection: keep-alive\r\n"
    pause = b'PATCH /vm HTTP/1.1\r\ncontent-length:  20 \r\nX: y\r\n\r\n{"state": "Paused"} '
    done = b"HTTP/1.1 204 \r\n" + head + b"\r\n"
    t.equal(exchange(t, api.path, pause), (done, False), "204")
    t.equal(exchange(t, api.path, pause * 3), (done * 3, False), "three at once")
    version = json.dumps(api.get("/version"), separators=(",", ":")).encode()
    t.equal(exchange(t, api.path, b"GET /version HTTP/1.0\r\n\r\n")[0],
            b"HTTP/1.1 200 \r\n" + head + b"Content-Type: application/json\r\nContent-Length: "
            + b"%d\r\n\r\n" % len(version) + version, "200")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s: # byte by byte
        s.settimeout(10)
        s.connect(api.path)
        for i in range(len(pause)):
            s.sendall(pause[i:i + 1])
        t.equal(s.recv(4096), done, "in pieces")
        s.sendall(b"PATCH /vm HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n")
        t.equal(s.recv(4096), b"HTTP/1.1 100 \r\n" + head + b"\r\n", "go on")
        s.sendall(pause[-20:])
        t.equal(s.recv(4096), done, "and then")
    bad = {
        "no HTTP": b"hello\r\n\r\n",
        "two spaces": b"GET  / HTTP/1.1\r\n\r\n",
        "HTTP/2": b"GET / HTTP/2.0\r\n\r\n",
        "a relative path": b"GET version HTTP/1.1\r\n\r\n",
        "a long method": b"GETGETGETGET / HTTP/1.1\r\n\r\n",
        "a long path": b"GET /" + b"a" * 300 + b" HTTP/1.1\r\n\r\n",
        "a byte 0": b"GET /\0 HTTP/1.1\r\n\r\n",
        "a header without colon": b"GET / HTTP/1.1\r\nhello\r\n\r\n",
        "chunks": b"PATCH /vm HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "no number": b"PATCH /vm HTTP/1.1\r\nContent-Length: 1x\r\n\r\n{}",
        "a negative number": b"PATCH /vm HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        "an empty number": b"PATCH /vm HTTP/1.1\r\nContent-Length:\r\n\r\n{}",
        "a huge number": b"PATCH /vm HTTP/1.1\r\nContent-Length: 18446744073709551618\r\n\r\n{}",
        "a large body": b"PATCH /vm HTTP/1.1\r\nContent-Length: 51201\r\n\r\n{}",
        "two lengths": b"PATCH /vm HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "a head without end": b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 9000,
    }
    for what, data in bad.items():
        got, ended = exchange(t, api.path, data, close=True)
        t.check(got.startswith(b"HTTP/1.1 400 ") and ended, f"{what}: {got[:60]}")
    text = b'{"state": "Paused"}'
    full = text + b" " * (51200 - len(text))
    t.equal(exchange(t, api.path, b"PATCH /vm HTTP/1.1\r\nContent-Length: 51200\r\n\r\n" + full)[0],
            done, "the largest body")
    t.equal(api.get("/")["state"], "Paused", "it still answers")


@case("minivm.api.crowd", "kernel", 30)
def crowd(t):
    """Ten connections are served, more are turned away, and leave room when they end."""
    _, api = with_api(t, "--pattern", "idle")
    many = [Api(t, api.path) for _ in range(9)] # and `api`
    for one in (api, *many):
        t.equal(one.get("/")["state"], "Running", "each of them")
    t.equal(exchange(t, api.path, b"GET / HTTP/1.1\r\n\r\n", close=True), (b"", True), "an eleventh")
    many.pop().close()
    wait_until(lambda: exchange(t, api.path, b"GET / HTTP/1.1\r\n\r\n")[0], 5, "room again")
    answers = []
    threads = [threading.Thread(target=lambda k=k: answers.append(k.get("/version"))) for k in many]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    t.equal(len(answers), len(many), "answers to all at once")


if __name__ == "__main__":
    main()
