"""How soon TCP sends again towards the peers of a job.

What a guest has sent while its peer stood still, at the end of its migration, is lost. TCP sends it
again after its retransmission time-out, which the kernel keeps at 200 ms or more: several times the
pause itself. The least time is a metric of the route; a connection looks its route up anew when the
routes have changed, so that one that exists already follows it, as soon as it sends, and comes down
to it within some round trips.

Each peer gets a host route of its own beside the one that it has, which says the same but for the
metric. Ours are marked by their protocol number: all of them go when the agent ends, and what a
killed agent left goes when the next one starts.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from typing import Any

import msgspec

from kawarimi_agent import tools
from kawarimi_wire.errors import ExecutionFailed, Slug, UsageError
from kawarimi_wire.messages import AskRetransmit

log = logging.getLogger(__name__)

PROTOCOL = "117"
"""Who made a route, in the kernel's table; no routing daemon has this number."""

_FLUSH = (("ip", "-4"), ("ip", "-6"))


class _Route(msgspec.Struct):
    """A route to one address, as ip prints it."""

    dst: str = ""
    type: str = "unicast"
    dev: str = ""
    gateway: str = ""
    prefsrc: str = ""
    metrics: tuple[dict[str, Any], ...] = ()


class Retransmit:
    """Answers `AskRetransmit`."""

    def __init__(self) -> None:
        self._any = False

    async def start(self) -> None:
        """Remove what a killed agent has left; only root's can have left anything."""
        if os.geteuid() == 0:
            await _clear()

    async def stop(self) -> None:
        """Take every route of ours back. Idempotent."""
        if self._any:
            await _clear()
            self._any = False

    async def set(self, request: AskRetransmit, uid: int) -> None:
        """Set the least time towards some peers, or take it back; see `AskRetransmit`.

        :raise UsageError: `bad-usage`: a peer is no IP address.
        :raise ExecutionFailed: `command-failed`: there is no route to a peer.
        """
        peers = [_address(peer) for peer in request.peers]
        if not peers:
            return
        if not request.least_s:
            # -force: it goes on after one that has no such route.
            lines = [f"route del {_prefix(peer)} proto {PROTOCOL}" for peer in peers]
            await tools.run("ip", "-force", "-b", "-", stdin=_lines(lines), check=False)
            return
        argv = ("ip", "-j", "-b", "-")
        answers = await tools.run(*argv, stdin=_lines([f"route get {peer}" for peer in peers]))
        routes = [
            tools.parse(list[_Route], line, *argv)[0] for line in answers.splitlines() if line
        ]
        least_ms = max(round(request.least_s * 1e3), 1)
        self._any = True
        lines = [
            _replacement(peer, route, least_ms)
            for peer, route in zip(peers, routes, strict=True)
            if route.type == "unicast"  # the guest itself needs no such route
        ]
        await tools.run("ip", "-b", "-", stdin=_lines(lines))


async def _clear() -> None:
    for tool in _FLUSH:
        try:
            await tools.run(*tool, "route", "flush", "proto", PROTOCOL, check=False)
        except ExecutionFailed as error:
            log.warning("%s", error.what)


def _replacement(
    peer: ipaddress.IPv4Address | ipaddress.IPv6Address, route: _Route, least_ms: int
) -> str:
    words = ["route replace", _prefix(peer)]
    if route.gateway:
        words += ["via", route.gateway]
    words += ["dev", route.dev]
    if route.prefsrc:
        words += ["src", route.prefsrc]
    for metrics in route.metrics:
        for name, value in metrics.items():
            if isinstance(value, int) and name != "rto_min":
                words += [name, str(value)]
    return " ".join([*words, f"rto_min {least_ms}ms proto {PROTOCOL}"])


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise UsageError(
            Slug.BAD_USAGE, f"not the address of a peer: {error}", untouched="the routes"
        ) from error


def _prefix(peer: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return f"{peer}/{peer.max_prefixlen}"


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
