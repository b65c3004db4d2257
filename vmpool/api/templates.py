"""Templates and images: what sandboxes can be made of."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from vmpool.api import bodies, views
from vmpool.api.route import answer
from vmpool.catalogue import TemplateRequest
from vmpool.policy import Limits

if TYPE_CHECKING:
    from vmpool.api.route import Call

log = logging.getLogger(__name__)


async def create(call: Call, body: bodies.CreateTemplate) -> web.Response:
    """Boot an image, save it as a template and fill its pool; the answer comes when it is ready."""
    request = TemplateRequest(
        name=body.name,
        image=body.image,
        limits=None if body.limits is None else _limits(body.limits),
        memory_bytes=body.memory_bytes,
        vcpus=body.vcpus,
        disk_bytes=body.disk_bytes,
    )

    def report(step: str) -> None:
        log.info("request=%s template=%s: %s", call.id, body.name, step)

    status = await call.host.catalogue.add(request, progress=report)
    call.host.audit(call.caller.owner, "template.create", body.name, {"image": body.image})
    return answer(views.template(status), status=201)


def _limits(asked: bodies.PoolLimits) -> Limits:
    """Return the default limits with what the request says otherwise."""
    members = msgspec.structs.asdict(asked)
    return Limits(**{name: value for name, value in members.items() if value is not msgspec.UNSET})


async def list_all(call: Call, _: bodies.Nothing) -> web.Response:
    """List all templates."""
    catalogue = call.host.catalogue
    bases = await catalogue.bases()
    return answer(
        bodies.TemplateList(
            templates=[views.template(status) for status in catalogue.statuses],
            bases=[bodies.BaseAnswer(id=id, size_bytes=size) for id, size in bases.items()],
        )
    )


async def look(call: Call, _: bodies.Nothing) -> web.Response:
    """Return one template."""
    return answer(views.template(call.host.catalogue.status(call.request.match_info["name"])))


async def remove(call: Call, _: bodies.Nothing) -> web.Response:
    """Remove a template with its snapshot; its sandboxes live on."""
    name = call.request.match_info["name"]
    await call.host.catalogue.remove(name)
    call.host.audit(call.caller.owner, "template.remove", name, {})
    return web.Response(status=204)


async def list_images(call: Call, _: bodies.Nothing) -> web.Response:
    """List all images."""
    images = await asyncio.to_thread(call.host.images.list)  # reads every manifest
    return answer(bodies.ImageList(images=[views.image(image) for image in images]))
