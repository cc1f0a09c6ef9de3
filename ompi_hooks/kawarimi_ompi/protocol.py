"""The agent's side of the protocol between ranks and agent.

The structs and constants are those of `native/kawarimi_protocol.h`, read from that file; nothing
of the layout is repeated here. Messages are decoded into frozen structs of plain values.
"""

from __future__ import annotations

import enum
from functools import cache
from importlib import resources
from typing import Any

import cffi
import msgspec


@cache
def _library() -> tuple[cffi.FFI, Any]:
    """Parse the C header; returns the parser and its constants."""
    text = (resources.files(__package__) / "native" / "kawarimi_protocol.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return ffi, ffi.dlopen(None)


_FFI, _C = _library()

MAX_MESSAGE: int = _C.KW_MAX_MESSAGE


class Type(enum.IntEnum):
    """What a message is."""

    HELLO = _C.KW_HELLO
    WELCOME = _C.KW_WELCOME
    COMMAND = _C.KW_COMMAND
    REPLY = _C.KW_REPLY
    GOODBYE = _C.KW_GOODBYE


class Code(enum.IntEnum):
    """The commands that every kind of shim knows. Those of a kind come with its hello."""

    STATUS = _C.KW_STATUS
    HOLD = _C.KW_HOLD
    RESUME = _C.KW_RESUME
    ABORT = _C.KW_ABORT


class State(enum.IntEnum):
    """Where a rank stands; the header says what each means."""

    ATTACHED = _C.KW_ATTACHED
    PREPARED = _C.KW_PREPARED
    DRAINING = _C.KW_DRAINING
    DETACHED = _C.KW_DETACHED
    OPENED = _C.KW_OPENED
    CONNECTED = _C.KW_CONNECTED
    HELD = _C.KW_HELD
    CROSSING = _C.KW_CROSSING


class Outcome(enum.IntEnum):
    """How a command ended; the header says what each leaves behind."""

    OK = _C.KW_OK
    REFUSED = _C.KW_REFUSED
    BUSY = _C.KW_BUSY
    STALE = _C.KW_STALE
    EXPIRED = _C.KW_EXPIRED
    NO_DEVICE = _C.KW_NO_DEVICE
    NO_PATH = _C.KW_NO_PATH
    BAD_MESSAGE = _C.KW_BAD_MESSAGE
    UNKNOWN = _C.KW_UNKNOWN
    FAILED = _C.KW_FAILED
    DEFERRED = _C.KW_DEFERRED
    NO_ROOM = _C.KW_NO_ROOM


class StepFlag(enum.IntFlag):
    """How the coordinator has to run a step."""

    WAVES = _C.KW_STEP_WAVES
    GATHER = _C.KW_STEP_GATHER
    SCATTER = _C.KW_STEP_SCATTER
    COMMIT = _C.KW_STEP_COMMIT


class CommandFlag(enum.IntFlag):
    """Options of a command."""

    POKE = _C.KW_POKE


class MalformedError(ValueError):
    """A packet is not what the protocol says; the message names the first thing that is wrong."""


class Step(msgspec.Struct, frozen=True):
    """One step of leaving or taking the fabric, as the shim's kind defines it.

    :ivar flags: a union of `StepFlag`.
    """

    code: int
    flags: int
    name: str

    def has(self, flag: StepFlag) -> bool:
        """Whether the step is marked so."""
        return bool(self.flags & flag)


class Hello(msgspec.Struct, frozen=True):
    """What a rank says of itself when it dials."""

    jobid: int
    vpid: int
    ranks: int
    local_ranks: int
    pid: int
    state: State
    epoch: int
    kind: str
    fabric: str
    fallback: str
    refusal: str
    leave: tuple[Step, ...]
    take: tuple[Step, ...]
    hold: tuple[Step, ...]


class Blob(msgspec.Struct, frozen=True):
    """One value that a rank publishes to its peers."""

    jobid: int
    vpid: int
    key: str
    content: bytes


class Component(msgspec.Struct, frozen=True):
    """One BTL in use; the counters are None for a BTL that the shim does not count."""

    name: str
    modules: int
    sent: int | None
    received: int | None
    outstanding: int | None


class Peer(msgspec.Struct, frozen=True):
    """The names of the BTLs that carry messages to one peer."""

    jobid: int
    vpid: int
    eager: tuple[str, ...]
    send: tuple[str, ...]
    rdma: tuple[str, ...]


class Command(msgspec.Struct, frozen=True):
    """What a rank is told; the fields that C has too mean what the header says.

    :ivar deadline_s: how long to wait for the reply.
    :ivar flags: a union of `CommandFlag`.
    :ivar expires_s: when the rank discards the command, or ends the hold that it asked for, after
        having received it; the deadline, if it is None.
    """

    code: int
    epoch: int
    deadline_s: float
    flags: int = 0
    blobs: tuple[Blob, ...] = ()
    expires_s: float | None = None


class Reply(msgspec.Struct, frozen=True):
    """A rank's answer to one command; times in nanoseconds.

    :ivar state: None if the rank's parser refused the command.
    """

    sequence: int
    code: int
    epoch: int
    outcome: Outcome
    state: State | None
    sent: int
    received: int
    outstanding: int
    pending: int
    kept: int
    duration_ns: int
    held_ns: int
    stall_total_ns: int
    stall_longest_ns: int
    epoch_stall_total_ns: int
    epoch_stall_longest_ns: int
    text: str
    blobs: tuple[Blob, ...]
    components: tuple[Component, ...]
    peers: tuple[Peer, ...]
    peers_total: int


class Goodbye(msgspec.Struct, frozen=True):
    """The rank leaves, in MPI_Finalize."""


def _text(field: Any) -> str:
    raw = bytes(_FFI.buffer(field))
    end = raw.find(b"\0")
    if end < 0:
        raise MalformedError("unterminated text")
    return raw[:end].decode(errors="replace")


def _values(struct: Any) -> dict[str, Any]:
    """Take the numbers and texts of a C struct, by their names there."""
    values = {}
    for name, field in _FFI.typeof(struct).fields:
        if field.type.kind == "primitive":
            values[name] = getattr(struct, name)
        elif field.type.kind == "array" and field.type.item.cname == "char":
            values[name] = _text(getattr(struct, name))
    return values


def _header(message: Any, type_: Type, size: int, sequence: int) -> None:
    message.magic = _C.KW_MAGIC
    message.version = _C.KW_VERSION
    message.type = type_
    message.size = size
    message.sequence = sequence


class _Reader:
    """Takes one struct after the other from a packet."""

    def __init__(self, packet: bytes) -> None:
        self._packet = packet
        self._at = 0

    def struct(self, name: str) -> Any:
        size = _FFI.sizeof(name)
        value = _FFI.new(name + " *")
        _FFI.memmove(value, self.bytes(size), size)
        return value[0]

    def bytes(self, size: int) -> bytes:
        if size > len(self._packet) - self._at:
            raise MalformedError("truncated message")
        chunk = self._packet[self._at : self._at + size]
        self._at += size
        return chunk

    def end(self) -> None:
        if self._at != len(self._packet):
            raise MalformedError("bytes after the end")


def _hello(reader: _Reader) -> Hello:
    raw = reader.struct("struct kw_hello")
    steps = {}
    for direction in ("leave", "take", "hold"):
        count = getattr(raw, direction + "_steps")
        if count > _C.KW_MAX_STEPS:
            raise MalformedError("too many steps")
        steps[direction] = [_values(getattr(raw, direction)[i]) for i in range(count)]
    return msgspec.convert({**_values(raw), **steps}, Hello)


def _padded(size: int) -> int:
    return (size + 7) & ~7


def _blob(reader: _Reader) -> dict[str, Any]:
    raw = reader.struct("struct kw_blob")
    return {**_values(raw), "content": reader.bytes(_padded(raw.size))[: raw.size]}


def _component(reader: _Reader) -> dict[str, Any]:
    values = _values(reader.struct("struct kw_component"))
    if not values["counted"]:
        values |= dict.fromkeys(("sent", "received", "outstanding"))
    return values


def _peer(reader: _Reader, names: list[str]) -> dict[str, Any]:
    values = _values(reader.struct("struct kw_peer"))
    for use in ("eager", "send", "rdma"):
        values[use] = [name for i, name in enumerate(names) if values[use] >> i & 1]
    return values


def _reply(reader: _Reader) -> Reply:
    raw = reader.struct("struct kw_reply")
    values = _values(raw)
    blobs = [_blob(reader) for _ in range(raw.blobs)]
    components = [_component(reader) for _ in range(raw.components)]
    names = [component["name"] for component in components]
    values |= {
        "sequence": raw.header.sequence,
        "state": raw.state or None,
        "blobs": blobs,
        "components": components,
        "peers": [_peer(reader, names) for _ in range(raw.peers)],
    }
    return msgspec.convert(values, Reply)


def decode(packet: bytes) -> Hello | Reply | Goodbye:
    """Decode one packet that a rank sent.

    :raise MalformedError: it is none of the three, or not well-formed.
    """
    head = _Reader(packet).struct("struct kw_header")
    if head.magic != _C.KW_MAGIC:
        raise MalformedError("not a kawarimi message")
    if head.version != _C.KW_VERSION:
        raise MalformedError(f"protocol version {head.version}, not {_C.KW_VERSION}")
    if head.size != len(packet) or head.size > MAX_MESSAGE:
        raise MalformedError("truncated or oversized message")
    reader = _Reader(packet)
    message: Hello | Reply | Goodbye
    try:
        if head.type == Type.HELLO:
            message = _hello(reader)
        elif head.type == Type.REPLY:
            message = _reply(reader)
        elif head.type == Type.GOODBYE:
            reader.struct("struct kw_goodbye")
            message = Goodbye()
        else:
            raise MalformedError(f"unexpected message type {head.type}")
    except (ValueError, msgspec.ValidationError) as error:
        raise MalformedError(str(error)) from error
    reader.end()
    return message


def encode_welcome(*, accepted: bool, reason: str = "") -> bytes:
    """Answer a hello. A reason that is too long is cut."""
    welcome = _FFI.new("struct kw_welcome *")
    _header(welcome.header, Type.WELCOME, _FFI.sizeof("struct kw_welcome"), 0)
    welcome.accepted = accepted
    welcome.reason = reason.encode()[: _C.KW_TEXT - 1]
    return bytes(_FFI.buffer(welcome))


def _encode_blob(blob: Blob) -> bytes:
    raw = _FFI.new("struct kw_blob *")
    raw.jobid = blob.jobid
    raw.vpid = blob.vpid
    raw.size = len(blob.content)
    raw.key = blob.key.encode()
    padding = _padded(len(blob.content)) - len(blob.content)
    return bytes(_FFI.buffer(raw)) + blob.content + bytes(padding)


def encode_command(sequence: int, command: Command) -> list[bytes]:
    """Encode one command, as several messages if its blobs do not fit into one.

    The messages have consecutive sequence numbers from `sequence` on, and each gets its reply.

    :raise ValueError: a single blob does not fit into a message.
    """
    head = _FFI.sizeof("struct kw_command")
    batches: list[list[bytes]] = [[]]
    size = head
    for encoded in map(_encode_blob, command.blobs):
        if head + len(encoded) > MAX_MESSAGE:
            raise ValueError("a blob does not fit into a message")
        if size + len(encoded) > MAX_MESSAGE:
            batches.append([])
            size = head
        batches[-1].append(encoded)
        size += len(encoded)
    expires_s = command.deadline_s if command.expires_s is None else command.expires_s
    messages = []
    for number, batch in enumerate(batches):
        body = b"".join(batch)
        raw = _FFI.new("struct kw_command *")
        _header(raw.header, Type.COMMAND, head + len(body), sequence + number)
        raw.code = command.code
        raw.epoch = command.epoch
        raw.deadline_ms = min(int(expires_s * 1000), 2**32 - 1)
        raw.flags = command.flags
        raw.blobs = len(batch)
        messages.append(bytes(_FFI.buffer(raw)) + body)
    return messages
