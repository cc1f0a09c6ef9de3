"""Who holds a verbs device: descriptors, mappings and kernel objects, by process.

Three sources, as none sees all. A process has the device open (`/dev/infiniband/uverbsN`, and
`umadN` for management); it may have closed that and still have it mapped; and the kernel has queue
pairs and the like on its behalf, which RDMA netlink names. `/dev/infiniband/rdma_cm` belongs to no
device: who has it open holds one only through the connection identifiers that netlink shows.

Kernel users (ib_core's own queue pairs, IPoIB) are no holders: they let go by themselves when
the device leaves.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kawarimi_agent import tools
from kawarimi_wire.errors import ExecutionFailed, Scope, Slug
from kawarimi_wire.messages import AskReleased, Released

REREAD_S = 0.02
"""How often a waiting request looks again: the kernel has no event for a closed descriptor."""

_CLASSES = ("infiniband_verbs", "infiniband_mad")
_OBJECTS = {
    "qp": "queue pair",
    "cm_id": "connection",
    "mr": "memory region",
    "cq": "completion queue",
    "pd": "protection domain",
    "ctx": "context",
}
_MAPPED = re.compile(r" /dev/infiniband/(\w+)")


class Holder(msgspec.Struct, frozen=True):
    """One process that holds a device.

    :ivar holds: what it holds, for people: `uverbs0`, `2 queue pairs`, …
    """

    process: str
    pid: int
    holds: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.process}, pid {self.pid}, holds {', '.join(self.holds)}"


class _Object(msgspec.Struct):
    """A kernel object, as rdma prints it; one of the kernel's own has no pid."""

    ifname: str = ""
    pid: int = 0


class Holders:
    """Answers who holds a verbs device.

    :param sys: where sysfs is; :param proc: where procfs is.
    """

    def __init__(self, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> None:
        self._sys = sys
        self._proc = proc

    async def wait_released(self, request: AskReleased, uid: int) -> Released:
        """Wait until nobody holds a device; see `AskReleased`.

        :raise ExecutionFailed: `device-held`.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            # The descriptors are quick to look at; the rest is, once these are gone.
            held = await asyncio.to_thread(self._open_by, self._files(request.device))
            overdue = loop.time() - began >= request.deadline_s
            if (not held or overdue) and not (found := await self.of(request.device)):
                return Released(loop.time() - began)
            if overdue:
                raise _held(request, found)
            await asyncio.sleep(REREAD_S)

    async def of(self, device: str) -> list[Holder]:
        """Find everybody who holds a device."""
        files = self._files(device)
        if not files:
            return []
        holds: dict[int, list[str]] = {}
        for pid, names in (await asyncio.to_thread(self._open_by, files)).items():
            holds.setdefault(pid, []).extend(names)
        for pid, names in (await asyncio.to_thread(self._mapped_by, files)).items():
            holds.setdefault(pid, []).extend(f"a mapping of {name}" for name in names)
        for thread, objects in (await _objects(device)).items():
            holds.setdefault(self._process_of(thread), []).extend(objects)
        return [Holder(self._name(pid), pid, tuple(holds[pid])) for pid in sorted(holds)]

    def _files(self, device: str) -> dict[str, int]:
        """Return the character devices of a verbs device, as name and device number."""
        files = {}
        for kind in _CLASSES:
            for folder in (self._sys / "class" / kind).glob("*/"):
                try:
                    if (folder / "ibdev").read_text().strip() == device:
                        major, minor = (folder / "dev").read_text().strip().split(":")
                        files[folder.name] = os.makedev(int(major), int(minor))
                except OSError:  # it is going away, or is none
                    continue
        return files

    def _open_by(self, files: dict[str, int]) -> dict[int, list[str]]:
        """Find who has one of these files open: each process's, by their names."""
        by_number = {number: name for name, number in files.items()}
        found: dict[int, list[str]] = {}
        for pid in self._pids() if files else ():
            names = {
                by_number[number] for number in self._character_devices(pid) if number in by_number
            }
            if names:
                found[pid] = sorted(names)
        return found

    def _character_devices(self, pid: int) -> Iterator[int]:
        folder = self._proc / str(pid) / "fd"
        try:
            descriptors = os.listdir(folder)
        except OSError:  # it has ended
            return
        for descriptor in descriptors:
            try:
                # A look at the name first: to look at the file itself may take long (NFS).
                if os.readlink(folder / descriptor).startswith("/dev/"):
                    status = os.stat(folder / descriptor)
                    if stat.S_ISCHR(status.st_mode):
                        yield status.st_rdev
            except OSError:
                continue

    def _mapped_by(self, files: dict[str, int]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for pid in self._pids():
            try:
                maps = (self._proc / str(pid) / "maps").read_text(errors="replace")
            except OSError:
                continue
            names = set(_MAPPED.findall(maps)) & set(files)
            if names:
                found[pid] = sorted(names)
        return found

    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir(self._proc) if name.isdecimal()]

    def _process_of(self, thread: int) -> int:
        """Return the process that a thread belongs to; itself if it has ended.

        RDMA netlink names the thread that made an object, as openib's connection manager does.
        """
        try:
            status = (self._proc / str(thread) / "status").read_text()
        except OSError:
            return thread
        return next(int(line[5:]) for line in status.splitlines() if line.startswith("Tgid:"))

    def _name(self, pid: int) -> str:
        try:
            return (self._proc / str(pid) / "comm").read_text().strip()
        except OSError:
            return "a process that has ended"


async def _objects(device: str) -> dict[int, list[str]]:
    """Count the kernel objects on a device, by the thread that made them."""
    found: dict[int, list[str]] = {}
    questions = "".join(f"resource show {kind}\n" for kind in _OBJECTS)
    argv = ("rdma", "-j", "-b", "-")
    answers = (await tools.run(*argv, stdin=questions.encode())).splitlines()
    for name, answer in zip(_OBJECTS.values(), filter(None, answers), strict=True):
        rows = tools.parse(list[_Object], answer, *argv)
        pids = Counter(row.pid for row in rows if row.ifname == device and row.pid)
        for pid, count in pids.items():
            found.setdefault(pid, []).append(f"{count} {name}{'s' if count > 1 else ''}")
    return found


def _held(request: AskReleased, holders: list[Holder]) -> ExecutionFailed:
    return ExecutionFailed(
        Slug.DEVICE_HELD,
        f"{request.device} is not free after {request.deadline_s:g} s: "
        f"{'; '.join(map(str, holders))}",
        untouched="the device is in its place",
        hint="end these processes, or let them close the device",
        scope=Scope.DEVICE,
        facts={"device": request.device, "holders": msgspec.to_builtins(holders)},
    )
