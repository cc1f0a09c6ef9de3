"""Run commands for the testbed's harness and for mpirun: an rsh without keys.

Listens on one address, the guest's on the testbed's own network, which nothing else can reach.
A request is one JSON line {"argv": [...], "env": {...}, "cwd": "/", "tty": null}; what follows is
frames in both directions: one byte for the stream, four for the length (big endian), the bytes.
Streams: 0 standard input (an empty frame closes it), 1 standard output, 2 standard error, 3 the
exit status in decimal. `tty` is the size of the command's terminal, [rows, columns], or null for
none; stream 4 sets it anew, in the same form. When the peer goes away, the command's session is
killed.

Runs with -I and -S and imports little: an emulated guest pays for every module.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import selectors
import signal
import socket
import struct
import sys
import termios

PORT = 514
STDIN, STDOUT, STDERR, STATUS, WINDOW = range(5)
HEADER = struct.Struct(">BI")
ENVIRONMENT = {
    "PATH": "/opt/kawarimi/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": "/opt/kawarimi/lib",
    "HOME": "/root",
    "USER": "root",
    "SHELL": "/bin/sh",
    "TERM": "linux",
}


def start(request: dict, stdio: tuple[int, int, int]) -> int:  # type: ignore[type-arg]
    """Start the command on these descriptors, in a session of its own; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    for target, source in enumerate(stdio):
        os.dup2(source, target)
    os.closerange(3, 1024)
    if request.get("tty"):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        os.chdir(request.get("cwd") or "/root")
        argv = request["argv"]
        os.execvpe(argv[0], argv, {**ENVIRONMENT, **request.get("env", {})})  # noqa: S606
    except OSError as error:
        os.write(2, f"rshd: {error}\n".encode())
    os._exit(127)


class Command:
    """A running command, and the connection that it is for."""

    def __init__(self, peer: socket.socket, request: dict) -> None:  # type: ignore[type-arg]
        self.peer = peer
        self.buffer = b""
        if request.get("tty"):
            master, slave = pty.openpty()
            termios.tcsetwinsize(master, request["tty"])
            stdio = (slave, slave, slave)
            self.stdin = master
            self.outputs = {master: STDOUT}
        else:
            pipes = [os.pipe() for _ in range(3)]
            stdio = (pipes[0][0], pipes[1][1], pipes[2][1])
            self.stdin = pipes[0][1]
            self.outputs = {pipes[1][0]: STDOUT, pipes[2][0]: STDERR}
        self.pid = start(request, stdio)
        for descriptor in set(stdio):
            os.close(descriptor)
        for descriptor in self.outputs:
            os.set_blocking(descriptor, False)

    def serve(self) -> None:
        """Carry bytes both ways until the command ends or the peer goes away."""
        child = os.pidfd_open(self.pid)
        selector = selectors.DefaultSelector()
        for source in (self.peer.fileno(), child, *self.outputs):
            selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == self.peer.fileno():
                    self.receive()
                elif key.fd == child:
                    # A background process may keep the pipes open. Like rsh, what is in them now
                    # is all that is waited for.
                    _, status = os.waitpid(self.pid, 0)
                    for descriptor in self.outputs:
                        self.forward(descriptor)
                    code = os.waitstatus_to_exitcode(status)
                    self.send(STATUS, str(code if code >= 0 else 128 - code).encode())
                    return
                elif self.forward(key.fd):
                    selector.unregister(key.fd)

    def send(self, stream: int, data: bytes) -> None:
        """Send one frame."""
        self.peer.sendall(HEADER.pack(stream, len(data)) + data)

    def forward(self, descriptor: int) -> bool:
        """Send what an output holds; True once it is at its end."""
        while True:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return False
            except OSError:  # a terminal whose last user has gone
                return True
            if not data:
                return True
            self.send(self.outputs[descriptor], data)

    def receive(self) -> None:
        """Hand what the peer has sent to the command."""
        data = self.peer.recv(65536)
        if not data:
            raise ConnectionResetError
        self.buffer += data
        while len(self.buffer) >= HEADER.size:
            stream, length = HEADER.unpack_from(self.buffer)
            end = HEADER.size + length
            if len(self.buffer) < end:
                return
            chunk, self.buffer = self.buffer[HEADER.size : end], self.buffer[end:]
            try:
                if stream == WINDOW:
                    termios.tcsetwinsize(self.stdin, json.loads(chunk))
                elif chunk:
                    os.write(self.stdin, chunk)
                elif self.stdin not in self.outputs:
                    os.close(self.stdin)
            except OSError:  # the command reads no more
                pass


def serve(peer: socket.socket) -> None:
    """Serve one connection to its end."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanished without a word (a killed QEMU) is noticed within a minute.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    line = b""
    while not line.endswith(b"\n"):
        byte = peer.recv(1)  # no more than the line: frames follow it
        if not byte:
            return
        line += byte
    command = Command(peer, json.loads(line))
    try:
        command.serve()
    except (ConnectionError, TimeoutError):
        os.killpg(command.pid, signal.SIGKILL)


def main(address: str) -> None:
    """Serve for ever, each connection in a process of its own."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the connections' processes
    server = socket.create_server((address, PORT), backlog=64)
    print(f"rshd: listening on {address}:{PORT}")
    while True:
        peer, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            serve(peer)
            os._exit(0)
        peer.close()


if __name__ == "__main__":
    main(sys.argv[1])
