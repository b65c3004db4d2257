"""Network routes: what a sandbox may reach, as a table of its own."""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, network_bodies, network_events, networks
from vmpool.api.auth import Access
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_SANDBOX: Final = (404, 410)

NETWORK_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/network",
        name="show_network",
        summary="Return what a sandbox may reach, and what passed",
        access=Access.SANDBOX,
        answers=(Answer(body=network_bodies.NetworkAnswer, media=JSON),),
        problems=(*_SANDBOX, 503),
        **reads(bodies.Nothing, networks.show),
    ),
    Route(
        method="PUT",
        path="/v1/sandboxes/{id}/network",
        name="set_network",
        summary="Set what a sandbox may reach, while it runs or is paused",
        # Not by the sandbox's own token: what runs in it may hold that.
        access=Access.OWNER,
        answers=(Answer(body=network_bodies.NetworkAnswer, media=JSON),),
        problems=(*_SANDBOX, 409, 429, 502, 503, 507),
        **takes(network_bodies.Network, networks.replace),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/network/events",
        name="read_network_events",
        summary="Stream what a sandbox was denied, line by line",
        access=Access.SANDBOX,
        answers=(Answer(body=network_events.EventLine, media=network_events.NDJSON),),
        problems=_SANDBOX,
        **reads(network_events.EventsQuery, network_events.events),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/network/capture",
        name="capture_packets",
        summary="Send the packets that pass a sandbox's link, as pcap, while they do",
        access=Access.OWNER,
        answers=(Answer(media=network_events.PCAP),),
        problems=(*_SANDBOX, 409, 503),
        **reads(network_events.CaptureQuery, network_events.capture),
    ),
)
