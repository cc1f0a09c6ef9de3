"""One end of a probe: a real RC queue pair, in a process of its own (`python -m …`).

The agent starts it, so that pyverbs and what it maps stay out of the agent, and so that nothing of
the device is held once the probe is over, however it ends. One line of JSON on standard output says
what the peer needs (or `{"error": …}`); a line on standard input brings a `Peer`, and a line of
output says how the exchange of messages went. The process ends when standard input does, when its
lifetime is over, or with the agent.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from typing import Any

import msgspec

from kawarimi_wire.messages import ProbeEnd, Seconds

# From <infiniband/verbs.h>: parts of the kernel's interface, which do not change. pyverbs has had
# them in different modules.
_QPT_RC = 2
_LOCAL_WRITE = 1
_SEND, _SIGNALED = 2, 2
_RESET, _STATE = 0, 1
_ETHERNET = 2
_RECEIVED, _SENT = 1, 2  # our work requests

_PORT = 1
_SIZE = 64
_HOPS = 64
_TIMEOUT, _RETRIES = 14, 7  # 67 ms, eight times; then the exchange begins again
_RNR_TIMER, _RNR_FOR_EVER = 12, 7

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


class Job(msgspec.Struct, frozen=True):
    """What the agent wants: the command line's one argument.

    :ivar gid: and its index in the port's table, by which this end is reached.
    :ivar parent: the agent's process id.
    """

    probe: str
    device: str
    gid: str
    gid_index: int
    lifetime_s: float
    parent: int


class Peer(msgspec.Struct, frozen=True):
    """The other end, and how long to try."""

    end: ProbeEnd
    deadline_s: Seconds


class Said(msgspec.Struct, frozen=True):
    """What the process says: of its own end, of the exchange, or why there is none."""

    end: ProbeEnd | None = None
    took_s: float | None = None
    error: str = ""


class _End:
    """The queue pair, and what it needs."""

    def __init__(self, job: Job) -> None:
        # Only this process has pyverbs.
        from pyverbs.cq import CQ, CompChannel
        from pyverbs.device import Context
        from pyverbs.mr import MR
        from pyverbs.pd import PD
        from pyverbs.qp import QP, QPCap, QPInitAttr

        context = Context(name=job.device)
        port = context.query_port(_PORT)
        self._job = job
        self._ends = 0.0
        self._routed = port.link_layer == _ETHERNET
        self._mtu: int = port.active_mtu
        self._channel = CompChannel(context)
        self._cq = CQ(context, 16, None, self._channel, 0)
        domain = PD(context)
        self._outgoing = MR(domain, _SIZE, _LOCAL_WRITE)
        self._incoming = MR(domain, _SIZE, _LOCAL_WRITE)
        capacity = QPCap(max_send_wr=4, max_recv_wr=4, max_send_sge=1, max_recv_sge=1)
        init = QPInitAttr(qp_type=_QPT_RC, scq=self._cq, rcq=self._cq, cap=capacity)
        self._qp = QP(domain, init)
        self.end = ProbeEnd(
            probe=job.probe,
            gid=job.gid,
            lid=port.lid,
            qpn=self._qp.qp_num,
            psn=random.getrandbits(24),
            mtu=128 << self._mtu,
        )
        self._outgoing.write(_letter(self.end), _SIZE)

    def exchange(self, peer: Peer) -> float:
        """Send a message, receive the peer's, and return the seconds it took.

        The peer may be late: then our message is lost, and everything begins again with the
        numbers agreed upon, which a peer that has had the message takes for a repetition.

        :raise TimeoutError: not within the peer's deadline.
        """
        began = time.monotonic()
        self._ends = began + peer.deadline_s
        # The signal interrupts the wait for a completion. It may fall just before the wait, so it
        # is repeated.
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, max(peer.deadline_s, 0.001), 0.1)
        try:
            while not self._attempt(peer.end):
                self._check_time()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return time.monotonic() - began

    def _check_time(self) -> None:
        if time.monotonic() >= self._ends:
            raise TimeoutError

    def _attempt(self, peer: ProbeEnd) -> bool:
        """Connect and exchange once; False if no acknowledgement came."""
        from pyverbs.wr import SGE, SendWR

        self._connect(peer)
        place = SGE(self._outgoing.buf, _SIZE, self._outgoing.lkey)
        self._qp.post_send(
            SendWR(wr_id=_SENT, opcode=_SEND, send_flags=_SIGNALED, num_sge=1, sg=[place])
        )
        done = set[int]()
        while done != {_SENT, _RECEIVED}:
            for completion in self._completions():
                if completion.status:
                    return False
                done.add(completion.wr_id)
        if self._incoming.read(_SIZE, 0) != _letter(peer):
            raise OSError("a message arrived that the peer did not send")
        return True

    def _connect(self, peer: ProbeEnd) -> None:
        from pyverbs.addr import GID, AHAttr, GlobalRoute
        from pyverbs.qp import QPAttr
        from pyverbs.wr import SGE, RecvWR

        self._qp.modify(QPAttr(qp_state=_RESET), _STATE)
        while self._cq.poll(16)[0]:
            pass  # of the attempt before
        attributes = QPAttr(port_num=_PORT)
        self._qp.to_init(attributes)
        place = SGE(self._incoming.buf, _SIZE, self._incoming.lkey)
        self._qp.post_recv(RecvWR(wr_id=_RECEIVED, num_sge=1, sg=[place]))
        if self._routed:
            route = GlobalRoute(dgid=GID(peer.gid), sgid_index=self._job.gid_index, hop_limit=_HOPS)
            address = AHAttr(gr=route, is_global=1, port_num=_PORT)
        else:
            address = AHAttr(dlid=peer.lid, is_global=0, port_num=_PORT)
        attributes.ah_attr = address
        attributes.path_mtu = min(self._mtu, (peer.mtu // 128).bit_length() - 1)
        attributes.dest_qp_num = peer.qpn
        attributes.rq_psn = peer.psn
        attributes.sq_psn = self.end.psn
        attributes.max_dest_rd_atomic = attributes.max_rd_atomic = 1
        attributes.min_rnr_timer = _RNR_TIMER
        attributes.timeout = _TIMEOUT
        attributes.retry_cnt = _RETRIES
        attributes.rnr_retry = _RNR_FOR_EVER
        self._qp.to_rtr(attributes)
        self._qp.to_rts(attributes)

    def _completions(self) -> list[Any]:
        """Return the next completions, waiting for one if need be."""
        self._cq.req_notify()
        count, completions = self._cq.poll(16)
        if not count:
            try:
                self._channel.get_cq_event(self._cq)
            except Exception:
                self._check_time()  # interrupted, if it is time
                raise
            self._cq.ack_events(1)
            count, completions = self._cq.poll(16)
        return completions if count else []


def _letter(end: ProbeEnd) -> bytes:
    """Return what an end writes to its peer: who it is."""
    return f"kawarimi probe {end.qpn:06x} {end.psn:06x}".encode().ljust(_SIZE, b".")


def _die_with(parent: int) -> None:
    """End when the agent does, even if it is killed."""
    import ctypes  # for the process alone, not for the agent, which has the structs from here

    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_NAME, b"kawarimi-probe")
    if os.getppid() != parent:
        sys.exit("the agent has ended")


def _say(said: Said) -> None:
    os.write(1, msgspec.json.encode(said) + b"\n")


def _line(ends: float) -> bytes:
    """Read a line; nothing at the end of the input or of our lifetime."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([0], [], [], max(ends - time.monotonic(), 0))
        if not ready or not (more := os.read(0, 4096)):
            return b""
        line += more
    return line


def main() -> None:
    """Be one end of a probe."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    ends = time.monotonic() + job.lifetime_s
    _die_with(job.parent)
    try:
        end = _End(job)
    except Exception as error:
        _say(Said(error=f"{type(error).__name__}: {error}"))
        return
    _say(Said(end=end.end))
    while line := _line(ends):
        peer = msgspec.json.decode(line, type=Peer)
        try:
            _say(Said(took_s=end.exchange(peer)))
        except TimeoutError:
            _say(Said(error="no message from the peer, or no acknowledgement of ours"))
        except Exception as error:
            _say(Said(error=f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
