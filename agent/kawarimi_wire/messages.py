"""What a guest's agent is asked, over ZeroMQ by the bridge and over a unix socket by its users.

One message is one JSON object. A request is an `Envelope` around one of the `Ask` structs; the
answer carries the same number, and either what was asked for or a `Failure`. Requests may be
repeated: `operation`, `phase` and `attempt` say which one a repetition belongs to, and every
request brings about a state rather than a change. Deadlines are relative, clocks are never
compared.

What concerns the inside of a rank (its hello, its steps, its replies) is the business of the shim's
own protocol (`kawarimi_ompi.protocol`); it travels here as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from kawarimi_wire.errors import (
    ExecutionFailed,
    Interrupted,
    KawarimiError,
    NeedsCleanup,
    OutcomeUnknown,
    PreflightRefused,
    Scope,
    Slug,
    UsageError,
)

VERSION = 1
"""Of this contract. An agent and a bridge of different versions refuse each other."""

MAX_MESSAGE = 1 << 24
"""Bytes of one message, a request or an answer: room for what 64 ranks publish to each other."""

ANSWER_MARGIN_S = 10.0
"""How much longer to wait for an answer than the request's own deadline: for the way to the agent
and back, a guest that stands still for a moment included. An agent answers at the deadline with
what it knows; who waits no longer than that learns less."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
"""A relative deadline or a lifetime."""

_T = TypeVar("_T")


class _Ask(msgspec.Struct, frozen=True, tag_field="ask", forbid_unknown_fields=True):
    """Something that an agent can be asked."""


class AskHello(_Ask, frozen=True, tag="hello", forbid_unknown_fields=False):
    """The first request of a connection; answered by `Hello`, or by `agent-version`."""

    version: int


class AskJobs(_Ask, frozen=True, tag="jobs"):
    """Summarise every job; answered by a list of `kawarimi_agent.jobs.JobSummary`."""


class AskStatus(_Ask, frozen=True, tag="status"):
    """Ask the ranks of a job where they stand; answered by `kawarimi_agent.jobs.JobStatus`."""

    job: str
    deadline_s: Seconds


class AskSwitch(_Ask, frozen=True, tag="switch"):
    """Bring a job that is on this machine alone to another BTL; answered by `SwitchReport`."""

    job: str
    to: str
    deadline_s: Seconds
    poke: bool


class AskRanks(_Ask, frozen=True, tag="ranks"):
    """List the ranks of one job that are connected here; answered by `RankEntry` objects."""

    job: str


class AskCall(_Ask, frozen=True, tag="call"):
    """Send one command to one rank; answered by a `kawarimi_ompi.protocol.Reply`.

    :ivar command: a `kawarimi_ompi.protocol.Command`, encoded; `deadline_s` is its own.
    """

    job: str
    vpid: int
    deadline_s: Seconds
    command: msgspec.Raw


class AskDevices(_Ask, frozen=True, tag="devices"):
    """List the guest's verbs devices; answered by a list of `VerbsDevice`."""


class AskReleased(_Ask, frozen=True, tag="released"):
    """Wait until nothing holds a verbs device; answered by `Released`.

    Answered at once where there is no such device. At the deadline, `device-held` names the
    processes, ours or foreign, and what each of them holds.
    """

    device: str
    deadline_s: Seconds


class AskDevice(_Ask, frozen=True, tag="device"):
    """Wait for an HCA to be usable, giving it its address; answered by its `VerbsDevice`.

    `hca-not-ready` at the deadline, with how far it came.

    :ivar mac: the MAC of the HCA's network interface; empty for any device but those in `not_`.
    :ivar address: what its network interface is to have, as ADDRESS/PREFIX; empty for none.
    """

    mac: str
    address: str
    deadline_s: Seconds
    not_: tuple[str, ...] = ()


class AskProbeOpen(_Ask, frozen=True, tag="probe-open"):
    """Make one end of a probe, a real queue pair; answered by `ProbeEnd`. It lives `lifetime_s`."""

    device: str
    address: str
    lifetime_s: Seconds


class AskProbeRun(_Ask, frozen=True, tag="probe-run"):
    """Connect a probe's end to its peer's, and exchange a message; answered by `ProbeResult`.

    Both ends are asked at the same time. `fabric-unreachable` at the deadline.
    """

    probe: str
    peer: ProbeEnd
    deadline_s: Seconds


class AskProbeClose(_Ask, frozen=True, tag="probe-close"):
    """Give up a probe's end; answered by nothing. Idempotent."""

    probe: str


class AskRetransmit(_Ask, frozen=True, tag="retransmit"):
    """Set how soon TCP sends again towards some addresses; answered by nothing.

    The kernel's own least time, 200 ms, is longer than the pause of a migrating peer. It stands in
    the route, so that connections that exist already follow it.

    :ivar least_s: seconds; 0 for the kernel's own again.
    """

    peers: tuple[str, ...]
    least_s: Annotated[float, msgspec.Meta(ge=0, le=60)]


