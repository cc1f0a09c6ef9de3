"""Speak to a guest's unix sockets from this machine, through ssh."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from kawarimi_wire.errors import ExecutionFailed, Scope, Slug

SSH_KEY = "ssh-key"
"""The name of the harness's key in the folder of a testbed that was started with ssh."""
_DEADLINE_S = 60.0
_POLL_S = 0.05


@contextlib.asynccontextmanager
async def forward_socket(
    testbed: Path, namespace: str, address: str, socket: str
) -> AsyncIterator[Path]:
    """Forward connections to a new unix socket here to one in a guest; yield the one here.

    :param testbed: the folder of a testbed that was started with ssh.
    :param namespace: where the guest's Ethernet can be reached from.
    :raise ExecutionFailed: `guest-unreachable`.
    """
    with tempfile.TemporaryDirectory(prefix="kawarimi-") as folder:
        local = Path(folder) / "socket"
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "--", "ip", "netns", "exec", namespace),
            *("ssh", "-N", "-i", str(testbed / SSH_KEY), "-L", f"{local}:{socket}"),
            # The guest's key is as old as the testbed, whose network nobody else is on.
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "LogLevel=ERROR", "-o", "ExitOnForwardFailure=yes", f"root@{address}"),
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_DEADLINE_S):
                while not local.exists():
                    if process.returncode is not None:
                        raise ConnectionError(f"ssh ended with exit code {process.returncode}")
                    await asyncio.sleep(_POLL_S)  # for ssh to listen, which it does not announce
            yield local
        except (TimeoutError, ConnectionError) as error:
            raise ExecutionFailed(
                Slug.GUEST_UNREACHABLE,
                f"No connection over ssh to {address}: {error or 'time-out'}.",
                hint="was the testbed started with ssh?",
                scope=Scope.GUEST,
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
