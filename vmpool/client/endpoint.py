"""Endpoint: which server to talk to, and with which token.

In order: what was given, the environment, and what a server on this host left in its state
directory. A token that was found there is sent to servers on this host alone, and to none but the
account that it belongs to.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vmpool import config, local
from vmpool.errors import HostError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_SERVER = "http://127.0.0.1:8700"
SERVER_VARIABLE = "VMPOOL_SERVER"
TOKEN_VARIABLE = "VMPOOL_TOKEN"  # noqa: S105 -- a variable's name

_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is and what opens it.

    Attributes:
        url: `http://host:port`, no path.
        token: Bearer token, empty when none is known.
        token_remedy: Where a token could come from, for when the server asks for one.
    """

    url: str
    token: str = field(default="", repr=False)
    token_remedy: str = ""


def find_endpoint(
    *,
    server: str | None = None,
    token: str | None = None,
    token_file: Path | None = None,
    state: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Endpoint:
    """Return the server to talk to, from what was given and what is found.

    Args:
        server: Its address; `http://` may be left out.
        token: The token; goes before `token_file`.
        token_file: File that holds the token.
        state: State directory of a server on this host, by default that of the settings.
        environ: Where `VMPOOL_SERVER` and `VMPOOL_TOKEN` are looked up; a token that was given in
            either form goes before it.

    Raises:
        InvalidRequestError: `token_unreadable`: the token's file was named and cannot be read.
    """
    state = found_state() if state is None else state
    found = local.read_server(state)
    url = server or environ.get(SERVER_VARIABLE) or found or DEFAULT_SERVER
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    if token:
        return Endpoint(url=url, token=token)
    if token_file is not None:
        return Endpoint(url=url, token=_read_token_file(token_file))
    if environ.get(TOKEN_VARIABLE):
        return Endpoint(url=url, token=environ[TOKEN_VARIABLE])
    if url != found and not _is_loopback(url):
        return Endpoint(url=url)
    return _on_this_host(state, url)


def _on_this_host(state: Path, url: str) -> Endpoint:
    """Return the endpoint with the token that a server left, if that is who listens there."""
    try:
        token = local.read_token(state)
    except PermissionError:
        path = local.token_path(state)
        return Endpoint(url=url, token_remedy=f"{path} holds one, but not for this account")
    if token and not local.serves(state, url):
        return Endpoint(url=url, token_remedy=f"no server on {state} listens at {url}")
    return Endpoint(url=url, token=token)


def found_state() -> Path:
    """Return the state directory of this host's server, as far as this account can know."""
    try:
        return config.load().state
    except HostError:
        return config.default_state(os.environ, os.geteuid())


def _read_token_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LIMIT_BYTES).strip()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidRequestError(
            f"cannot read a token from {str(path)!r}: {err}", code="token_unreadable"
        ) from err


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
