"""Status: whether the server is well, what it has counted, what it offers."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import bodies
from vmpool.api.route import answer
from vmpool.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from vmpool.api.route import Call

DOCUMENT: Final = web.AppKey("openapi", bytes)
VERSION: Final = version("vmpool")


async def health(_: Call, __: bodies.Nothing) -> web.Response:
    """Say whether the server serves; open to all, so it names nothing that anybody made."""
    return answer(bodies.Health(ok=True, version=VERSION))


async def metrics(call: Call, _: bodies.Nothing) -> web.Response:
    """Return what was counted, for Prometheus."""
    return web.Response(body=call.host.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


async def document(call: Call, _: bodies.Nothing) -> web.Response:
    """Return the description of this interface."""
    return web.Response(body=call.request.app[DOCUMENT], content_type="application/json")
