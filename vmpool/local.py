"""Local access: what a server leaves in its state directory for clients on its host.

Its address while it runs, and a token that only the server's own account can read. Neither is
needed by anyone else.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_FILE = "local-token"  # noqa: S105 -- a file's name
SERVER_FILE = "local-server"

_LIMIT_BYTES = 4096

_PORTS = {"http": 80, "https": 443}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOCALHOST = ("127.0.0.1", "::1")
"""Where the name leads: clients try both."""

_ALL = frozenset({"00000000", "0" * 32})

_LISTENING = "0A"  # TCP_LISTEN in include/net/tcp_states.h


def token_path(state: Path) -> Path:
    """Return where the local token is kept."""
    return state / TOKEN_FILE


def read_token(state: Path) -> str:
    """Return the local token, empty when there is none.

    Raises:
        PermissionError: There is one, of another account.
    """
    return _read(token_path(state))


def read_server(state: Path) -> str:
    """Return the address that a server left, empty when there is none to be read."""
    try:
        return _read(state / SERVER_FILE)
    except PermissionError:
        return ""


def serves(state: Path, url: str) -> bool:
    """Tell whether the account that the local token belongs to is the one that listens at `url`.

    A server that is gone leaves its port to whoever takes it.
    """
    try:
        owner = token_path(state).stat().st_uid
        place = urlsplit(url)
        host, port = place.hostname or "", place.port or _PORTS[place.scheme]
        names = _LOCALHOST if host == "localhost" else (host,)
        addresses = [ipaddress.ip_address(name) for name in names]
    except (KeyError, OSError, ValueError):
        return False
    wanted = _ALL.union(*map(_as_listed, addresses))
    anywhere = any(address.is_unspecified for address in addresses)
    accounts = {uid for listed, uid in _listeners(port) if listed in wanted or anywhere}
    return accounts == {owner}


def _listeners(port: int) -> Iterator[tuple[str, int]]:
    """Yield the address, as the kernel lists it, and the account of all who listen on a port."""
    for name in ("tcp", "tcp6"):  # proc_net(5)
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if fields[3] == _LISTENING and int(number, 16) == port:
                    yield address, int(fields[7])


def _as_listed(address: _Address) -> set[str]:
    """Return an address in hexadecimal, in words of the processor's order, and as version 6."""
    ways = [address.packed]
    if address.version == 4:
        ways.append(ipaddress.IPv6Address(f"::ffff:{address}").packed)
    return {
        b"".join(packed[at : at + 4][::-1] for at in range(0, len(packed), 4)).hex().upper()
        for packed in ways
    }


def write_token(state: Path, token: str) -> None:
    """Keep the local token, readable by this account alone."""
    _write(token_path(state), token)


@contextlib.contextmanager
def announced(state: Path, url: str) -> Iterator[None]:
    """Leave a server's address for as long as the block runs."""
    _write(state / SERVER_FILE, url)
    try:
        yield
    finally:
        if read_server(state) == url:
            (state / SERVER_FILE).unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT_BYTES).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.new-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    beside.replace(path)
