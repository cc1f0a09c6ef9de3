"""The kernel's word that devices, links or addresses have changed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from types import TracebackType

_UEVENT = 15  # NETLINK_KOBJECT_UEVENT
_KERNEL = 1  # the group of the kernel's own events, not udev's
_LINK, _IPV4_ADDRESS, _IPV6_ADDRESS = 0x1, 0x10, 0x100  # rtnetlink's multicast groups
_BUFFER = 1 << 20


class KernelEvents:
    """Listens for device and network events for as long as the context lasts.

    What has happened is not told, only that something may have: the one who waits looks again.
    Begin to listen before looking for the first time, and no change falls in between.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> KernelEvents:
        """Begin to listen.

        :raise OSError: the kernel does not let us.
        """
        try:
            for protocol, groups in (
                (_UEVENT, _KERNEL),
                (socket.NETLINK_ROUTE, _LINK | _IPV4_ADDRESS | _IPV6_ADDRESS),
            ):
                kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                listener = socket.socket(socket.AF_NETLINK, kind, protocol)
                self._sockets.append(listener)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                listener.bind((0, groups))
                asyncio.get_running_loop().add_reader(listener, self._read, listener)
        except OSError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no more."""
        self._close()

    def _close(self) -> None:
        for listener in self._sockets:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._sockets.clear()

    def _read(self, listener: socket.socket) -> None:
        self._changed.set()
        # An overflow (ENOBUFS) is a change too, and is over once it has been told.
        with contextlib.suppress(OSError):
            while True:
                listener.recv(1 << 16)

    async def changed(self, at_most_s: float) -> None:
        """Wait for an event since the last call, or for some time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._changed.wait()
        self._changed.clear()
