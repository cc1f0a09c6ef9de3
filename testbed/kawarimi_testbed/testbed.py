"""A running testbed, for tests and for the command line."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from kawarimi_bridge.cli.output import Progress
from kawarimi_testbed.agents import KEYS
from kawarimi_testbed.bridge import write_bridge_config
from kawarimi_testbed.commands import require_programs, require_root
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.image.build import Image
from kawarimi_testbed.keeper import Description, Release
from kawarimi_testbed.ownership import KeeperClient
from kawarimi_testbed.paths import state_dir
from kawarimi_testbed.payload import write_payload
from kawarimi_testbed.topology import Topology
from kawarimi_wire.errors import KawarimiError, PreflightRefused

_NO_FAILURE = (KeyboardInterrupt, asyncio.CancelledError, PreflightRefused)
"""Ends after which nobody needs logs: the operator's wish, or nothing was begun."""
_PROGRAMS = ["ip", "mkfs.ext4", "mpicc", "qemu-system-x86_64", "setpriv"]


class Testbed:
    """Guests on hosts, as an asynchronous context manager.

    Everything is gone when the context is left. If it is left by an error, the logs stay (serial
    consoles, kernel logs, QMP transcripts, command lines, the agents' logs), and an error of ours
    names their folder.

    :param topology: what to start.
    :param image: what the guests boot; see `image.build.build_image`.
    :param programs: more programs for the guests' PATH; see `payload.write_payload`.
    :param place: the host of each guest; the first host for those that are not named.
    :param with_hca: whether guests on a host with a fabric boot with their HCA.
    :param wait: whether to wait until the guests run commands and their verbs ports are ACTIVE,
        and, where there are agents, have their addresses.
    :param detached: whether the testbed outlives this process, and the context.
    """

    __test__ = False  # pytest: not a test class

    def __init__(
        self,
        topology: Topology,
        image: Image,
        *,
        programs: Sequence[Path] = (),
        place: Mapping[str, str] | None = None,
        with_hca: bool = True,
        wait: bool = True,
        detached: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.topology = topology
        self.image = image
        self.guests: dict[str, Guest] = {}
        self.logs = Path()
        self._programs = list(programs)
        self._place = dict(place or {})
        self._with_hca = with_hca
        self._wait = wait
        self._detached = detached
        self._progress = progress or Progress(enabled=False)
        self._keep_logs = False
        self._keeper: KeeperClient | None = None

    async def __aenter__(self) -> Testbed:
        """Make the network, boot the guests.

        :raise KawarimiError: nothing of the testbed is left then, but for its logs.
        """
        require_root("The testbed")
        require_programs(_PROGRAMS)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.logs = state_dir() / f"{self.topology.name}-{stamp}-{os.getpid()}"
        self.logs.mkdir(parents=True)
        try:
            await self._start()
        except BaseException as error:
            await self._end(error)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take everything down, unless it is detached and well."""
        if error is None and self._detached and self._keeper is not None:
            await self._close_guests()
            await self._keeper.request(Release())
        else:
            await self._end(error)

    @property
    def keeper(self) -> KeeperClient:
        """Return the connection to the process that owns the testbed."""
        assert self._keeper is not None, "the testbed was not started"
        return self._keeper

    def guest(self, name: str) -> Guest:
        """Return a guest.

        :raise UsageError: `unknown-guest`.
        """
        self.topology.guest_number(name)
        return self.guests[name]

    async def keep_logs(self) -> Path:
        """Collect the guests' kernel logs, and keep all logs when the context is left."""
        self._keep_logs = True
        await asyncio.gather(*(guest.save_kernel_log() for guest in self.guests.values()))
        return self.logs

    async def _start(self) -> None:
        description = Description(self.topology, str(self.logs), str(self.image.folder))
        with self._progress.step("network"):
            self._keeper = await KeeperClient.start(description)
        with self._progress.step("project files for the guests"):
            await asyncio.to_thread(self._write_payload, self._keeper.folder)
            if self.topology.agents:
                write_bridge_config(self.topology, self._keeper.folder)
        for name in self.topology.guest_names:
            guest = Guest(self.topology, name, self._keeper, self.image, self.logs)
            self.guests[name] = guest
            host = self._place.get(name, self.topology.hosts[0].name)
            await guest.start(host, with_hca=self._with_hca)
        if not self._wait:
            return
        with self._progress.step(f"booting {', '.join(self.guests)}"):
            await asyncio.gather(*(guest.wait_ready() for guest in self.guests.values()))
            with_hca = [g for g in self.guests.values() if self._with_hca and g.hca_address]
            await asyncio.gather(*(guest.wait_verbs() for guest in with_hca))
            if self.topology.agents:
                await asyncio.gather(*(guest.address_hca() for guest in with_hca))

    def _write_payload(self, folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="kawarimi-") as work:
            log = self.logs / "payload.log"
            image = folder / "payload.img"
            write_payload(self.topology, Path(work), image, folder / KEYS, log, self._programs)

    async def _end(self, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, _NO_FAILURE):
            await self.keep_logs()
        await self._close_guests()
        if self._keeper is not None:
            await self._keeper.down()
        if not self._keep_logs:
            shutil.rmtree(self.logs)
        elif isinstance(error, KawarimiError):
            error.facts["evidence"] = str(self.logs)

    async def _close_guests(self) -> None:
        await asyncio.gather(*(guest.close() for guest in self.guests.values()))
