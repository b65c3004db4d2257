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
from vmpool.derivation import DeriveRequest
from vmpool.errors import ForbiddenError, InvalidRequestError
from vmpool.policy import Limits
from vmpool.template_key import key_of, name_of, owner_of, visible

if TYPE_CHECKING:
    from vmpool.api.route import Call

log = logging.getLogger(__name__)


async def create(call: Call, body: bodies.CreateTemplate) -> web.Response:
    """Make a template of an image or of a checkpoint; the answer comes when it is ready.

    An operator's is everybody's, and any other tenant's its own.
    """
    if (body.image is None) == (body.checkpoint is None):
        raise InvalidRequestError(
            "a template is made of an image or of a checkpoint", code="source_unclear"
        )
    if body.checkpoint is not None:
        return await _derive(call, body, body.checkpoint)
    assert body.image is not None
    request = TemplateRequest(
        name=body.name,
        image=body.image,
        owner=_owner(call),
        limits=None if body.limits is None else _limits(body.limits),
        memory_bytes=body.memory_bytes,
        vcpus=body.vcpus,
        disk_bytes=body.disk_bytes,
    )

    def report(step: str) -> None:
        log.info("request=%s template=%s: %s", call.id, body.name, step)

    status = await call.host.catalogue.add(request, progress=report)
    call.host.audit(call.caller.owner, "template.create", request.key, {"image": body.image})
    return answer(views.template(status), status=201)


async def _derive(call: Call, body: bodies.CreateTemplate, checkpoint: str) -> web.Response:
    if (body.memory_bytes, body.vcpus, body.disk_bytes) != (None, None, None):
        raise InvalidRequestError(
            "a machine that goes on from a checkpoint has the size that it had",
            code="invalid_machine",
            remedy="make a template of that size of the image, and the checkpoint of its sandbox",
        )
    key = key_of(body.name, _owner(call))
    request = DeriveRequest(
        checkpoint=checkpoint,
        keys=(key,),
        limits=None if body.limits is None else _limits(body.limits),
    )
    status = await call.host.derivation.derive(request, owner=call.caller.owner)
    call.host.audit(call.caller.owner, "template.create", key, {"checkpoint": checkpoint})
    return answer(views.template(status), status=201)


def _owner(call: Call) -> str | None:
    """Return whose a new template is; `None` for everybody's."""
    return None if call.caller.operates else call.caller.owner


def _limits(asked: bodies.PoolLimits) -> Limits:
    """Return the default limits with what the request says otherwise."""
    members = msgspec.structs.asdict(asked)
    return Limits(**{name: value for name, value in members.items() if value is not msgspec.UNSET})


async def list_all(call: Call, _: bodies.Nothing) -> web.Response:
    """List the templates that are there for the caller; for operators all."""
    catalogue, caller = call.host.catalogue, call.caller
    bases = await catalogue.bases() if caller.operates else {}
    return answer(
        bodies.TemplateList(
            templates=[
                views.template(status)
                for status in catalogue.statuses
                if caller.operates or visible(status.name, caller.owner)
            ],
            bases=[bodies.BaseAnswer(id=id, size_bytes=size) for id, size in bases.items()],
        )
    )


async def look(call: Call, query: bodies.TemplateQuery) -> web.Response:
    """Return one template."""
    return answer(views.template(call.host.catalogue.status(_key(call, query))))


async def remove(call: Call, query: bodies.TemplateQuery) -> web.Response:
    """Remove a template with its snapshot; its sandboxes live on."""
    key = _key(call, query)
    if not call.caller.operates and owner_of(key) != call.caller.owner:
        raise ForbiddenError(
            f"template {name_of(key)!r} is everybody's, and takes the scope 'operator'",
            code="scope_missing",
        )
    await call.host.catalogue.remove(key)
    call.host.audit(call.caller.owner, "template.remove", key, {})
    return web.Response(status=204)


def _key(call: Call, query: bodies.TemplateQuery) -> str:
    """Return which template is meant.

    Raises:
        NotFoundError: `template_not_found`; there is none, or it is another tenant's.
        ForbiddenError: `scope_missing`; another tenant's is asked for by no operator.
    """
    name, caller = call.request.match_info["name"], call.caller
    if query.tenant is None:
        return call.host.catalogue.resolve(name, owner=caller.owner)
    if query.tenant != caller.owner and not caller.operates:
        raise ForbiddenError(
            "other tenants' templates take a token with the scope 'operator'", code="scope_missing"
        )
    return key_of(name, query.tenant)


async def list_images(call: Call, _: bodies.Nothing) -> web.Response:
    """List all images."""
    images = await asyncio.to_thread(call.host.images.list)  # reads every manifest
    return answer(bodies.ImageList(images=[views.image(image) for image in images]))
