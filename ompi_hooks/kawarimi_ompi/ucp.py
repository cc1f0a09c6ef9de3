"""The environment that makes a job on PML ucx switchable: the kind `ucp`.

A library is preloaded into the ranks, and only there: mpirun is told by a parameter of Open MPI
which variables to set for them, on every machine of the job. The library reads what it needs to
know from such variables too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from kawarimi_wire.errors import PreflightRefused, Slug, UsageError

PARAMETER_PREFIX = "OMPI_MCA_"
LAUNCHERS = ("mpirun", "mpiexec", "orterun")

_LIST = "mca_base_env_list"


class UcpChoice(msgspec.Struct, frozen=True):
    """What a job on PML ucx is to run on: names of UCX's transports, or its names for several.

    :ivar fabric: what a switch leaves and takes again.
    :ivar fallback: what carries the job meanwhile.
    :ivar local: what both sides have besides, for ranks on one machine.
    :ivar agent: the guest agent's socket for ranks.
    :ivar devices: network interfaces for the fallback and for mpirun itself; empty for all.
    :ivar kept_bytes: how much each rank may keep of what nobody has received; None for the default.
    """

    fabric: str = "rc"
    fallback: str = "tcp"
    local: str = "sm"
    agent: Path = Path("/run/kawarimi/ranks.sock")
    devices: str = ""
    kept_bytes: int | None = None


def transports(choice: UcpChoice, side: str) -> str:
    """List what UCX may use on a side, in the syntax of UCX_TLS."""
    return ",".join(dict.fromkeys(filter(None, (side, choice.local, "self"))))


def _exported(choice: UcpChoice, variables: Mapping[str, str], library: Path) -> dict[str, str]:
    """Make the variables that every rank needs."""
    preload = variables.get("LD_PRELOAD", "")
    exported = {
        "LD_PRELOAD": f"{library}:{preload}" if preload else str(library),
        "KAWARIMI_UCP_AGENT": str(choice.agent),
        "KAWARIMI_UCP_FABRIC": choice.fabric,
        "KAWARIMI_UCP_FABRIC_TLS": transports(choice, choice.fabric),
        "KAWARIMI_UCP_FALLBACK": choice.fallback,
        "KAWARIMI_UCP_FALLBACK_TLS": transports(choice, choice.fallback),
    }
    if choice.devices:
        exported["KAWARIMI_UCP_FALLBACK_DEVICES"] = choice.devices
    if choice.kept_bytes is not None:
        exported["KAWARIMI_UCP_KEPT_BYTES"] = str(choice.kept_bytes)
    return exported


def _refuse(name: str, value: str, why: str) -> PreflightRefused:
    return PreflightRefused(
        Slug.NOT_SWITCHABLE_LAUNCH,
        f"{name}={value} cannot be switched: {why}",
        untouched="nothing was started",
        hint=f"leave {name} to kawarimi, or run mpirun without it",
        facts={"parameter": name, "value": value},
    )


def _check(given: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """Refuse what the user set if it makes a switch impossible.

    :raise PreflightRefused: it does; the error names it.
    """
    pml = given.get("pml", "ucx")
    if pml != "ucx":
        raise _refuse("pml", pml, "this kind of shim stands below PML ucx")
    osc = given.get("osc", "^ucx")
    if ("ucx" in osc.lstrip("^").split(",")) != osc.startswith("^"):
        raise _refuse("osc", osc, "osc/ucx keeps endpoints and keys of its own")
    offload = variables.get("UCX_RC_TM_ENABLE", "n").lower()
    if offload not in ("n", "no", "0", "off"):
        raise _refuse("UCX_RC_TM_ENABLE", offload, "the device would hold what was not received")
    for name in ("UCX_TLS", "UCX_NET_DEVICES"):
        if name in variables:
            raise _refuse(name, variables[name], "the sides of a switch are chosen by it")


def launch(
    command: Sequence[str],
    variables: Mapping[str, str],
    given: Mapping[str, str],
    library: Path,
    choice: UcpChoice,
) -> tuple[list[str], dict[str, str]]:
    """Make the command and the variables to start a switchable job with.

    :param given: the MCA parameters that the user set.
    :param library: the native library.
    :raise UsageError: fabric and fallback are the same.
    :raise PreflightRefused: the line or the variables make a switch impossible.
    """
    if choice.fabric == choice.fallback:
        raise UsageError(
            Slug.UNKNOWN_BTL,
            f"fabric and fallback are both {choice.fabric!r}",
            untouched="nothing was started",
        )
    _check(given, variables)
    wanted = {
        "pml": "ucx",
        "osc": "^ucx,rdma",
        # Open MPI lets UCX have only what it knows to be fast, unless it is told otherwise.
        "opal_common_ucx_tls": "any",
        "opal_common_ucx_devices": "any",
    }
    if choice.devices:
        wanted["oob_tcp_if_include"] = choice.devices
    result = dict(variables)
    for name, value in wanted.items():
        if name not in given:
            result[PARAMETER_PREFIX + name] = value
    exported = _exported(choice, variables, library)
    words = list(command)
    if _LIST in words:
        # Of the two that mpirun would be given, it takes the one on its line.
        raise _refuse(_LIST, given[_LIST], "put it into the environment, where it is added to")
    if Path(words[0]).name in LAUNCHERS and "-x" in words:
        # mpirun takes these, or the parameter, and not both.
        words[1:1] = [w for name, value in exported.items() for w in ("-x", f"{name}={value}")]
        return words, result
    separator = given.get(f"{_LIST}_delimiter", ";")
    listed = [f"{name}={value}" for name, value in exported.items()]
    result[PARAMETER_PREFIX + _LIST] = separator.join(filter(None, [given.get(_LIST), *listed]))
    return words, result
