"""What the tests of the main job share: an operator at the bridge, and where the traffic is."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from kawarimi_agent.coordinator import Switch
from kawarimi_agent.jobs import JobSummary
from kawarimi_agent.remote import find_ranks
from kawarimi_agent.report import SwitchReport
from kawarimi_testbed.bridge import CONFIG, bridge_process, run_bridge
from kawarimi_testbed.guest import Guest
from kawarimi_testbed.remote import Completed
from kawarimi_testbed.testbed import Testbed
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.messages import AskJobs
from kawarimi_wire.phases import Phase, PhaseState
from kawarimi_wire.record import Entry, GuestRecord, OperationRecord, PhaseRecord

_TRAFFIC_S = 0.5
_ENTRY_DEADLINE_S = 60.0
_END_DEADLINE_S = 120.0
_SWITCH_DEADLINE_S = 30.0

SKIPPED_WITHOUT_FABRIC = (Phase.PLUG, Phase.REPROBE, Phase.RESELECT)
RETURNED = {
    ExitCode.COMPLETED: "completed",
    ExitCode.DEGRADED: "degraded",
    ExitCode.FAILED: "rolled-back",
    ExitCode.INTERRUPTED: "rolled-back",
    ExitCode.NEEDS_CLEANUP: "needs-cleanup",
}
"""The result that an operation which ends by an exit code says that it had."""


class Operator:
    """Types `kawarimi …` at the bridge of a testbed.

    :param state: the folder for what operations leave behind.
    """

    def __init__(self, testbed: Testbed, state: Path) -> None:
        self.testbed = testbed
        self.state = state

    @property
    def guests(self) -> list[str]:
        return list(self.testbed.guests)

    @property
    def config(self) -> str:
        """Return the text of the bridge's configuration."""
        return (self.testbed.keeper.folder / CONFIG).read_text()

    def variant(self, file: Path, old: str, new: str) -> Path:
        """Write the configuration with something replaced wherever it stands."""
        assert old in self.config
        file.write_text(self.config.replace(old, new))
        return file

    def operations(self) -> list[str]:
        """Return the operations that have left anything."""
        folder = self.state / "operations"
        return sorted(path.parent.name for path in folder.glob("*/journal.jsonl"))

    async def run(self, *words: str) -> Completed:
        return await run_bridge(self.testbed, self.state, words)

    async def operate(self, *words: str, code: ExitCode = ExitCode.COMPLETED) -> OperationRecord:
        """Carry out an operation that has to end by an exit code."""
        done = await self.run(*words, "--json")
        assert done.exit_code == code, done
        record = msgspec.json.decode(done.stdout, type=OperationRecord)
        assert record.result == RETURNED[code]
        assert record.error is None or record.error["exit_code"] == code
        return record

    async def migrate(
        self, host: str, *words: str, code: ExitCode = ExitCode.COMPLETED
    ) -> OperationRecord:
        """Move all guests."""
        return await self.operate("migrate", *self.guests, "--to", host, *words, code=code)

    async def bring(self, host: str) -> None:
        """See that all guests are on a host, with what they get there, before a test begins."""
        away = [name for name, guest in self.testbed.guests.items() if guest.host != host]
        if away:
            await self.operate("migrate", *away, "--to", host)

    async def refused(self, code: ExitCode, slug: str, *words: str) -> dict:
        """Type what has to be refused; return the error. Nothing may have been begun."""
        before = self.operations()
        done = await self.run(*words, "--json")
        error = json.loads(done.stdout)["error"]
        assert (error["slug"], done.exit_code, error["exit_code"]) == (slug, code, code), done
        assert error["untouched"], error
        assert f"error [{slug}]" in done.stderr
        assert "Traceback" not in done.stderr
        assert self.operations() == before
        return error

    @contextlib.asynccontextmanager
    async def begun(self, *words: str) -> AsyncIterator[Begun]:
        """Begin an operation; leaving this ends the command if it still runs."""
        async with bridge_process(self.testbed, self.state, [*words, "--json-lines"]) as process:
            yield Begun(self, process)


