"""Address: where a server listens, as settings write it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from vmpool.errors import HostError


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `HOST:PORT`.

        Raises:
            HostError: `invalid_settings`.
        """
        host, colon, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        known = bool(colon and bare) and (":" not in bare or bare != host)
        if not known or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
            raise HostError(
                f"listen is {text!r}, not an address and a port",
                code="invalid_settings",
                remedy="write it like 127.0.0.1:8700",
            )
        return cls(host=bare, port=int(port))

    @property
    def loopback(self) -> bool:
        """Whether only programs on this host can connect; a name but `localhost` is not trusted."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
