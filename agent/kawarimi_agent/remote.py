"""Ranks behind other agents: one coordinator for a job that spans several machines.

The coordinator sees the same interface as for ranks of its own machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from kawarimi_agent.jobs import RankEntry
from kawarimi_agent.ranks import RankGoneError, RankSilentError
from kawarimi_ompi.protocol import Command, Reply
from kawarimi_wire.errors import KawarimiError, Slug
from kawarimi_wire.messages import ANSWER_MARGIN_S, AskCall, AskRanks, Channel


class RemoteRank:
    """One rank that is connected to the agent behind a channel, a `SwitchableRank`."""

    def __init__(self, channel: Channel, job: str, entry: RankEntry) -> None:
        self.hello = entry.hello
        self.state = entry.state
        self.epoch = entry.epoch
        self._channel = channel
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
        request = AskCall(
            self._job,
            self.hello.vpid,
            command.deadline_s,
            msgspec.Raw(msgspec.json.encode(command)),
        )
        try:
            reply = await self._channel.ask(request, Reply, command.deadline_s + ANSWER_MARGIN_S)
        except KawarimiError as error:
            if error.slug is Slug.RANK_NOT_REACHED:
                raise RankSilentError(self.name) from error
            raise RankGoneError(self.name) from error
        if reply.state is not None:
            self.state = reply.state
            self.epoch = reply.epoch
        return reply


async def find_ranks(channels: Sequence[Channel], job: str) -> list[RemoteRank]:
    """Find the ranks of one job behind these agents.

    :raise KawarimiError: an agent cannot be reached, or knows no such job.
    """
    entries = await asyncio.gather(
        *(channel.ask(AskRanks(job), list[RankEntry], ANSWER_MARGIN_S) for channel in channels)
    )
    ranks = [
        RemoteRank(channel, job, entry)
        for channel, found in zip(channels, entries, strict=True)
        for entry in found
    ]
    return sorted(ranks, key=lambda rank: rank.hello.vpid)
