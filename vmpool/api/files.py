"""Files: a sandbox's file system, streamed both ways, of any size."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import bodies, compression, file_urls, intake, metadata, views
from vmpool.api.download import Download, exactly
from vmpool.api.limits import check_path
from vmpool.api.route import answer

if TYPE_CHECKING:
    from vmpool.agent import Agent
    from vmpool.api.route import Call

TAR: Final = "application/x-tar"


async def download(call: Call, query: file_urls.ReadQuery) -> web.StreamResponse:
    """Send a file; `Range` of one range is honoured where the file has a size."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.read", sandbox.id, {"path": path})
    async with sandbox.attended() as agent:
        return await _download(call, agent, path, query.user).answer(
            lambda head: compression.pays(call.request, head)
        )


def _download(call: Call, agent: Agent, path: str, user: str) -> Download:
    return Download(request=call.request, limits=call.limits, agent=agent, path=path, user=user)


async def archive(call: Call, query: bodies.FileQuery) -> web.StreamResponse:
    """Send a directory with all in it as a tar archive; a failure on the way breaks it off."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.read", sandbox.id, {"path": path})
    async with (
        sandbox.attended() as agent,
        aclosing(agent.archive(path, user=query.user)) as chunks,
    ):
        head = await anext(chunks, b"")
        response = web.StreamResponse(headers={"Content-Type": TAR})
        download = _download(call, agent, path, query.user)
        return await download.stream(response, exactly(chunks, None, head))


async def upload(call: Call, query: file_urls.WriteQuery) -> web.Response:
    """Write a file as its bytes come; one that breaks off leaves a part of it behind."""
    path = check_path(query.path)
    call.limits.check_file_size(call.request.content_length or 0)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.write", sandbox.id, {"path": path})
    kept = metadata.of_headers(call.request.headers)
    content = intake.read_file(call.request, call.limits)
    async with sandbox.attended() as agent, aclosing(content) as chunks:
        info = await agent.write_file(path, chunks, user=query.user, mode=query.mode, metadata=kept)
    return answer(views.file(info))


async def remove(call: Call, query: bodies.FileQuery) -> web.Response:
    """Remove a file, or a directory with all that is in it."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.remove", sandbox.id, {"path": path})
    async with sandbox.attended() as agent:
        await agent.remove(path, user=query.user)
    return web.Response(status=204)


async def stat(call: Call, query: bodies.FileQuery) -> web.Response:
    """Return what a path is."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        info = await agent.stat(path, user=query.user)
    return answer(views.file(info))


async def list_directory(call: Call, query: bodies.ListFilesQuery) -> web.Response:
    """Return what a directory holds."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        entries = await agent.list_directory(path, user=query.user, depth=query.depth)
    return answer(bodies.FileList(entries=[views.file(entry) for entry in entries]))


async def make_directory(call: Call, body: bodies.MakeDirectory) -> web.Response:
    """Make a directory with its parents."""
    path = check_path(body.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.write", sandbox.id, {"path": path})
    async with sandbox.attended() as agent:
        info = await agent.make_directory(path, user=body.user)
    return answer(views.file(info), status=201)


async def move(call: Call, body: bodies.MoveFile) -> web.Response:
    """Move a file or directory, making the destination's parents."""
    source, destination = check_path(body.source), check_path(body.destination)
    sandbox = await call.sandbox()
    call.host.audit(
        call.caller.owner, "file.move", sandbox.id, {"path": source, "destination": destination}
    )
    async with sandbox.attended() as agent:
        info = await agent.move(source, destination, user=body.user)
    return answer(views.file(info))
