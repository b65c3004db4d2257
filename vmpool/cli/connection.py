"""Connection: which server a command talks to, and with which token.

In order: what was given on the command line, the environment, and what a server on this host left
in its state directory. A token that was found there is sent to servers on this host alone.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from vmpool.cli import local
from vmpool.cli.remote import Endpoint, Remote
from vmpool.cli.state import client_state_option
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_SERVER = "http://127.0.0.1:8700"


def find_endpoint(
    *, server: str | None, token: str | None, token_file: Path | None, state: Path
) -> Endpoint:
    """Return the server to talk to, from what was given and what is found.

    Raises:
        InvalidRequestError: `token_unreadable`: the token's file was named and cannot be read.
    """
    found = local.read_server(state)
    url = (server or found or DEFAULT_SERVER).rstrip("/")
    if "://" not in url:
        url = f"http://{url}"
    if token:
        return Endpoint(url=url, token=token)
    if token_file is not None:
        return Endpoint(url=url, token=_read_token_file(token_file))
    if url != found and not _is_loopback(url):
        return Endpoint(url=url)
    try:
        return Endpoint(url=url, token=local.read_token(state))
    except PermissionError:
        path = local.token_path(state)
        return Endpoint(url=url, token_remedy=f"{path} holds one, but not for this account")


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server, and the connection as its first argument."""

    @click.option("--server", envvar="VMPOOL_SERVER", metavar="URL", help="Server to ask.")
    @click.option(
        "--token",
        envvar="VMPOOL_TOKEN",
        metavar="TOKEN",
        help="Token to ask with; others on this host can read it here, so prefer VMPOOL_TOKEN.",
    )
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File that holds the token.",
    )
    @client_state_option
    @functools.wraps(command)
    def connected(
        *,
        server: str | None,
        token: str | None,
        token_file: Path | None,
        state: Path,
        **options: Any,
    ) -> None:
        endpoint = find_endpoint(server=server, token=token, token_file=token_file, state=state)
        with contextlib.closing(Remote(endpoint)) as remote:
            command(remote, **options)

    return connected


def _read_token_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidRequestError(
            f"cannot read a token from {str(path)!r}: {err}", code="token_unreadable"
        ) from err


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
