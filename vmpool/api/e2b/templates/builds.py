"""Builds: asked for, given their files, begun and followed, as E2B's clients do it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from aiohttp import web
from msgspec import UNSET, UnsetType

from vmpool.api import intake
from vmpool.api.door import DOOR
from vmpool.api.e2b.operation import answer
from vmpool.api.e2b.templates import bodies, tags
from vmpool.api.e2b.templates.build import State, build_id
from vmpool.api.e2b.templates.recipe import Recipe, step_of
from vmpool.api.e2b.templates.workshop import WORKSHOP
from vmpool.errors import InvalidRequestError, NotFoundError
from vmpool.model import MIB

if TYPE_CHECKING:
    from vmpool.api.e2b.templates.build import Build, Entry
    from vmpool.api.route import Call
    from vmpool.entry import TemplateStatus

UPLOADS: Final = "/templates/uploads/{secret}"
"""Below the interface's root; whoever has the address may send one archive there."""

BASE_IMAGE: Final = "e2bdev/base"
"""What these clients call the base that is no image of anybody's: the template `base` here."""

_BASE: Final = "base"


async def promise(call: Call, body: bodies.NewBuild) -> web.Response:
    """Promise a build, which is begun once its files are there."""
    said = body.name or body.alias
    if said is None:
        raise InvalidRequestError("a template has a name", code="template_name_invalid")
    title = tags.parse(said)
    wanted = [*([title.tag] if title.tag is not None else []), *body.tags]
    every = tuple(dict.fromkeys(tags.parse(f"{title.name}:{each}").tag or "" for each in wanted))
    every = every or (tags.USUAL,)
    workshop = call.request.app[WORKSHOP]
    build = workshop.promise(owner=call.caller.owner, name=title.name, tags=every)
    build.vcpus = body.cpu_count
    build.memory_bytes = None if body.memory_mb is None else body.memory_mb * MIB
    await workshop.note(build)
    made = bodies.BuildMade(
        template_id=title.name,
        build_id=build.id,
        names=[title.name],
        tags=list(every),
        aliases=[title.name],
    )
    return answer(made, status=202)


async def locate_files(call: Call, _: bodies.Nothing) -> web.Response:
    """Say whether files were sent before, and where to."""
    digest = call.request.match_info["digest"]
    archives, owner = call.request.app[WORKSHOP].archives, call.caller.owner
    found = await asyncio.to_thread(archives.find, owner, digest)
    path = UPLOADS.format(secret=archives.address(owner, digest))
    told = bodies.Archive(present=found is not None, url=f"{_origin(call.request)}{path}")
    return answer(told, status=201)


async def receive(call: Call, _: bodies.Nothing) -> web.Response:
    """Take an archive from whoever has the address that it is sent to."""
    archives = call.request.app[WORKSHOP].archives
    secret = call.request.match_info["secret"]
    archives.require(secret)
    call.request.app[DOOR].admit(call.request)  # it is nobody who came by
    # As it was sent: an archive is packed for itself, not for the way.
    async with aclosing(intake.read_as_sent(call.request, call.limits)) as chunks:
        await archives.receive(secret, chunks)
    return web.Response(status=200)


async def begin(call: Call, body: bodies.BuildSteps) -> web.Response:
    """Begin a build; how it goes, its status says."""
    workshop = call.request.app[WORKSHOP]
    build = _build(call)
    fresh, steps = body.force, []
    for wire in body.steps:
        step = step_of(wire, fresh=fresh)
        fresh = step.fresh
        steps.append(step)
    image = body.from_image
    if image is not None and image != BASE_IMAGE:
        _refuse_image(build, image)
        await workshop.note(build)
        return web.Response(status=202)
    base = body.from_template if body.from_template is not None else _BASE
    recipe = Recipe(
        base=base, steps=tuple(steps), start=body.start_cmd or "", ready=body.ready_cmd or ""
    )
    workshop.begin(build, recipe)
    await workshop.note(build)
    call.host.audit(call.caller.owner, "template.build", build.name, {"build": build.id})
    return web.Response(status=202)


def _refuse_image(build: Build, image: str) -> None:
    """Fail a build that begins with an image that is elsewhere, where the client looks for it."""
    build.begun, build.step = True, _BASE
    build.fail(
        f"the image {image[:200]!r} is in a registry, and nothing is fetched from those here: have"
        " the operator import its file system (vmpool image import FILE --name NAME), make a"
        " template of it (vmpool template create NAME), and begin with from_template('NAME')"
    )


async def status(call: Call, query: bodies.StatusQuery) -> web.Response:
    """Say how far a build is, and what is new in its log."""
    try:
        build = _build(call)
    except NotFoundError:
        if _template_of(call) is None:
            raise
        return answer(
            bodies.BuildStatus(
                template_id=call.request.match_info["id"],
                build_id=call.request.match_info["build"],
                status="ready",
                log_entries=[],
            )
        )
    # How it stands before what it said: who hears that it is over asks for its log no more.
    state, reason = build.state, _reason(build)
    entries = await call.request.app[WORKSHOP].log_of(build)
    begin, end = query.logs_offset, query.logs_offset + query.limit
    return answer(
        bodies.BuildStatus(
            template_id=build.name,
            build_id=build.id,
            status=state.value,
            log_entries=[_line(entry) for entry in entries[begin:end]],
            reason=reason,
        )
    )


def _reason(build: Build) -> bodies.Reason | UnsetType:
    if build.state is not State.ERROR:
        return UNSET
    return bodies.Reason(message=build.reason, step=build.step or UNSET)


def _build(call: Call) -> Build:
    """Return the build that a path names.

    Raises:
        NotFoundError: `build_not_found`; there is none, or it is of another template or tenant.
    """
    found = call.request.app[WORKSHOP].find(
        call.request.match_info["build"], owner=call.caller.owner
    )
    if tags.parse(call.request.match_info["id"]).name != found.name:
        raise NotFoundError(f"there is no build {found.id!r} of it", code="build_not_found")
    return found


def _template_of(call: Call) -> TemplateStatus | None:
    """Return a template that a build became which an earlier server made."""
    id, owner = call.request.match_info["build"], call.caller.owner
    for each in call.host.catalogue.statuses:
        mine = each.name.startswith(f"{owner}/")
        if mine and each.snapshot is not None and build_id(each.snapshot) == id:
            return each
    return None


def _line(entry: Entry) -> bodies.LogEntry:
    return bodies.LogEntry(
        timestamp=moment(entry.at_ns),
        message=entry.message,
        level=entry.level.value,
        step=entry.step or UNSET,
    )


def moment(time_ns: int) -> str:
    """Return a Unix time as these clients read it."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat().replace("+00:00", "Z")


def _origin(request: web.Request) -> str:
    """Return where the caller has reached us, as it says."""
    said = request.headers.getall("X-Forwarded-Proto", [])
    scheme = said[0].lower() if len(said) == 1 and said[0].lower() in {"http", "https"} else ""
    return f"{scheme or request.scheme}://{request.host}"
