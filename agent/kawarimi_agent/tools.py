"""Run the system's own tools: ip and rdma."""

from __future__ import annotations

import asyncio
import shlex
from typing import TypeVar

import msgspec

from kawarimi_wire.errors import ExecutionFailed, Scope, Slug

DEADLINE_S = 10.0

_T = TypeVar("_T")


async def run(*argv: str, stdin: bytes = b"") -> bytes:
    """Run a tool to its end, and return what it writes.

    :raise ExecutionFailed: `program-missing`, `command-failed` or `command-timeout`.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise ExecutionFailed(
            Slug.PROGRAM_MISSING,
            f"the agent cannot run {argv[0]}: {error.strerror}",
            hint="install iproute2 in the guest",
            scope=Scope.GUEST,
        ) from error
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate(stdin)
    except TimeoutError as error:
        raise _failed(Slug.COMMAND_TIMEOUT, argv, f"did not end in {DEADLINE_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise _failed(Slug.COMMAND_FAILED, argv, f"failed: {said}")
    return out


def parse(type_: type[_T], out: bytes, *argv: str) -> _T:
    """Return the JSON that a tool has printed; nothing is an empty list.

    :raise ExecutionFailed: `command-failed`: it is something else.
    """
    try:
        return msgspec.json.decode(out.strip() or b"[]", type=type_)
    except msgspec.DecodeError as error:
        raise _failed(Slug.COMMAND_FAILED, argv, f"printed something else: {error}") from error


def _failed(slug: Slug, argv: tuple[str, ...], how: str) -> ExecutionFailed:
    return ExecutionFailed(slug, f"in the guest, {shlex.join(argv)!r} {how}", scope=Scope.GUEST)
