#!/usr/bin/python3
"""A VMM that lies to `vmsnap restore`: connects like one that waits for its state, and says about
itself what the first argument (JSON) holds. Keys: "greeting", and per command its answer, where "vm" in
query-vm's is laid over what a good VMM would say; {"error": ...} is an error, null closes the
connection, "hang" answers nothing."""

import ctypes
import json
import mmap
import socket
import sys
import time


def main():
    lies = json.loads(sys.argv[1])
    size = lies.get("bytes", 64 << 20)
    ram = mmap.mmap(-1, size)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(ram))
    vm = {"vmm": "minivm", "version": "1", "name": "", "accelerator": "threads", "cpus": 2,
          "memory": [{"name": "ram", "hva": hva, "bytes": size, "gpa": 1 << 32}]}
    vm.update(lies.get("vm", {}))
    for block in vm["memory"]:
        if block.get("hva") == "here":
            block["hva"] = hva
    answers = {"qmp_capabilities": {}, "query-vm": vm, "load-state": {}, "cont": {},
               "query-status": {"status": "inmigrate", "running": False}}
    answers.update({k: v for k, v in lies.items() if k not in ("vm", "bytes", "greeting")})
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(sys.argv[sys.argv.index("--vmsnap-incoming") + 1])
    greeting = lies.get("greeting", {"QMP": {"version": {"vmsnap-vmm": 1}, "capabilities": []}})
    if greeting == "hang":
        time.sleep(60)
    line.sendall(json.dumps(greeting).encode() + b"\r\n")
    for text in line.makefile("r", encoding="utf-8"):
        request = json.loads(text)
        answer = answers.get(request["execute"], {"error": {"class": "CommandNotFound",
                                                            "desc": "no such command"}})
        if answer is None:
            return
        if answer == "hang":
            time.sleep(60)
        reply = answer if "error" in answer else {"return": answer}
        line.sendall(json.dumps({**reply, "id": request.get("id")}).encode() + b"\r\n")


if __name__ == "__main__":
    main()
