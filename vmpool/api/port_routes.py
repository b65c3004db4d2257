"""Port routes: what can be said of a sandbox's ports, as a table of its own.

Ports themselves are served by `reach`: what is below them is the guest's to say.
"""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, port_bodies, ports
from vmpool.api.auth import Access
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_SANDBOX: Final = (404, 410)
_KEPT: Final = (*_SANDBOX, 503, 507)

PORT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/ports",
        name="list_ports",
        summary="Return who may reach which ports of a sandbox",
        access=Access.SANDBOX,
        answers=(Answer(body=port_bodies.PortList, media=JSON),),
        problems=_SANDBOX,
        **reads(bodies.Nothing, ports.list_all),
    ),
    Route(
        method="PUT",
        path="/v1/sandboxes/{id}/ports",
        name="set_ports",
        summary="Set who may reach all ports of a sandbox",
        access=Access.SANDBOX,
        answers=(Answer(body=port_bodies.PortList, media=JSON),),
        problems=_KEPT,
        **takes(port_bodies.SetPortAccess, ports.set_all),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/ports/tokens",
        name="create_traffic_token",
        summary="Make a token that opens one port or all, and nothing else",
        access=Access.SANDBOX,
        answers=(Answer(status=201, body=port_bodies.TrafficTokenAnswer, media=JSON),),
        problems=_KEPT,
        **takes(port_bodies.CreateTrafficToken, ports.create_token),
    ),
    Route(
        method="DELETE",
        path="/v1/sandboxes/{id}/ports/tokens/{token}",
        name="revoke_traffic_token",
        summary="Make such a token useless",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_KEPT,
        **reads(bodies.Nothing, ports.revoke_token),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/ports/{port}",
        name="look_at_port",
        summary="Return who may reach a port, and where",
        access=Access.SANDBOX,
        answers=(Answer(body=port_bodies.PortAnswer, media=JSON),),
        problems=_SANDBOX,
        **reads(bodies.Nothing, ports.look),
    ),
    Route(
        method="PUT",
        path="/v1/sandboxes/{id}/ports/{port}",
        name="set_port",
        summary="Set who may reach a port",
        access=Access.SANDBOX,
        answers=(Answer(body=port_bodies.PortAnswer, media=JSON),),
        problems=_KEPT,
        **takes(port_bodies.SetPortAccess, ports.set_one),
    ),
)