class AskTraffic(_Ask, frozen=True, tag="traffic"):
    """Ask what the guest has sent and received so far; answered by `Traffic`. Cheap."""


Ask = (
    AskHello
    | AskJobs
    | AskStatus
    | AskSwitch
    | AskRanks
    | AskCall
    | AskDevices
    | AskReleased
    | AskDevice
    | AskProbeOpen
    | AskProbeRun
    | AskProbeClose
    | AskRetransmit
    | AskTraffic
)


class Hello(msgspec.Struct, frozen=True):
    """Who an agent is.

    :ivar guest: the guest's name, as it knows itself (its host name).
    :ivar boot_id: changes when the guest boots, and not when it moves.
    :ivar software: the version of the agent's own code, for people.
    """

    version: int
    software: str
    guest: str
    boot_id: str
    pid: int


class VerbsPort(msgspec.Struct, frozen=True):
    """The first port of a verbs device.

    :ivar state: `ACTIVE`, `DOWN`, … as the kernel says.
    :ivar link: `InfiniBand` or `Ethernet`.
    """

    state: str
    link: str
    lid: int


class VerbsDevice(msgspec.Struct, frozen=True):
    """A verbs device of a guest.

    :ivar pci: the address of its PCI function in the guest, empty if it has none.
    :ivar addresses: of its network interface, each as ADDRESS/PREFIX.
    :ivar counters: what its port counts, by the kernel's names; they only rise.
    """

    name: str
    guid: str
    interface: str
    mac: str
    pci: str
    port: VerbsPort
    addresses: tuple[str, ...]
    counters: dict[str, int]


class Released(msgspec.Struct, frozen=True):
    """Nothing holds the device; seconds it took until that was so."""

    waited_s: float


class ProbeEnd(msgspec.Struct, frozen=True):
    """One end of a probe: what the other end needs in order to connect to it."""

    probe: str
    gid: str
    lid: int
    qpn: int
    psn: int
    mtu: int


class ProbeResult(msgspec.Struct, frozen=True):
    """A message has crossed in both directions; seconds it took."""

    took_s: float


class Traffic(msgspec.Struct, frozen=True):
    """Bytes that a guest has sent and received since it booted, or since a device was plugged.

    :ivar ethernet: over its network interfaces, without the loopback and without its HCAs.
    :ivar fabric: over its HCAs, 0 while it has none. What a RoCE device's interface carries is
        all counted here, TCP over it included.
    """

    ethernet: int
    fabric: int


class Envelope(msgspec.Struct, frozen=True):
    """A request with what it belongs to.

    :ivar number: of the request within its connection; the answer repeats it.
    """

    number: int
    body: Ask
    operation: str = ""
    phase: str = ""
    attempt: int = 0


class Failure(msgspec.Struct, frozen=True):
    """An error of ours, as it travels."""

    kind: str
    slug: Slug
    what: str
    untouched: str
    hint: str
    scope: Scope
    facts: dict[str, Any]

    @classmethod
    def of(cls, error: KawarimiError) -> Failure:
        """Return an error in the form in which it travels."""
        return cls(
            type(error).__name__,
            error.slug,
            error.what,
            error.untouched,
            error.hint,
            error.scope,
            error.facts,
        )

    def error(self) -> KawarimiError:
        """Return the error that this was made of."""
        return _KINDS.get(self.kind, ExecutionFailed)(
            self.slug,
            self.what,
            untouched=self.untouched,
            hint=self.hint,
            scope=self.scope,
            facts=self.facts,
        )


_KINDS: dict[str, type[KawarimiError]] = {
    kind.__name__: kind
    for kind in (
        UsageError,
        PreflightRefused,
        ExecutionFailed,
        OutcomeUnknown,
        Interrupted,
        NeedsCleanup,
    )
}


class Answer(msgspec.Struct, frozen=True):
    """What an agent answers: `content`, or `failure`.

    :ivar number: the request's; 0 if it could not be read.
    """

    number: int
    content: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None

    def result(self, type_: type[_T]) -> _T:
        """Return what was asked for.

        :raise KawarimiError: what the agent raised.
        :raise ExecutionFailed: `agent-version`: the content is not of this type.
        """
        if self.failure is not None:
            raise self.failure.error()
        try:
            return msgspec.json.decode(self.content, type=type_)
        except msgspec.DecodeError as error:
            raise ExecutionFailed(
                Slug.AGENT_VERSION,
                f"The agent's answer is not what was asked for: {error}.",
                hint="install the same version of kawarimi here and in the guest",
                scope=Scope.GUEST,
            ) from error


class Channel(Protocol):
    """A way to one agent, whatever carries it."""

    async def ask(self, request: Ask, answer_type: type[_T], deadline_s: float) -> _T:
        """Ask the agent, and wait for its answer.

        :param deadline_s: when to give up; see `ANSWER_MARGIN_S`.
        :raise KawarimiError: what the agent raised.
        :raise ExecutionFailed: `agent-unreachable`: the request was not sent.
        :raise OutcomeUnknown: `agent-unreachable`: it was sent, and no answer came.
        """
