"""The bridge's configuration: hosts, guests, and the HCA that each guest gets on each host.

One TOML file. Which one: `--config`, else `KAWARIMI_CONFIG`, else `~/.config/kawarimi/config.toml`,
else `/etc/kawarimi/config.toml`. See docs/configuration.md for every key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from kawarimi_bridge.hca import Hca
from kawarimi_wire.errors import Slug, UsageError

_T = TypeVar("_T")

SYSTEM_FILE = Path("/etc/kawarimi/config.toml")


class HostConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host.

    :ivar address: its IP address, on which arriving guests are listened for.
    :ivar run: words before a command that is to run on this host, as `["ssh", "hostb"]`; empty for
        the machine on which the bridge runs.
    """

    address: str
    run: tuple[str, ...] = ()


class HcaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The HCA that a guest gets on one host.

    :ivar fabric: the name of the fabric that it is on; guests reach each other over the same one.
    :ivar slot: the id of the guest's PCIe root port that it goes into.
    :ivar driver: QEMU's; `properties`: the driver's own, `host` for vfio-pci.
    :ivar mac: of its network interface in the guest, by which the agent knows it; empty if any
        verbs device that appears is the one.
    :ivar address: what the agent gives its network interface, as ADDRESS/PREFIX; empty if the
        guest does that itself.
    """

    fabric: str
    slot: str = "hca-port"
    id: str = "hca0"
    driver: str = "vfio-pci"
    properties: dict[str, str | int | bool] = {}
    mac: str = ""
    address: str = ""

    def hca(self) -> Hca:
        """Return the HCA as QEMU is told of it."""
        return Hca(self.id, self.slot, self.driver, dict(self.properties))


class GuestConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guest.

    :ivar agent: its agent's endpoint, `tcp://ADDRESS:PORT`, the same on every host.
    :ivar agent_key: its agent's public key, as `kawarimi keys show` prints it.
    :ivar qmp: the path of its QEMU's monitor socket; `{guest}` and `{host}` are replaced.
    :ivar start: the command that starts its QEMU on a host, waiting for it (`-incoming defer`);
        `{guest}` and `{host}` are replaced. It returns once QEMU runs (`-daemonize`).
    :ivar hcas: the HCA that it gets, by host; it has Ethernet only on the others.
    """

    agent: str
    agent_key: str
    qmp: str
    start: tuple[str, ...]
    hcas: dict[str, HcaConfig] = {}

    @property
    def address(self) -> str:
        """Return its IP address on the Ethernet, which its agent listens on."""
        return urlsplit(self.agent).hostname or ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    :ivar key: the file of the bridge's own key pair (`kawarimi keys generate bridge`).
    """

    hosts: dict[str, HostConfig]
    guests: dict[str, GuestConfig]
    key: str = "/etc/kawarimi/keys/bridge.key_secret"

    def guest(self, name: str) -> GuestConfig:
        """Return a guest.

        :raise UsageError: `unknown-guest`.
        """
        return _named(self.guests, name, Slug.UNKNOWN_GUEST, "guest")

    def host(self, name: str) -> HostConfig:
        """Return a host.

        :raise UsageError: `unknown-host`.
        """
        return _named(self.hosts, name, Slug.UNKNOWN_HOST, "host")

    def hca(self, guest: str, host: str) -> HcaConfig | None:
        """Return the HCA that a guest gets on a host; None where it has Ethernet only."""
        return self.guest(guest).hcas.get(host)

    def fabric(self, guest: str, host: str) -> str:
        """Return the name of the fabric that a guest is on while on a host; empty for none."""
        hca = self.hca(guest, host)
        return hca.fabric if hca else ""


def _named(known: Mapping[str, _T], name: str, slug: Slug, kind: str) -> _T:
    if name in known:
        return known[name]
    raise UsageError(
        slug,
        f"The configuration has no {kind} {name!r}.",
        untouched="nothing was begun",
        hint=f"its {kind}s are {', '.join(known) or '(none)'}",
    )


def config_file(flag: Path | None) -> Path:
    """Return the file that is to be read."""
    if flag:
        return flag
    if named := os.environ.get("KAWARIMI_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    own = Path(base) / "kawarimi" / "config.toml"
    return own if own.exists() else SYSTEM_FILE


def read_config(flag: Path | None = None) -> Config:
    """Read the configuration.

    :raise UsageError: `bad-configuration`, naming the file, the key and what is wrong with it.
    """
    file = config_file(flag)
    try:
        content: dict[str, Any] = tomllib.loads(file.read_text())
        config = msgspec.convert(content, type=Config)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise _bad(file, error.strerror if isinstance(error, OSError) else str(error)) from error
    for name, guest in config.guests.items():
        if not guest.address:
            raise _bad(file, f"guests.{name}.agent is not tcp://ADDRESS:PORT: {guest.agent!r}")
        for host in guest.hcas:
            if host not in config.hosts:
                raise _bad(file, f"guests.{name}.hcas names a host {host!r} that is not in hosts")
        if "{host}" not in guest.qmp and len(config.hosts) > 1:
            raise _bad(file, f"guests.{name}.qmp must contain {{host}}: {guest.qmp!r}")
    return config


def _bad(file: Path, why: str | None) -> UsageError:
    return UsageError(
        Slug.BAD_CONFIGURATION,
        f"The configuration {file} cannot be used: {why}",
        untouched="nothing was begun",
        hint="see docs/configuration.md; name another file with --config or KAWARIMI_CONFIG",
    )
