"""Running: a host behind an HTTP server, for `serve` and `up`."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING

from vmpool import api, local, precedence
from vmpool.cli import report
from vmpool.cli.listening import Interrupt, url_of
from vmpool.client.endpoint import Endpoint
from vmpool.scope import Role
from vmpool.store import LOCAL

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vmpool.cli.listening import Interrupts
    from vmpool.host import Host
    from vmpool.store import Store

LOCAL_TOKEN_NAME = "local"  # noqa: S105 -- what lists show, no secret


@contextlib.asynccontextmanager
async def served(host: Host, listener: socket.socket) -> AsyncIterator[Endpoint]:
    """Serve a host for the time of a block; yield how a client on this machine reaches it.

    The address, and a token unless the server asks for none, are left in the state directory for
    the command line.

    Raises:
        VmpoolError: As `vmpool.api.serve`, or the token could not be made.
    """
    state = host.settings.state
    token = await _local_token(host.store, state) if not host.settings.insecure_no_tokens else ""
    url = url_of(listener)
    # Announced for as long as it answers anybody, also as it makes way for another.
    app = api.make_app(host)
    with local.announced(state, url), _settled(), precedence.before_guests():
        async with api.serve(app, listener):
            yield Endpoint(url=url, token=token)


def places(host: Host, endpoint: Endpoint) -> str:
    """Say where a host is served: for this machine, and over TLS for all where it is."""
    interface = host.settings.api
    if interface.certificate is None or not interface.domain:
        return endpoint.url
    return f"{endpoint.url} and, over TLS, https://api.{interface.domain}"


@contextlib.contextmanager
def _settled() -> Iterator[None]:
    """Keep what is there from the garbage collector, for the time of a block.

    Modules, routes and the document of the interface are some 85,000 objects that stay; to look
    through them held every request up for 46 ms whenever enough had come and gone.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def ended(interrupts: Interrupts, host: Host) -> None:
    """Return once a server is to end, and have its host know how."""
    match await interrupts.wait():
        case Interrupt.STOP:
            report.say("stopping")
        case Interrupt.HAND_OVER:
            report.say("handing over to another server")
            host.hand_over()


async def _local_token(store: Store, state: Path) -> str:
    """Return the token for this host's command line: the one kept, if it is still good."""
    kept = local.read_token(state)
    if kept and await store.tokens.find(kept) is not None:
        return kept
    token, _ = await store.tokens.add(LOCAL_TOKEN_NAME, Role.ADMIN.scopes, tenant=LOCAL)
    local.write_token(state, token)
    return token
