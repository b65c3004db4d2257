"""Networks: what a sandbox may reach, asked, shown and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from vmpool import egress
from vmpool.api import network_bodies
from vmpool.api.route import Call, answer
from vmpool.network import names

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api import bodies
    from vmpool.connecting import NetworkStatus
    from vmpool.egress import NetworkPolicy


def policy_of(body: network_bodies.Network) -> NetworkPolicy:
    """Return the policy that somebody asks for, its domains in one form.

    Raises:
        InvalidRequestError: `invalid_network`, `invalid_domain`.
    """
    members = msgspec.to_builtins(body)
    for rule in (*members["allow"], *members["deny"]):
        if rule["domain"] is not None:
            rule["domain"] = names.pattern(rule["domain"])
    return egress.policy(members)


async def show(call: Call, _: bodies.Nothing) -> web.Response:
    """Return what a sandbox may reach, and what passed."""
    id = call.request.match_info["id"]
    return answer(_told(await call.host.networks.show(id, owner=call.caller.owner)))


async def replace(call: Call, body: network_bodies.Network) -> web.Response:
    """Let another policy hold, for connections that there are as well."""
    id, policy = call.request.match_info["id"], policy_of(body)
    return answer(_told(await call.host.networks.replace(id, policy, owner=call.caller.owner)))


def _told(status: NetworkStatus) -> network_bodies.NetworkAnswer:
    members = egress.members(status.policy)
    if status.traffic is not None:
        members["traffic"] = msgspec.to_builtins(status.traffic)
    return msgspec.convert(members, network_bodies.NetworkAnswer)
