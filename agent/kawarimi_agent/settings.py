"""The agent's configuration: the command line, then KAWARIMI_AGENT_*, then agent.toml."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kawarimi_agent.control import RUN_DIRECTORY
from kawarimi_wire.errors import Slug, UsageError

FILE = Path("/etc/kawarimi/agent.toml")
PREFIX = "KAWARIMI_AGENT_"
PORT = 7117
"""The port that examples and the testbed use; nothing is assumed to listen there."""

_ENDPOINT = re.compile(r"tcp://(?P<address>\*|[0-9A-Za-z.:%_-]+|\[[0-9a-fA-F:]+\]):\d{1,5}")

_ALLOWED = {
    "listen": f"an endpoint such as tcp://192.0.2.11:{PORT}, or nothing for no ZeroMQ",
    "secret_key": "the file of the agent's own secret key, NAME.key_secret",
    "bridges": "the folder of the public keys (*.key) of the bridges that are admitted",
    "guest": "the guest's name as the bridge calls it; by default the host name",
    "run_directory": "the folder of the agent's unix sockets",
}


class Settings(msgspec.Struct, frozen=True):
    """What an agent is told.

    :ivar listen: the endpoint towards bridges; empty for none.
    :ivar insecure: whether anybody who reaches the endpoint is admitted; loopback only.
    """

    guest: str
    run_directory: Path
    listen: str = ""
    secret_key: Path | None = None
    bridges: Path | None = None
    insecure: bool = False


def load(
    flags: Mapping[str, str | None],
    environment: Mapping[str, str] = os.environ,
    *,
    insecure: bool = False,
    file: Path | None = None,
) -> Settings:
    """Put the configuration together.

    :param flags: what the command line says; None for what it leaves open.
    :param file: instead of the usual one, which need not be there.
    :raise UsageError: `bad-configuration`, with what is wrong, where, and what is allowed.
    """
    values: dict[str, tuple[str, str]] = {}
    """Value and where it stands, by key."""
    values.update(_from_file(file or FILE, required=file is not None))
    for key in _ALLOWED:
        variable = PREFIX + key.upper()
        if environment.get(variable):
            values[key] = (environment[variable], variable)
        if (flag := flags.get(key)) is not None:
            values[key] = (flag, f"--{key.replace('_', '-')}")
    return _checked(values, insecure)


def _from_file(path: Path, *, required: bool) -> dict[str, tuple[str, str]]:
    try:
        with path.open("rb") as file:
            table: dict[str, Any] = tomllib.load(file)
    except FileNotFoundError:
        if not required:
            return {}
        raise _bad(str(path), "the file", "there is no such file", "") from None
    except OSError as error:
        raise _bad(str(path), "the file", error.strerror or str(error), "") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad(str(path), "the file", str(error), "TOML") from error
    for key, value in table.items():
        if key not in _ALLOWED:
            raise _bad(str(path), key, "no such key", f"one of {', '.join(_ALLOWED)}")
        if not isinstance(value, str):
            raise _bad(str(path), key, f"{value!r} is no text", _ALLOWED[key])
    return {key: (value, str(path)) for key, value in table.items()}


def _checked(values: dict[str, tuple[str, str]], insecure: bool) -> Settings:
    def get(key: str) -> str:
        return values.get(key, ("", ""))[0]

    def bad(key: str, why: str) -> UsageError:
        where = values.get(key, ("", "the configuration"))[1]
        return _bad(where, key, why, _ALLOWED[key])

    listen = get("listen")
    if listen:
        match = _ENDPOINT.fullmatch(listen)
        if not match:
            raise bad("listen", f"{listen!r} is no such endpoint")
        if insecure and not _is_loopback(match["address"]):
            raise bad("listen", f"{listen!r} is not the loopback, and --insecure is given")
        for key in () if insecure else ("secret_key", "bridges"):
            if not get(key):
                raise bad(key, "it is missing, and 'listen' is given")
        if not insecure and not Path(get("bridges")).is_dir():
            raise bad("bridges", f"{get('bridges')!r} is no folder")
    return Settings(
        guest=get("guest") or socket.gethostname(),
        run_directory=Path(get("run_directory") or RUN_DIRECTORY),
        listen=listen,
        secret_key=Path(get("secret_key")) if get("secret_key") else None,
        bridges=Path(get("bridges")) if get("bridges") else None,
        insecure=insecure,
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _bad(where: str, key: str, why: str, allowed: str) -> UsageError:
    return UsageError(
        Slug.BAD_CONFIGURATION,
        f"{where}: {key}: {why}." + (f" Allowed: {allowed}." if allowed else ""),
        untouched="nothing was begun",
        hint="correct it and start the agent again",
        facts={"where": where, "key": key},
    )
