"""Tunnel: a connection to what listens in a guest, over the agent's stream.

No packet goes from the host's network to the guest's: the agent connects inside and carries the
bytes. What they mean is not known here.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.agent import answers
from vmpool.agent.asking import patience
from vmpool.errors import ConflictError, GuestError, TaskError, VmpoolError
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Any

    from vmpool.agent.link import Link, LinkChannel

REFUSALS = {
    "connection_reset": "",
    "port_closed": "start a server on it, one that listens on 127.0.0.1 or on all addresses",
    "port_unresponsive": "look at what the server does that listens there",
}
"""What a guest may say in place of a connection, or at its end, and what to do about it."""

_CONTENT = 0
_PATIENCE = 20.0
"""Seconds for a connection to come about; the agent gives up after 10."""


class Tunnel:
    """A connection to a port of a guest: bytes both ways, each of which ends by itself.

    One reader and one writer at a time. Who reads slowly holds the guest back; who writes waits
    while the guest does not read.
    """

    def __init__(self, channel: LinkChannel) -> None:
        self._channel = channel

    async def receive(self) -> bytes:
        """Return what comes next, at most 32 KiB; nothing once the peer sends no more.

        Raises:
            TaskError: `connection_reset`; the peer broke it off.
            GuestError: The guest died or broke the protocol.
        """
        event = await self._channel.receive()
        if isinstance(event, wire.Data):
            return event.payload
        if event is None:
            return b""
        raise _refusal(answers.expect(event))

    async def send(self, data: bytes) -> bool:
        """Send bytes; return whether the peer may still take them.

        Raises:
            GuestError: The link is gone.
        """
        return await self._channel.send_data(_CONTENT, data)

    def finish(self) -> None:
        """Let the peer see the end of what is sent. *Idempotent.*"""
        self._channel.finish()


@contextlib.asynccontextmanager
async def tunnelling(link: Link, port: int) -> AsyncGenerator[Tunnel, None]:
    """Connect to a port of the guest's loopback for the time of a block.

    Leaving it before both sides have ended breaks the connection off.

    Raises:
        TaskError: `port_closed`: nothing listens there; `port_unresponsive`: what does takes no
            connection; `guest_no_resources`.
        ConflictError: `ports_unsupported`; the guest's agent is older than this server.
        GuestError: The guest died, hung or broke the protocol.
    """
    async with link.open() as channel:
        async with patience(_PATIENCE):
            await channel.send_message({"op": "connect", "port": port})
            answer = answers.expect(await channel.receive())
        if answer.get("type") != "connected":
            raise _refusal(answer)
        yield Tunnel(channel)


def _refusal(message: dict[str, Any]) -> VmpoolError:
    """Return the error that a message tells of; one that tells of none breaks the protocol."""
    if message.get("type") != "error":
        return GuestError("something else than a connection came", code="guest_protocol")
    if message.get("code") == "bad_request":
        return ConflictError(
            "the agent in this guest knows no ports",
            code="ports_unsupported",
            remedy="make its template anew; sandboxes of the new one have ports",
        )
    refused = answers.refusal(message, frozenset(REFUSALS), TaskError)
    refused.remedy = REFUSALS.get(refused.error_code, "")
    return refused
