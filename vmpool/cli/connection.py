"""Connection: the options by which a command is told its server, and the connection to it."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli.remote import Remote
from vmpool.cli.state import client_state_option
from vmpool.client.endpoint import SERVER_VARIABLE, TOKEN_VARIABLE, find_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server, and the connection as its first argument."""

    @click.option("--server", envvar=SERVER_VARIABLE, metavar="URL", help="Server to ask.")
    @click.option(
        "--token",
        envvar=TOKEN_VARIABLE,
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