class Begun:
    """An operation that is under way, in a process of its own."""

    def __init__(self, operator: Operator, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._operator = operator

    async def until(self, reached: Callable[[Entry], bool]) -> None:
        """Read on until something stands in the journal."""
        assert self.process.stdout is not None
        async with asyncio.timeout(_ENTRY_DEADLINE_S):
            async for line in self.process.stdout:
                if reached(msgspec.json.decode(line, type=Entry)):
                    return
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode()
        raise AssertionError(f"it ended, and that was never reached: {said or line.decode()}")

    async def until_running(self, phase: Phase) -> None:
        await self.until(lambda e: e.phase is phase and e.state is PhaseState.RUNNING)

    async def end(self) -> tuple[int, OperationRecord, str]:
        """Return its exit code, its record, and what it said to people."""
        out, err = await asyncio.wait_for(self.process.communicate(), _END_DEADLINE_S)
        guests = self._operator.testbed.guests.values()
        await asyncio.gather(*(guest.follow() for guest in guests))
        assert self.process.returncode is not None
        last = out.splitlines()[-1]
        record = msgspec.json.decode(last, type=OperationRecord)
        return self.process.returncode, record, err.decode()


def phase_of(guest: GuestRecord, phase: Phase) -> PhaseRecord:
    return next(row for row in guest.phases if row.phase is phase)


def states(record: OperationRecord) -> list[dict[Phase, PhaseState]]:
    """Return how each guest's phases ended."""
    return [{row.phase: row.state for row in guest.phases} for guest in record.guests]


async def verbs_packets(guest: Guest) -> int | None:
    """Return how many packets a guest's HCA has sent; None without one."""
    counter = "/sys/class/infiniband/*/ports/1/hw_counters/sent_pkts"
    text = (await guest.run(f"cat {counter} 2>/dev/null", check=False)).stdout
    return int(text) if text else None


async def verbs_traffic(guest: Guest) -> int | None:
    """Return how many verbs packets a guest sends in a while; None without an HCA."""
    before = await verbs_packets(guest)
    if before is None:
        return None
    await guest.run(f"sleep {_TRAFFIC_S}")
    return (await verbs_packets(guest) or 0) - before


async def assert_fabric(testbed: Testbed, names: Sequence[str], host: str) -> None:
    """See the guests on a host, and a running job's traffic where it belongs there."""
    for name in names:
        guest = testbed.guest(name)
        assert guest.host == host
        traffic = await verbs_traffic(guest)
        if testbed.topology.host(host).fabric is None:
            assert traffic is None
        else:
            assert traffic, f"{name} sends nothing over its HCA"
            shown = (await guest.run("cat /sys/class/net/*/address")).stdout.split()
            assert testbed.topology.hca_mac(host, name) in shown


async def assert_arrived(
    testbed: Testbed, names: Sequence[str], record: OperationRecord, host: str
) -> None:
    """See guests that were moved on a host, every phase as it has to end there."""
    await assert_fabric(testbed, names, host)
    fabric = testbed.topology.host(host).fabric
    for ended in states(record):
        skipped = {phase for phase, state in ended.items() if state is PhaseState.SKIPPED}
        assert skipped >= set(() if fabric else SKIPPED_WITHOUT_FABRIC)
        assert ended[Phase.MIGRATE] is PhaseState.DONE
        assert (ended[Phase.RESELECT] is PhaseState.DONE) == bool(fabric)


async def switch(testbed: Testbed, to: str) -> SwitchReport:
    """Switch the only job, its coordinator in this process."""
    agents = [await guest.agent() for guest in testbed.guests.values()]
    (job,) = await agents[0].ask(AskJobs(), list[JobSummary], _SWITCH_DEADLINE_S)
    ranks = await find_ranks(agents, job.job)
    return await Switch(job.job, ranks, to, deadline_s=_SWITCH_DEADLINE_S).run()


async def held(guest: Guest) -> str:
    """Name what still holds the verbs device: queue pairs, descriptors, mappings."""
    queue_pairs = "rdma resource show qp | grep -v -e 'type GSI' -e 'type SMI'"
    files = "ls -l /proc/[0-9]*/fd 2>/dev/null | grep infiniband"
    mappings = "grep -l infiniband /proc/[0-9]*/maps 2>/dev/null"
    return (await guest.run(f"{queue_pairs}; {files}; {mappings}", check=False)).stdout
