"""Run commands for the testbed's harness and for mpirun: an rsh without keys.

Listens on one address, the guest's on the testbed's own network, which nothing else can reach.
A request is one JSON line {"argv": [...], "env": {...}, "cwd": "/", "tty": false}; what follows is
frames in both directions: one byte for the stream, four for the length (big endian), the bytes.
Streams: 0 standard input (an empty frame closes it), 1 standard output, 2 standard error, 3 the
exit status in decimal. When the peer goes away, the command's session is killed.

Runs with -I and -S and imports little: an emulated guest pays for every module.
"""

import json
import os
import pty
import selectors
import signal
import socket
import struct
import sys

PORT = 514
STDIN, STDOUT, STDERR, STATUS = range(4)
HEADER = struct.Struct(">BI")


def send(peer, stream, data):
    peer.sendall(HEADER.pack(stream, len(data)) + data)


def start(request, stdio):
    """Start the command with these three descriptors; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for target, source in enumerate(stdio):
        os.dup2(source, target)
    os.closerange(3, 1024)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request.get("tty"):
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        os.chdir(request.get("cwd") or "/root")
        environment = {
            "PATH": "/opt/kawarimi/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "USER": "root",
            "SHELL": "/bin/sh",
            "TERM": "linux",
            **request.get("env", {}),
        }
        argv = request["argv"]
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        os.write(2, f"rshd: {error}\n".encode())
    os._exit(127)


def serve(peer):
    """Serve one connection to its end, in a process of its own."""
    line = b""
    while not line.endswith(b"\n"):
        byte = peer.recv(1)
        if not byte:
            return
        line += byte
    request = json.loads(line)
    if request.get("tty"):
        master, slave = pty.openpty()
        pid = start(request, (slave, slave, slave))
        os.close(slave)
        stdin, outputs = master, {master: STDOUT}
    else:
        pipes = [os.pipe() for _ in range(3)]
        pid = start(request, (pipes[0][0], pipes[1][1], pipes[2][1]))
        for unused in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(unused)
        stdin, outputs = pipes[0][1], {pipes[1][0]: STDOUT, pipes[2][0]: STDERR}
    child = os.pidfd_open(pid)
    selector = selectors.DefaultSelector()
    selector.register(peer, selectors.EVENT_READ)
    selector.register(child, selectors.EVENT_READ)
    for fd in outputs:
        os.set_blocking(fd, False)
        selector.register(fd, selectors.EVENT_READ)
    buffer = b""

    def forward(fd):
        """Send what a pipe holds; True once it is at its end."""
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                return False
            except OSError:  # a terminal whose last user has gone
                return True
            if not data:
                return True
            send(peer, outputs[fd], data)

    try:
        while True:
            for key, _ in selector.select():
                if key.fileobj is peer:
                    data = peer.recv(65536)
                    if not data:
                        raise ConnectionResetError
                    buffer += data
                    while len(buffer) >= HEADER.size:
                        _, length = HEADER.unpack_from(buffer)
                        if len(buffer) < HEADER.size + length:
                            break
                        chunk = buffer[HEADER.size : HEADER.size + length]
                        buffer = buffer[HEADER.size + length :]
                        try:
                            if chunk:
                                os.write(stdin, chunk)
                            elif stdin not in outputs:
                                os.close(stdin)
                        except OSError:  # the command reads no more
                            pass
                elif key.fileobj == child:
                    # The command has ended. A background process may keep the pipes open; like
                    # rsh, what is in them now is all that is waited for.
                    _, status = os.waitpid(pid, 0)
                    for fd in list(outputs):
                        forward(fd)
                    code = os.waitstatus_to_exitcode(status)
                    send(peer, STATUS, str(code if code >= 0 else 128 - code).encode())
                    return
                elif forward(key.fileobj):
                    selector.unregister(key.fileobj)
    except (ConnectionError, TimeoutError):
        os.killpg(pid, signal.SIGKILL)


def main(address):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the connections' processes
    server = socket.create_server((address, PORT), backlog=64)
    print(f"rshd: listening on {address}:{PORT}")
    while True:
        peer, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A peer that vanished without a word (a killed QEMU) is noticed within a minute.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            serve(peer)
            os._exit(0)
        peer.close()


if __name__ == "__main__":
    main(sys.argv[1])
