"""Ports: what is said and asked of a sandbox's ports; who reaches one, `reach` decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import UNSET

from vmpool.api import fronts, views
from vmpool.api.port_bodies import (
    Access,
    CreateTrafficToken,
    PortAnswer,
    PortList,
    SetPortAccess,
    TrafficTokenAnswer,
)
from vmpool.api.route import answer
from vmpool.cancellation import uninterrupted
from vmpool.errors import NotFoundError

if TYPE_CHECKING:
    from vmpool.api.bodies import Nothing
    from vmpool.api.route import Call
    from vmpool.exposure import Exposure, TrafficToken
    from vmpool.sandbox import Sandbox

_MOST_PORT = (1 << 16) - 1


async def list_all(call: Call, _: Nothing) -> web.StreamResponse:
    """Return who may reach which ports."""
    sandbox = await _sandbox(call)
    return answer(_list(call, sandbox, await call.host.ports.exposure(sandbox)))


async def set_all(call: Call, body: SetPortAccess) -> web.StreamResponse:
    """Set who may reach all ports, those included that were set apart."""
    sandbox = await _sandbox(call)
    exposure = await _publish(call, sandbox, None, body.access)
    return answer(_list(call, sandbox, exposure))


async def look(call: Call, _: Nothing) -> web.StreamResponse:
    """Return one port."""
    port, sandbox = port_of(call), await _sandbox(call)
    return answer(_port(call, sandbox, port, await call.host.ports.exposure(sandbox)))


async def set_one(call: Call, body: SetPortAccess) -> web.StreamResponse:
    """Set who may reach one port."""
    port, sandbox = port_of(call), await _sandbox(call)
    exposure = await _publish(call, sandbox, port, body.access)
    return answer(_port(call, sandbox, port, exposure))


async def open_first(call: Call, sandbox: Sandbox, ports: list[int]) -> Sandbox:
    """Open ports of a sandbox that nobody was told of yet, and return it; or end it."""
    if not ports:
        return sandbox
    try:
        await call.host.ports.open_first(sandbox, ports)
    except BaseException:
        await uninterrupted(call.host.kill(sandbox.id, owner=sandbox.owner))
        raise
    for port in sorted(set(ports)):
        detail = {"port": _said(port), "access": "public"}
        call.host.audit(call.caller.owner, "port.access", sandbox.id, detail)
    return sandbox


async def create_token(call: Call, body: CreateTrafficToken) -> web.StreamResponse:
    """Make a token that opens ports and nothing else."""
    sandbox = await _sandbox(call)
    port = body.port or None
    token, row = await call.host.ports.add_token(sandbox, port)
    detail = {"token": row.id, "port": _said(port)}
    call.host.audit(call.caller.owner, "port.token.create", sandbox.id, detail)
    return answer(_token(row, token), status=201)


async def revoke_token(call: Call, _: Nothing) -> web.StreamResponse:
    """Make such a token useless."""
    sandbox, token_id = await _sandbox(call), call.request.match_info["token"]
    await call.host.ports.revoke_token(sandbox, token_id)
    detail = {"token": token_id}
    call.host.audit(call.caller.owner, "port.token.revoke", sandbox.id, detail)
    return web.Response(status=204)


def port_of(call: Call) -> int:
    """Return the port that the path names.

    Raises:
        NotFoundError: `port_not_found`; it is no port's number.
    """
    number = call.request.match_info["port"]
    # Digits alone, and not a zero in front of them: one port has one name.
    if number.isascii() and number.isdecimal() and str(int(number[:5])) == number:
        port = int(number)
        if 0 < port <= _MOST_PORT:
            return port
    raise NotFoundError(f"there is no port {number[:20]!r}", code="port_not_found")


async def _sandbox(call: Call) -> Sandbox:
    """Return the sandbox as it is: what is asked of its ports does not wake it."""
    return await call.host.sandbox(call.request.match_info["id"], owner=call.caller.owner)


async def _publish(call: Call, sandbox: Sandbox, port: int | None, access: Access) -> Exposure:
    exposure = await call.host.ports.publish(sandbox, port, public=access == "public")
    detail = {"port": _said(port), "access": access}
    call.host.audit(call.caller.owner, "port.access", sandbox.id, detail)
    return exposure


def _list(call: Call, sandbox: Sandbox, exposure: Exposure) -> PortList:
    return PortList(
        access=_access(exposure.public),
        domain=call.host.settings.api.domain or None,
        ports=[_port(call, sandbox, port, exposure) for port, _ in exposure.ports],
        tokens=[_token(token) for token in exposure.tokens],
    )


def _port(call: Call, sandbox: Sandbox, port: int, exposure: Exposure) -> PortAnswer:
    domain = call.host.settings.api.domain
    return PortAnswer(
        port=port,
        access=_access(exposure.is_public(port)),
        path=f"{fronts.path_of(sandbox.id, port)}/",
        host=fronts.host_of(sandbox.id, port, domain) if domain else None,
    )


def _token(row: TrafficToken, token: str | None = None) -> TrafficTokenAnswer:
    return TrafficTokenAnswer(
        id=row.id,
        port=row.port,
        created_at=views.rfc3339(row.created_ns),
        token=UNSET if token is None else token,
    )


def _access(public: bool) -> Access:
    return "public" if public else "private"


def _said(port: int | None) -> str:
    return "all" if port is None else str(port)
