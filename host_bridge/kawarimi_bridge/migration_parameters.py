"""How a guest is moved: what QEMU is told on both sides before a migration.

Every capability and every parameter is set each time: QEMU keeps what an earlier role left (a guest
that arrived with multifd would leave with it).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from kawarimi_bridge.qmp import Monitor

_TLS_ID = "kawarimi-tls"


class Role(enum.StrEnum):
    """A side of a migration, as QEMU's TLS credentials call it."""

    SOURCE = "client"
    DESTINATION = "server"


@dataclass(frozen=True)
class MigrationParameters:
    """How a guest is moved.

    `bandwidth` is in bytes per second, 0 for as fast as it goes; `downtime_limit_s` is the pause
    that QEMU aims for; `multifd_channels` is the number of parallel streams, None for one stream.

    With `postcopy`, the guest goes over when its memory has been sent once, and the rest follows
    when it is touched: however much the guest writes, it arrives; from then on, it depends on both
    hosts until the last page has come. `tls` is the folder of the certificates on both hosts
    (QEMU's tls-creds-x509), empty for none; the destination's names `tls_hostname`, empty for the
    address that the guest is sent to.
    """

    bandwidth: int = 0
    downtime_limit_s: float = 0.3
    multifd_channels: int | None = None
    postcopy: bool = False
    tls: str = ""
    tls_hostname: str = ""

    def share(self, guests: int) -> MigrationParameters:
        """Return the parameters of each of several guests that are moved side by side."""
        return replace(self, bandwidth=self.bandwidth // max(guests, 1))

    def capabilities(self) -> dict[str, bool]:
        """Return the capabilities that are on; all others are switched off."""
        multifd = self.multifd_channels is not None
        return {"events": True, "multifd": multifd, "postcopy-ram": self.postcopy}

    def parameters(self) -> dict[str, object]:
        """Return QEMU's own parameters."""
        parameters: dict[str, object] = {
            "max-bandwidth": self.bandwidth or 2**40,
            "max-postcopy-bandwidth": self.bandwidth,
            "downtime-limit": round(self.downtime_limit_s * 1000),
            "tls-creds": _TLS_ID if self.tls else "",
            "tls-hostname": self.tls_hostname,
        }
        if self.multifd_channels is not None:
            parameters["multifd-channels"] = self.multifd_channels
        return parameters


async def configure(monitor: Monitor, parameters: MigrationParameters, role: Role) -> None:
    """Tell one side; it migrates nothing yet.

    :raise ExecutionFailed: `qmp-refused` with QEMU's words: it does not have what is asked for.
    """
    wanted = parameters.capabilities()
    known = await monitor.execute("query-migrate-capabilities")
    capabilities = [
        {"capability": entry["capability"], "state": wanted.get(entry["capability"], False)}
        for entry in known
    ]
    await monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})
    await _set_credentials(monitor, parameters, role)
    await monitor.execute("migrate-set-parameters", parameters.parameters())


async def _set_credentials(monitor: Monitor, parameters: MigrationParameters, role: Role) -> None:
    """Give QEMU the TLS credentials for its role; those of an earlier role go."""
    objects = await monitor.execute("qom-list", {"path": "/objects"})
    if any(entry["name"] == _TLS_ID for entry in objects):
        await monitor.execute("migrate-set-parameters", {"tls-creds": ""})
        await monitor.execute("object-del", {"id": _TLS_ID})
    if parameters.tls:
        credentials = {
            "qom-type": "tls-creds-x509",
            "id": _TLS_ID,
            "dir": parameters.tls,
            "endpoint": str(role),
            "verify-peer": True,
        }
        await monitor.execute("object-add", credentials)
