"""Files: a sandbox's file system, streamed both ways, of any size."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import bodies, compression, intake, outflow, views
from vmpool.api.limits import check_path
from vmpool.api.route import answer
from vmpool.errors import CallerError, GuestFileError
from vmpool.model import FileKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Agent
    from vmpool.api.route import Call

BINARY: Final = "application/octet-stream"
TAR: Final = "application/x-tar"

_VARIES: Final = {"Vary": "Accept-Encoding"}

WHOLE_BYTES: Final = 1 << 16
"""A file up to this size is read before its answer begins, so that the length is what was read.

Beyond it the length is what `stat` says. Sizes in /proc and /sys mean nothing; files there are
small.
"""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def download(call: Call, query: bodies.FileQuery) -> web.StreamResponse:
    """Send a file; `Range` of one range is honoured where the file has a size."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.read", sandbox.id, {"path": path})
    wanted = _RANGE.fullmatch(call.request.headers.get("Range", ""))
    if wanted is not None and wanted[0] != "bytes=-":
        return await _download_range(call, path, query.user, wanted)
    async with (
        sandbox.attended() as agent,
        aclosing(agent.read_file(path, user=query.user)) as chunks,
    ):
        head, whole = await _read_head(chunks)
        packs = compression.pays(call.request, head)
        if whole:
            headers = _VARIES | ({"Content-Encoding": "gzip"} if packs else {})
            body = compression.pack(head) if packs else head
            return web.Response(body=body, content_type=BINARY, headers=headers)
        info = await agent.stat(path, user=query.user)
        sized = info.kind is FileKind.FILE and info.size_bytes >= len(head)
        content = _exactly(chunks, info.size_bytes if sized else None, head)
        response = web.StreamResponse(headers={"Content-Type": BINARY} | _VARIES)
        if packs:
            response.headers["Content-Encoding"] = "gzip"
            return await _stream(call, response, compression.packed(content))
        if sized:
            response.content_length = info.size_bytes
        response.headers["Accept-Ranges"] = "bytes"
        return await _stream(call, response, content)


async def _read_head(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """Return the beginning of a file, and whether that is all of it."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) > WHOLE_BYTES:
            return bytes(head), False
    return bytes(head), True


async def _download_range(
    call: Call, path: str, user: str, wanted: re.Match[str]
) -> web.StreamResponse:
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        return await _send_range(call, agent, path, user, wanted)


async def _send_range(
    call: Call, agent: Agent, path: str, user: str, wanted: re.Match[str]
) -> web.StreamResponse:
    info = await agent.stat(path, user=user)
    size = info.size_bytes
    if wanted[1]:
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
    else:
        first, last = max(size - int(wanted[2]), 0), size - 1
    if first > last:
        raise CallerError(
            f"range {wanted[0]!r} is outside of {size} bytes", code="range_not_satisfiable"
        )
    response = web.StreamResponse(status=206, headers={"Content-Type": BINARY})
    response.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    response.content_length = last - first + 1
    reading = agent.read_file(path, user=user, offset=first, length=last - first + 1)
    async with aclosing(reading) as chunks:
        return await _stream(call, response, _exactly(chunks, last - first + 1))


async def _exactly(
    chunks: AsyncIterator[bytes], length: int | None, head: bytes = b""
) -> AsyncIterator[bytes]:
    """Yield a file from its beginning on, and no more than the length that was announced.

    Raises:
        GuestFileError: `file_changed` when the file became shorter meanwhile.
    """
    sent = 0
    chunk: bytes | None = head
    while chunk is not None:
        kept = chunk if length is None else chunk[: length - sent]
        if kept:
            yield kept
        sent += len(kept)
        if sent == length:
            return
        chunk = await anext(chunks, None)
    if length is not None:
        raise GuestFileError("the file became shorter while it was read", code="file_changed")


async def _stream(
    call: Call, response: web.StreamResponse, content: AsyncIterator[bytes]
) -> web.StreamResponse:
    await response.prepare(call.request)
    async for piece in content:
        await outflow.send(response.write(piece), call.limits)
    await response.write_eof()
    return response


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
        return await _stream(call, response, _exactly(chunks, None, head))


async def upload(call: Call, query: bodies.WriteQuery) -> web.Response:
    """Write a file as its bytes come; one that breaks off leaves a part of it behind."""
    path = check_path(query.path)
    call.limits.check_file_size(call.request.content_length or 0)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.write", sandbox.id, {"path": path})
    content = intake.read_file(call.request, call.limits)
    async with sandbox.attended() as agent, aclosing(content) as chunks:
        info = await agent.write_file(path, chunks, user=query.user, mode=query.mode)
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
