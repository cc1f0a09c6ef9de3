"""The client of rshd.py inside a guest: `kawarimi-rsh HOST COMMAND…`, for mpirun.

Like rsh, it hands the words of the command, joined by blanks, to a shell on the other guest.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys

PORT = 514
HEADER = struct.Struct(">BI")
STATUS = 3
CONNECT_DEADLINE_S = 10


def main(host: str, *words: str) -> int:
    """Run a command on another guest with this process's streams; return its exit code."""
    peer = socket.create_connection((host, PORT), timeout=CONNECT_DEADLINE_S)
    peer.settimeout(None)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = {"argv": ["/bin/sh", "-c", " ".join(words)], "cwd": os.getcwd()}
    peer.sendall(json.dumps(request).encode() + b"\n")
    selector = selectors.DefaultSelector()
    selector.register(peer.fileno(), selectors.EVENT_READ)
    try:
        selector.register(0, selectors.EVENT_READ)
    except PermissionError:  # a regular file or /dev/null: nothing to wait for
        peer.sendall(HEADER.pack(0, 0))
    buffer = b""
    while True:
        for key, _ in selector.select():
            if key.fd == 0:
                data = os.read(0, 65536)
                peer.sendall(HEADER.pack(0, len(data)) + data)
                if not data:
                    selector.unregister(0)
                continue
            data = peer.recv(65536)
            if not data:
                print(f"kawarimi-rsh: {host} closed the connection", file=sys.stderr)
                return 255
            buffer += data
            while len(buffer) >= HEADER.size:
                stream, length = HEADER.unpack_from(buffer)
                end = HEADER.size + length
                if len(buffer) < end:
                    break
                chunk, buffer = buffer[HEADER.size : end], buffer[end:]
                if stream == STATUS:
                    return int(chunk)
                os.write(stream, chunk)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
