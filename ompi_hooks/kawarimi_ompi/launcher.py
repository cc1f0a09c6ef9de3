"""The environment that makes an ordinary `mpirun` line switchable.

Open MPI reads MCA parameters from `OMPI_MCA_*` variables, mpirun hands them on to every rank, and
`--mca` on the line wins over them: so a wrapper that only sets variables never overrides anybody.
What the user did set is looked at, and refused where it would make a switch impossible.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from kawarimi_ompi.build import OpenMpi
from kawarimi_wire.errors import PreflightRefused, Slug, UsageError

_PREFIX = "OMPI_MCA_"


class Choice(msgspec.Struct, frozen=True):
    """What the job is to run on.

    :ivar fabric: the BTL that a switch leaves and takes again.
    :ivar fallback: the BTL that carries the job meanwhile.
    :ivar agent: the guest agent's socket for ranks.
    :ivar include: interfaces or networks for btl/tcp, in its own syntax; empty for all.
    """

    fabric: str = "openib"
    fallback: str = "tcp"
    agent: Path = Path("/run/kawarimi/ranks.sock")
    include: str = ""


def parameters_on_line(command: Sequence[str]) -> dict[str, str]:
    """Read the MCA parameters that a command line sets, with one dash or two."""
    found = {}
    words = iter(command)
    for word in words:
        if word.lstrip("-") in ("mca", "gmca") and word.startswith("-"):
            name, value = next(words, ""), next(words, "")
            found[name] = value
    return found


def parameters(command: Sequence[str], variables: Mapping[str, str]) -> dict[str, str]:
    """Read the MCA parameters that the user set; those on the line win."""
    return {
        name.removeprefix(_PREFIX): value
        for name, value in variables.items()
        if name.startswith(_PREFIX)
    } | parameters_on_line(command)


class Kind(enum.StrEnum):
    """The kinds of shim."""

    BTL = "btl"
    UCP = "ucp"


_BTLS_ALONE = {"openib", "vader", "smcuda", "uct", "usnic"}
"""Names of BTLs that are not names of UCX's transports too."""


def choose_kind(
    given: Mapping[str, str], named: Sequence[str | None], open_mpi: OpenMpi, *, built: bool
) -> tuple[Kind, str]:
    """Choose a kind by what a job would use, and say why.

    :param given: the MCA parameters that the user set.
    :param named: the fabric and the fallback that the user named.
    :param built: whether the library of the kind `ucp` is there.
    """
    pml = given.get("pml", "")
    btls = [name for name in named if name in _BTLS_ALONE]
    if pml and not _selects(pml, "ucx"):
        return Kind.BTL, f"pml is {pml}"
    if pml and not pml.startswith("^"):
        return Kind.UCP, f"pml is {pml}"
    if btls:
        return Kind.BTL, f"{btls[0]} is a BTL"
    if "btl" in given:
        return Kind.BTL, f"btl is {given['btl']}"
    if not open_mpi.ucx:
        return Kind.BTL, "this Open MPI has no PML ucx"
    if not built:
        return Kind.BTL, "the library of the kind ucp is not built"
    return Kind.UCP, "this Open MPI has a PML ucx"


def _selects(selection: str, name: str) -> bool:
    """Whether an MCA selection list such as `a,b` or `^a,b` lets a component in."""
    listed = name in selection.lstrip("^").split(",")
    return listed != selection.startswith("^")


def _refuse(name: str, value: str, why: str) -> PreflightRefused:
    return PreflightRefused(
        Slug.NOT_SWITCHABLE_LAUNCH,
        f"the parameter {name}={value} cannot be switched: {why}",
        untouched="nothing was started",
        hint=f"leave {name} to kawarimi, or run mpirun without it",
        facts={"parameter": name, "value": value},
    )


def _check(given: Mapping[str, str], choice: Choice) -> None:
    """Refuse what the user set if it makes a switch impossible.

    :raise PreflightRefused: it does; the error names the parameter.
    """
    pml = given.get("pml", "ob1")
    if pml != "ob1":
        raise _refuse("pml", pml, "only PML ob1 sends over exchangeable BTLs")
    for role, name in (("fabric", choice.fabric), ("fallback", choice.fallback), ("", "self")):
        if "btl" in given and not _selects(given["btl"], name):
            raise _refuse("btl", given["btl"], f"it excludes {name} ({role or 'always needed'})")
    for component in ("rdma", "ucx"):
        if "osc" in given and _selects(given["osc"], component):
            raise _refuse(
                "osc", given["osc"], f"osc/{component} keeps endpoints and keys of its own"
            )
    if given.get("pml_ob1_use_all_rdma", "0").lower() not in ("0", "false", "no"):
        raise _refuse(
            "pml_ob1_use_all_rdma",
            given["pml_ob1_use_all_rdma"],
            "ob1 would start RDMA on a fabric that is being left",
        )


def _wanted(choice: Choice) -> dict[str, str]:
    """List the parameters that a switchable job needs, where the user leaves them open."""
    btls = dict.fromkeys((choice.fabric, choice.fallback, "vader", "self"))
    wanted = {
        "pml": "ob1",
        "btl": ",".join(btls),
        "osc": "^rdma,ucx",
        "hook_kawarimi_fabric": choice.fabric,
        "hook_kawarimi_fallback": choice.fallback,
        "hook_kawarimi_agent": str(choice.agent),
    }
    if choice.include:
        wanted |= {"btl_tcp_if_include": choice.include, "oob_tcp_if_include": choice.include}
    if choice.fabric == "openib":
        wanted |= {
            # openib refuses InfiniBand ports by default, in favour of UCX.
            "btl_openib_allow_ib": "1",
            # rdmacm, the only connection manager for RoCE, needs a per-peer first queue.
            "btl_openib_receive_queues": "P,128,256,192,128:P,12288,128,96,64:P,65536,64,48,32",
            "btl_openib_warn_no_device_params_found": "0",
            # A device that is absent now may be plugged later.
            "btl_base_warn_component_unused": "0",
        }
    return wanted


def environment(
    command: Sequence[str],
    variables: Mapping[str, str],
    open_mpi: OpenMpi,
    component: Path,
    choice: Choice,
) -> dict[str, str]:
    """Make the variables to start `command` with: those given, and what a switchable job needs.

    :param component: the directory of the native component.
    :raise UsageError: fabric and fallback are the same BTL.
    :raise PreflightRefused: the line or the variables make a switch impossible.
    """
    if choice.fabric == choice.fallback:
        raise UsageError(
            Slug.UNKNOWN_BTL,
            f"fabric and fallback are both {choice.fabric!r}",
            untouched="nothing was started",
        )
    given = parameters(command, variables)
    _check(given, choice)
    result = dict(variables)
    for name, value in _wanted(choice).items():
        if name not in given:
            result[_PREFIX + name] = value
    path = given.get("mca_base_component_path", open_mpi.component_path)
    result[_PREFIX + "mca_base_component_path"] = f"{path}:{component}"
    return result
