"""Ranks behind other agents: one coordinator for a job that spans several machines.

Each agent is reached through its control socket, or through whatever forwards one. The coordinator
sees the same interface as for ranks of its own machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from kawarimi_agent.control import AskCall, AskRanks, ask_within
from kawarimi_agent.jobs import RankEntry
from kawarimi_agent.ranks import RankGoneError, RankSilentError
from kawarimi_ompi.protocol import Command, Reply
from kawarimi_wire.errors import KawarimiError, Slug


class RemoteRank:
    """One rank that is connected to the agent behind `control`, a `SwitchableRank`."""

    def __init__(self, control: Path, job: str, entry: RankEntry) -> None:
        self.hello = entry.hello
        self.state = entry.state
        self.epoch = entry.epoch
        self._control = control
        self._job = job

    @property
    def name(self) -> str:
        """The rank's name within its job, for people."""
        return f"rank {self.hello.vpid}"

    async def call(self, command: Command) -> Reply:
        """Send one command and wait for its reply; see `kawarimi_agent.ranks.Rank.call`.

        :raise RankGoneError: the rank, or its agent, went away.
        :raise RankSilentError: no reply by the deadline.
        """
        request = AskCall(self._job, self.hello.vpid, command)
        try:
            reply = await ask_within(self._control, request, Reply, command.deadline_s)
        except KawarimiError as error:
            if error.slug is Slug.RANK_NOT_REACHED:
                raise RankSilentError(self.name) from error
            raise RankGoneError(self.name) from error
        if reply.state is not None:
            self.state = reply.state
            self.epoch = reply.epoch
        return reply


async def find_ranks(controls: Sequence[Path], job: str) -> list[RemoteRank]:
    """Find the ranks of one job behind these agents.

    :raise KawarimiError: an agent cannot be reached, or knows no such job.
    """
    entries = await asyncio.gather(
        *(ask_within(control, AskRanks(job), list[RankEntry]) for control in controls)
    )
    ranks = [
        RemoteRank(control, job, entry)
        for control, found in zip(controls, entries, strict=True)
        for entry in found
    ]
    return sorted(ranks, key=lambda rank: rank.hello.vpid)
