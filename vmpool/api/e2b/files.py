"""Files: files over plain HTTP, whole and signed, as E2B's clients use it.

A file is written in place, as its bytes come: whoever watches its directory sees it made, given to
its owner, and written.
"""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from posixpath import basename, join
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from vmpool.api import intake, metadata, views
from vmpool.api.download import BINARY, Download
from vmpool.api.e2b.account import check_account
from vmpool.api.e2b.defaults import Defaults
from vmpool.api.e2b.file_messages import check_path
from vmpool.api.e2b.visit import Endpoint, Opening, Shape
from vmpool.api.multipart import Parts
from vmpool.api.uploads import FILES, FORM, limited
from vmpool.errors import (
    CallerError,
    GuestFileError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from vmpool.agent import Agent
    from vmpool.api.e2b.visit import Table, Visit
    from vmpool.model import FileInfo

_PART: Final = "file"
"""The form's field that has a file; other fields are passed over."""


class Written(Struct, frozen=True, kw_only=True):
    """A file that was written."""

    path: str
    name: str
    type: str = "file"
    metadata: dict[str, str] | UnsetType = UNSET


async def download(visit: Visit) -> web.StreamResponse:
    """Send a file; packed only for who takes nothing else."""
    path, user = _asked_for(visit)
    visit.host.audit(visit.sandbox.owner, "file.read", visit.sandbox.id, {"path": path})
    packs = visit.request.headers.get("Accept-Encoding", "").strip().lower() == "gzip"
    async with visit.sandbox.attended() as agent:
        with _told(path, user):
            return await Download(
                request=visit.request, limits=visit.limits, agent=agent, path=path, user=user
            ).answer(lambda head: packs and bool(head))


async def upload(visit: Visit) -> web.Response:
    """Write the body, or each file of a form, in place."""
    kept = metadata.of_headers(visit.request.headers)
    path, user = _asked_for(visit)
    written: list[FileInfo] = []
    async with visit.sandbox.attended() as agent, aclosing(_files(visit, path)) as files:
        async for at, content in files:
            visit.host.audit(visit.sandbox.owner, "file.write", visit.sandbox.id, {"path": at})
            with _told(at, user):
                written.append(await _write(agent, check_path(at), content, user, kept))
    return web.Response(
        body=msgspec.json.encode([_written(info) for info in written]),
        content_type="application/json",
    )


async def _write(
    agent: Agent, path: str, content: AsyncIterator[bytes], user: str, kept: dict[str, str]
) -> FileInfo:
    try:
        return await agent.write_file(path, content, user=user, metadata=kept)
    except GuestFileError:
        async for _ in content:  # a client that still sends would not hear why
            pass
        raise


async def _files(visit: Visit, path: str) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    """Yield path and content of each file that a request brings.

    Raises:
        InvalidRequestError: It brings none, or says not where it is to go.
        TooLargeError: `too_many_files`.
    """
    request, limits = visit.request, visit.limits
    if request.content_type == BINARY:
        if not path:
            raise InvalidRequestError("the query has no path for the file", code="invalid_path")
        limits.check_file_size(request.content_length or 0)
        async with aclosing(intake.read_file(request, limits)) as content:
            yield path, content
        return
    if request.content_type != FORM:
        raise InvalidRequestError(
            f"content type {request.content_type[:200]!r} is neither {FORM!r} nor {BINARY!r}",
            code="unsupported_media_type",
        )
    async with aclosing(_form(visit, path)) as files:
        async for file in files:
            yield file


async def _form(visit: Visit, path: str) -> AsyncGenerator[tuple[str, AsyncIterator[bytes]], None]:
    """Yield the files of a form, each at its own name where the query has no path."""
    request, limits = visit.request, visit.limits
    async with (
        aclosing(intake.read_content(request, limits)) as chunks,
        aclosing(Parts(request.headers["Content-Type"], chunks)) as parts,
    ):
        fields = files = 0
        while part := await parts.next():
            fields += 1
            if fields > FILES:
                raise TooLargeError(f"the form has over {FILES} fields", code="too_many_files")
            at = path or part.filename or ""
            async with aclosing(limited(parts, at, limits)) as content:
                if part.name != _PART:
                    async for _ in content:
                        pass
                    continue
                files += 1
                if path and files > 1:
                    raise InvalidRequestError("the query has one path, and the form several files")
                if not at:
                    raise InvalidRequestError("a file of the form has no name", code="invalid_path")
                yield at, content
        if not files:
            raise InvalidRequestError(f"the form has no field {_PART!r} with a file")


def _asked_for(visit: Visit) -> tuple[str, str]:
    """Return path and account of a request; the path is empty where a form's files have names."""
    query = visit.request.query
    name = query.get("username", "")
    try:
        usual = Defaults.of(visit.sandbox.environment).user
        return check_path(query.get("path", "")), check_account(name, usual=usual)
    except InvalidRequestError as err:
        if err.error_code == "unknown_user":
            raise _unknown(name) from err
        raise


@contextlib.contextmanager
def _told(path: str, user: str) -> Iterator[None]:
    """Tell what the guest refuses as these clients know it.

    Raises:
        NotFoundError, CallerError: It is the request's.
        UnauthorizedError: There is no such account.
    """
    whole = join("/root" if user == "root" else f"/home/{user}", path.removeprefix("~/"))
    try:
        yield
    except InvalidRequestError as err:
        if err.error_code == "unknown_user":
            raise _unknown(user) from err
        raise
    except GuestFileError as err:
        code = err.error_code
        match code:
            case "file_not_found":
                raise NotFoundError(f"path {whole!r} does not exist", code=code) from err
            case "is_a_directory":
                raise CallerError(f"path {whole!r} is a directory", code=code) from err
            case "not_a_directory" | "not_a_regular_file" | "too_many_links":
                raise CallerError(err.message, code=code) from err
            case _:
                raise


def _unknown(user: str) -> UnauthorizedError:
    return UnauthorizedError(
        f"error looking up user {user[:64]!r}: there is none of that name", code="username_unknown"
    )


def _written(info: FileInfo) -> Written:
    path = views.printable(info.path)
    return Written(path=path, name=basename(path), metadata=info.metadata or UNSET)


ENDPOINTS: Final[Table] = {
    ("GET", "/files"): Endpoint(opening=Opening.SIGNATURE, shape=Shape.CODE, run=download),
    ("POST", "/files"): Endpoint(opening=Opening.SIGNATURE, shape=Shape.CODE, run=upload),
}
