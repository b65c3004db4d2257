"""Names: templates looked up, listed, tagged and removed, as E2B's clients do it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.api.e2b import naming
from vmpool.api.e2b.control.bodies import ENVD_VERSION
from vmpool.api.e2b.operation import answer, done
from vmpool.api.e2b.templates import bodies, tags
from vmpool.api.e2b.templates.build import build_id
from vmpool.api.e2b.templates.builds import moment
from vmpool.catalogue import Offer, TemplateState
from vmpool.errors import ConflictError, ForbiddenError, NotFoundError
from vmpool.model import MIB
from vmpool.scope import Scope
from vmpool.template_key import key_of, name_of, owner_of, visible

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call
    from vmpool.entry import TemplateStatus

_STATUS: dict[TemplateState, bodies.Status] = {
    TemplateState.BUILDING: "building",
    TemplateState.READY: "ready",
    TemplateState.FAILED: "error",
}


async def look_up(call: Call, _: bodies.Nothing) -> web.Response:
    """Say what a name stands for, if anything."""
    source = naming.source_of(call.host, call.request.match_info["alias"], owner=call.caller.owner)
    if source.checkpoint is not None:
        return answer(bodies.Alias(template_id=source.checkpoint, public=False))
    key = call.host.catalogue.resolve(source.template, owner=call.caller.owner)
    return answer(bodies.Alias(template_id=name_of(key), public=owner_of(key) is None))


async def list_all(call: Call, _: bodies.Nothing) -> web.Response:
    """List the templates that are there for the caller."""
    every = call.host.catalogue.statuses
    return answer([_view(each) for each in every if visible(each.name, call.caller.owner)])


async def list_tags(call: Call, _: bodies.Nothing) -> web.Response:
    """List the tags of a template, and what each stands for."""
    name = tags.parse(call.request.match_info["id"]).name
    found = [
        bodies.TagAnswer(
            tag=tag, build_id=build_id(status.snapshot), created_at=moment(status.created_ns)
        )
        for tag, status in _tagged(call, name).items()
        if status.snapshot is not None
    ]
    if not found:
        raise _absent(name)
    return answer(found)


async def assign_tags(call: Call, body: bodies.AssignTags) -> web.Response:
    """Give what has a name more tags."""
    title, owner = tags.parse(body.target), call.caller.owner
    status = _own(call, title)
    snapshot = status.snapshot
    if snapshot is None or status.state is not TemplateState.READY:
        raise ConflictError(
            f"template {title.key!r} is not ready", code="template_not_ready", remedy="wait for it"
        )
    catalogue = call.host.catalogue
    try:
        with catalogue.wanted(snapshot):
            for tag in body.tags:
                key = key_of(tags.tagged(title.name, tag), owner)
                if key != status.name:
                    limits = status.limits
                    await catalogue.offer(
                        Offer(key=key, snapshot=snapshot, limits=limits, env=status.env)
                    )
    finally:
        await catalogue.release_base(snapshot)
    call.host.audit(owner, "template.tag", status.name, {"tags": " ".join(body.tags)})
    told = bodies.AssignedTags(tags=list(body.tags), build_id=build_id(snapshot))
    return answer(told, status=201)


async def remove_tags(call: Call, body: bodies.RemoveTags) -> web.Response:
    """Take tags from a template; what has no tag any more is gone."""
    title = tags.parse(body.name)
    doomed = [_own(call, tags.Title(name=title.name, tag=tag)) for tag in body.tags]
    for each in doomed:
        await _remove(call, each.name)
    return done()


async def remove(call: Call, _: bodies.Nothing) -> web.Response:
    """Remove a template with all its tags, or one tag of it, or a snapshot."""
    reference, owner = call.request.match_info["id"], call.caller.owner
    with contextlib.suppress(NotFoundError):
        kept = call.host.find_checkpoint(naming.bare(reference), owner=owner)
        await call.host.remove_checkpoint(kept.id, owner=owner)
        return done()
    if Scope.TEMPLATES not in call.caller.scopes:
        raise ForbiddenError(
            "templates are removed with a token that has the scope 'templates'",
            code="scope_missing",
        )
    title = tags.parse(reference)
    mine = [_own(call, title)] if title.tag is not None else _tagged(call, title.name).values()
    if not mine:
        call.host.catalogue.resolve(title.key, owner=owner)  # or there is none
        raise ForbiddenError(
            f"template {title.key!r} is everybody's, and not removed from here",
            code="scope_missing",
        )
    for each in list(mine):
        await _remove(call, each.name)
    return done()


async def _remove(call: Call, key: str) -> None:
    await call.host.catalogue.remove(key)
    call.host.audit(call.caller.owner, "template.remove", key, {})


def _own(call: Call, title: tags.Title) -> TemplateStatus:
    """Return a template that is the caller's own.

    Raises:
        NotFoundError: `template_not_found`.
    """
    found = _tagged(call, title.name).get(tags.tag_of(title.key, title.name) or "")
    if found is None:
        raise _absent(title.key)
    return found


def _tagged(call: Call, name: str) -> dict[str, TemplateStatus]:
    """Return the caller's own templates of a name, by tag."""
    owner, found = call.caller.owner, {}
    for status in call.host.catalogue.statuses:
        tag = tags.tag_of(name_of(status.name), name)
        if tag is not None and owner_of(status.name) == owner:
            found[tag] = status
    return found


def _absent(name: str) -> NotFoundError:
    return NotFoundError(f"you have no template {name[:128]!r}", code="template_not_found")


def _view(status: TemplateStatus) -> bodies.TemplateAnswer:
    name, spec = name_of(status.name), status.spec
    made = moment(status.created_ns)
    return bodies.TemplateAnswer(
        template_id=name,
        build_id=build_id(status.snapshot or "0"),
        cpu_count=spec.vcpus,
        memory_mb=spec.memory_bytes // MIB,
        disk_mb=spec.disk_bytes // MIB,
        public=owner_of(status.name) is None,
        aliases=[name],
        names=[name],
        created_at=made,
        updated_at=made,
        envd_version=ENVD_VERSION,
        build_status=_STATUS[status.state],
    )
