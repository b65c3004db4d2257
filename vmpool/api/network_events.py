"""Network events: what a sandbox was denied on the network, and the packets that pass its link.

Both are looked at from outside: the guest does not notice, and a reader who is slow holds up
nothing. A sandbox that is paused is not woken for it.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final

from aiohttp import web
from msgspec import Meta, Struct

from vmpool.api import codec, outflow, views
from vmpool.network.capture import MEDIA_TYPE, CaptureLimits

if TYPE_CHECKING:
    from vmpool.api.route import Call
    from vmpool.network.events import Event, Page

NDJSON: Final = "application/x-ndjson"
PCAP: Final = MEDIA_TYPE


class EventsQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events: those after a cursor, and with `follow` also those to come."""

    after: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] = "0"
    follow: bool = False


class CaptureQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the capture ends by itself; no later than the server's limits say."""

    seconds: Annotated[float, Meta(gt=0)] = 60.0
    bytes: Annotated[int, Meta(ge=1024)] = 10 << 20


class DenialLine(Struct, frozen=True, kw_only=True, tag="denial", tag_field="type"):
    """Something that the guest tried and was denied.

    `protocol` is `tcp`, `udp`, `icmp`, `dns` or a number of IP's; `rule` what denied it. For `dns`
    the destination is an address that an answer held, if that is why. `name` is what was asked for,
    or what last led to the destination.
    """

    cursor: str
    at: str
    protocol: str
    destination: str | None
    port: int | None
    name: str | None
    rule: str


class LostLine(Struct, frozen=True, kw_only=True, tag="lost", tag_field="type"):
    """The first line, and whenever it grows: how many of all its denials are not kept."""

    count: int


EventLine = DenialLine | LostLine


async def events(call: Call, query: EventsQuery) -> web.StreamResponse:
    """Tell what was denied and is kept; who follows is told what comes, until the sandbox ends."""
    log = await call.host.networks.denials(call.request.match_info["id"], owner=call.caller.owner)
    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    await response.prepare(call.request)
    lost = -1

    async def tell(page: Page) -> None:
        nonlocal lost
        lines: list[EventLine] = [LostLine(count=page.lost)] if page.lost > lost else []
        lost = max(lost, page.lost)
        data = b"".join(codec.encode(line) + b"\n" for line in [*lines, *map(_line, page.events)])
        await outflow.send(response.write(data), call.limits)

    kept = log.since(int(query.after))
    await tell(kept)
    if query.follow:
        async with aclosing(log.follow(kept.cursor)) as pages:
            async for page in pages:
                await tell(page)
    await response.write_eof()
    return response


async def capture(call: Call, query: CaptureQuery) -> web.StreamResponse:
    """Send packets as a file that grows, while they pass."""
    limits = CaptureLimits(
        size_bytes=min(query.bytes, call.host.settings.network.capture_bytes),
        seconds=min(query.seconds, call.host.settings.network.capture_seconds),
    )
    id = call.request.match_info["id"]
    response = web.StreamResponse(headers={"Content-Type": PCAP})
    async with (
        call.host.networks.capture(id, limits, owner=call.caller.owner) as capture,
        aclosing(capture.pieces()) as pieces,
    ):
        await response.prepare(call.request)
        async for piece in pieces:
            await outflow.send(response.write(piece), call.limits)
    await response.write_eof()
    return response


def _line(event: Event) -> DenialLine:
    denial = event.denial
    return DenialLine(
        cursor=str(event.cursor),
        at=views.rfc3339(event.time_ns),
        protocol=denial.protocol,
        destination=None if denial.destination is None else str(denial.destination),
        port=denial.port,
        name=denial.name,
        rule=denial.rule,
    )
