"""Command lines of mpirun in the testbed's guests."""

from __future__ import annotations

from collections.abc import Sequence

from kawarimi_testbed.topology import Topology

ETHERNET = "eth0"
"""What the guests call their Ethernet."""

_OPENIB = {
    "btl": "openib,vader,self",
    "btl_openib_allow_ib": "1",
    "btl_openib_warn_no_device_params_found": "0",
    # rdmacm connects through the first queue, which must be a per-peer one.
    "btl_openib_receive_queues": "P,128,256,192,128:P,12288,128,96,64:P,65536,64,48,32",
}
_TCP = {"btl": "tcp,vader,self", "btl_tcp_if_include": ETHERNET}


def mpirun(
    topology: Topology,
    guests: Sequence[str],
    command: Sequence[str],
    *,
    btl: str,
    ranks_per_guest: int = 1,
    ssh: bool = False,
) -> list[str]:
    """Return the words that start a program on guests, from within the first of them.

    :param btl: `openib` or `tcp`: what carries the traffic between guests.
    :param ssh: launch over ssh (the testbed must have been started with it), not kawarimi-rsh.
    """
    parameters = {
        "pml": "ob1",
        "oob_tcp_if_include": ETHERNET,
        "plm_rsh_agent": "ssh" if ssh else "kawarimi-rsh",
        **{"openib": _OPENIB, "tcp": _TCP}[btl],
    }
    settings = [word for item in parameters.items() for word in ("--mca", *item)]
    return mpirun_line(topology, guests, [*settings, *command], ranks_per_guest=ranks_per_guest)


def mpirun_line(
    topology: Topology, guests: Sequence[str], rest: Sequence[str], *, ranks_per_guest: int = 1
) -> list[str]:
    """Return the words that start ranks on guests and say nothing of what carries their traffic.

    :param rest: more options, then the program.
    :raise UsageError: `unknown-guest`.
    """
    for guest in guests:
        topology.guest_number(guest)
    hosts = ",".join(f"{guest}:{ranks_per_guest}" for guest in guests)
    words = ["mpirun", "--allow-run-as-root", "--host", hosts, "--map-by", "node"]
    # More ranks than the guest's one processor: they yield instead of spinning against each other.
    return [*words, "--oversubscribe", "--bind-to", "none", *rest]
