"""Uploads: several files in one request, written as they come, each with a result of its own.

A file that the guest refuses costs the others nothing. What is wrong with the request itself ends
it; the files before are written then.
"""

from __future__ import annotations

import posixpath
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from msgspec import UNSET, Struct, UnsetType, structs

from vmpool.api import intake, metadata, problem, views
from vmpool.api.bodies import Account, FileEntry, FileMode, GuestPath, Problem
from vmpool.api.limits import check_path
from vmpool.api.multipart import Part, Parts
from vmpool.api.route import answer
from vmpool.errors import GuestFileError, InvalidRequestError, TooLargeError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp import web

    from vmpool.agent import Agent
    from vmpool.api.limits import Limits
    from vmpool.api.route import Call
    from vmpool.errors import VmpoolError

FORM: Final = "multipart/form-data"

FILES: Final = 1000
"""Files that one request may bring."""

MODE_HEADER: Final = "x-mode"
"""A part's own permission bits, in decimal like the query's."""


class UploadQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As whom, with which permission bits, and which directory relative names are in."""

    path: GuestPath | None = None
    user: Account = DEFAULT_USER
    mode: FileMode | None = None


class UploadedFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one file: `file` says what it is now, `error` why it was not written."""

    path: str
    file: FileEntry | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class UploadAnswer(Struct, frozen=True, kw_only=True):
    """What became of each file, in the order in which they came."""

    files: list[UploadedFile]


async def upload(call: Call, query: UploadQuery) -> web.Response:
    """Write each part's file at the path that is its `filename`."""
    directory = None if query.path is None else check_path(query.path)
    sandbox = await call.sandbox()
    kept = metadata.of_headers(call.request.headers)
    files: list[UploadedFile] = []
    async with (
        sandbox.attended() as agent,
        aclosing(intake.read_content(call.request, call.limits)) as chunks,
        aclosing(Parts(call.request.headers.get("Content-Type", ""), chunks)) as parts,
    ):
        while part := await parts.next():
            if len(files) == FILES:
                raise TooLargeError(f"the request has over {FILES} files", code="too_many_files")
            path = posixpath.join(directory or "", part.filename or "")
            async with aclosing(limited(parts, path, call.limits)) as content:
                files.append(await _write(call, agent, path, _own(part, query), content, kept=kept))
                async for _ in content:  # of a file that was refused
                    pass
    return answer(UploadAnswer(files=files))


async def _write(
    call: Call,
    agent: Agent,
    path: str,
    query: UploadQuery,
    content: AsyncGenerator[bytes, None],
    *,
    kept: dict[str, str],
) -> UploadedFile:
    """Write one file; its own failure is part of the answer."""
    error: VmpoolError
    try:
        check_path(path)
    except InvalidRequestError as err:
        error = err
    else:
        call.host.audit(
            call.caller.owner, "file.write", call.request.match_info["id"], {"path": path}
        )
        try:
            info = await agent.write_file(
                path, content, user=query.user, mode=query.mode, metadata=kept
            )
            return UploadedFile(path=path, file=views.file(info))
        except GuestFileError as err:
            error = err
    told = problem.describe(error, request_id=call.id, limits=call.limits)
    return UploadedFile(path=path, error=told)


async def limited(parts: Parts, path: str, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the content of the part at hand, which is to become the file at `path`.

    Raises:
        TooLargeError: `file_too_large`.
    """
    size_bytes = 0
    async with aclosing(parts.content()) as chunks:
        async for chunk in chunks:
            size_bytes += len(chunk)
            try:
                limits.check_file_size(size_bytes)
            except TooLargeError as err:
                err.message = f"{path[:200]!r}: {err.message}"
                raise
            yield chunk


def _own(part: Part, query: UploadQuery) -> UploadQuery:
    """Return what the request says, with what the part says of itself on top."""
    mode = part.headers.get(MODE_HEADER)
    if mode is None:
        return query
    if not re.fullmatch("[0-9]{1,4}", mode) or int(mode) > 0o7777:
        raise InvalidRequestError(f"a part's {MODE_HEADER} {mode[:200]!r} is no mode, as 420 is")
    return structs.replace(query, mode=int(mode))
