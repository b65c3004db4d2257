"""Files: a sandbox's file system, streamed both ways."""

from __future__ import annotations

import asyncio
import contextlib
import re
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.form import Form, FormFile, forms
from vmpool.client.local_files import CHUNK_BYTES, read_chunks, reading, replacing
from vmpool.client.problem import error_of
from vmpool.client.values import FileInfo, FileListing, SignedFile, UploadListing, read
from vmpool.client.watches import FileChange, read_changes
from vmpool.errors import GuestFileError, InvalidRequestError, TooLargeError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping

_KEY = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # a token, RFC 9110

READ_BYTES = 64 << 20
"""Up to this size a file is read into memory unless more is asked for: a guest says its size."""


class AsyncFiles:
    """The files of one sandbox. Paths in the guest are absolute.

    `user` is the account in the guest whose rights hold, the server's default if left out.
    """

    def __init__(self, connection: Connection, sandbox_id: str) -> None:
        self._connection = connection
        self._path = ("sandboxes", sandbox_id, "files")

    async def read(
        self, path: str, *, user: str | None = None, limit_bytes: int = READ_BYTES
    ) -> bytes:
        """Return a file's content.

        Raises:
            TooLargeError: `file_too_large`: it is over `limit_bytes`.
            VmpoolError: The guest or the server refused, or the server was lost.
        """
        content = bytearray()
        async with self.stream(path, user=user) as chunks:
            async for chunk in chunks:
                content += chunk
                if len(content) > limit_bytes:
                    raise TooLargeError(
                        f"file {path!r} is over {limit_bytes} bytes",
                        code="file_too_large",
                        remedy="download it, stream it, or give a higher limit",
                    )
        return bytes(content)

    async def read_text(self, path: str, *, user: str | None = None) -> str:
        """Return a file's content as text; what is no UTF-8 becomes U+FFFD. Raises as `read`."""
        return (await self.read(path, user=user)).decode(errors="replace")

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, user: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield a file's content in chunks, for the time of a block; of any size.

        Raises:
            VmpoolError: The guest or the server refused, or the server was lost.
        """
        request = Request(method="GET", path=path_of(*self._path, path=path, user=user))
        async with self._connection.open(request) as response:
            yield self._connection.chunks(response)

    async def download(self, path: str, target: Path | str, *, user: str | None = None) -> None:
        """Write a file of the guest to one of ours, which is replaced when all is there.

        Raises:
            InvalidRequestError: `file_unwritable`.
            VmpoolError: As `stream`.
        """
        target = Path(target)
        async with self.stream(path, user=user) as chunks:
            with replacing(target) as file:
                async for chunk in chunks:
                    await asyncio.to_thread(file.write, chunk)

    async def write(
        self,
        path: str,
        content: bytes | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FileInfo:
        """Write a file, making its parents. Not atomic: one that breaks off leaves a part.

        Args:
            path: Where.
            content: Text is written as UTF-8; a stream may be of any size.
            user: Whose rights hold, and whose file it will be.
            mode: Permission bits.
            metadata: Words that are kept with it, in place of those that it had.

        Raises:
            InvalidRequestError: `invalid_metadata`.
            VmpoolError: The guest or the server refused, or the server was lost.
        """
        request = Request(
            method="PUT",
            path=path_of(*self._path, path=path, user=user, mode=mode),
            headers={"Content-Type": "application/octet-stream"} | _headers(metadata or {}),
        )
        data = content.encode() if isinstance(content, str) else content
        chunks = _pieces(data) if isinstance(data, bytes) else data
        async with self._connection.open(request, content=chunks) as response:
            return read(await self._connection.read(response), FileInfo)

    async def upload(
        self,
        source: Path | str | BinaryIO,
        path: str,
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FileInfo:
        """Write a file of ours, or what an open one still holds, into the guest.

        Raises:
            InvalidRequestError: `file_unreadable`.
            VmpoolError: As `write`.
        """
        with contextlib.ExitStack() as opened:
            if isinstance(source, Path | str):
                source = opened.enter_context(reading(Path(source)))
            content = read_chunks(source)
            return await self.write(path, content, user=user, mode=mode, metadata=metadata)

    async def list(
        self, path: str, *, user: str | None = None, depth: int = 1
    ) -> tuple[FileInfo, ...]:
        """Return what a directory holds, `depth` levels deep, parents first.

        Raises:
            VmpoolError: The guest or the server refused, or the server was lost.
        """
        target = path_of(*self._path, "list", path=path, user=user, depth=depth)
        answer = await self._look(target)
        return read(answer, FileListing).entries

    async def stat(self, path: str, *, user: str | None = None) -> FileInfo:
        """Return what a path is; links are not followed. Raises as `list`."""
        return read(await self._look(path_of(*self._path, "stat", path=path, user=user)), FileInfo)

    async def remove(self, path: str, *, user: str | None = None) -> None:
        """Remove a file, or a directory with all that is in it. Raises as `list`."""
        target = path_of(*self._path, path=path, user=user)
        await self._connection.call(Request(method="DELETE", path=target))

    async def move(self, source: str, destination: str, *, user: str | None = None) -> FileInfo:
        """Move a file or directory, making the destination's parents. Raises as `list`."""
        return await self._change("move", {"source": source, "destination": destination}, user)

    async def make_directory(self, path: str, *, user: str | None = None) -> FileInfo:
        """Make a directory with its parents. Raises as `list`."""
        return await self._change("directory", {"path": path}, user)

    async def symlink(self, path: str, target: str, *, user: str | None = None) -> FileInfo:
        """Make a symbolic link at `path` that says `target`, with its parents. Raises as `list`."""
        return await self._change("link", {"path": path, "target": target}, user)

    async def readlink(self, path: str, *, user: str | None = None) -> str:
        """Return where a symbolic link points, as written in it.

        Raises:
            GuestFileError: `not_a_link`.
            VmpoolError: As `list`.
        """
        info = await self.stat(path, user=user)
        if info.target is None:
            raise GuestFileError(f"{path!r} is no symbolic link", code="not_a_link")
        return info.target

    async def chmod(self, path: str, mode: int, *, user: str | None = None) -> FileInfo:
        """Change permission bits; links are followed. Raises as `list`."""
        return await self._alter({"path": path, "mode": mode, "user": user})

    async def chown(
        self,
        path: str,
        *,
        owner: str | None = None,
        group: str | None = None,
        user: str | None = None,
    ) -> FileInfo:
        """Change owner and group, by name or number; links are followed.

        Args:
            path: Whose.
            owner: Stays if left out; `group` likewise.
            user: Whose rights hold: `root` may give files away.

        Raises:
            InvalidRequestError: `unknown_user`, `unknown_group`.
            VmpoolError: As `list`.
        """
        return await self._alter({"path": path, "owner": owner, "group": group, "user": user})

    async def write_many(
        self,
        files: Mapping[str, bytes | str | Path],
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> dict[str, FileInfo | VmpoolError]:
        """Write several files in one request, or in one for each thousand of them.

        Args:
            files: Contents by path. Text is written as UTF-8, a `Path` is a file of ours that is
                sent as it is read.
            user: Whose rights hold, and whose files they will be.
            mode: Permission bits.

        Returns:
            For each path what it is now, or why it could not be written.

        Raises:
            InvalidRequestError: `file_unreadable`; those before are written.
            VmpoolError: The request was refused or the server lost; some may be written.
        """
        made = (
            FormFile(path=path, content=content.encode() if isinstance(content, str) else content)
            for path, content in files.items()
        )
        outcomes: dict[str, FileInfo | VmpoolError] = {}
        for form in forms(made):
            request = Request(
                method="POST",
                path=path_of(*self._path, user=user, mode=mode),
                headers={"Content-Type": form.content_type},
            )
            async with self._connection.open(request, content=_threaded(form)) as response:
                answer = read(await self._connection.read(response), UploadListing)
            for one in answer.files:
                assert one.file is not None or one.error is not None
                outcomes[one.path] = one.file or error_of(one.error or {})
        return outcomes

    @contextlib.asynccontextmanager
    async def archive(
        self, path: str, *, user: str | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield a directory with all in it as a tar archive, in chunks, for the time of a block.

        Names and links in it are the guest's: unpack it as `tarfile` does with `filter="data"`, by
        a Python that has the fixes of June 2025 (3.11.13, 3.12.11, 3.13.4), or with `vmpool cp`.

        Raises:
            VmpoolError: As `stream`.
        """
        request = Request(method="GET", path=path_of(*self._path, "archive", path=path, user=user))
        async with self._connection.open(request) as response:
            yield self._connection.chunks(response)

    @contextlib.asynccontextmanager
    async def watch(
        self, path: str, *, user: str | None = None, recursive: bool = False
    ) -> AsyncIterator[AsyncIterator[FileChange]]:
        """Watch a directory for the time of a block; what happens from its beginning on is told.

        The changes end after `gone`.

        Args:
            path: The directory.
            user: Whose rights hold.
            recursive: Directories below it as well, those that come later included.

        Raises:
            VmpoolError: The guest or the server refused, or the server was lost; while iterating
                also `watch_limit`, or that the sandbox has ended.
        """
        deep = "true" if recursive else None
        target = path_of(*self._path, "watch", path=path, user=user, recursive=deep)
        async with (
            self._connection.open(Request(method="GET", path=target)) as response,
            aclosing(self._connection.lines(response)) as lines,
        ):
            await anext(lines)  # comes once all is watched
            async with aclosing(read_changes(lines)) as changes:
                yield changes

    async def sign(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout: int = 3600,
        user: str | None = None,
        mode: int | None = None,
    ) -> str:
        """Return a URL that reads or writes one file without a token.

        It cannot be taken back while the sandbox lives.

        Args:
            path: Which file; it need not be there yet.
            method: `GET` to read it, `PUT` to write it.
            timeout: Seconds for which it is good.
            user: Whose rights hold.
            mode: Permission bits that the file is written with; `None` for those that it has.

        Raises:
            VmpoolError: The server refused, or was lost.
        """
        asked: dict[str, object] = {"path": path, "method": method, "timeout": timeout}
        asked |= {} if user is None else {"user": user}
        asked |= {} if mode is None else {"mode": mode}
        request = Request(method="POST", path=path_of(*self._path, "url"), body=asked)
        signed = read(await self._connection.call(request), SignedFile)
        return self._connection.endpoint.url + signed.url

    async def _alter(self, changes: dict[str, object]) -> FileInfo:
        given = {name: value for name, value in changes.items() if value is not None}
        request = Request(method="PATCH", path=path_of(*self._path), body=given)
        return read(await self._connection.call(request), FileInfo)

    async def _look(self, path: str) -> bytes:
        request = Request(method="GET", path=path)
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)

    async def _change(self, what: str, body: dict[str, object], user: str | None) -> FileInfo:
        asked = body if user is None else body | {"user": user}
        request = Request(method="POST", path=path_of(*self._path, what), body=asked)
        return read(await self._connection.call(request), FileInfo)


def _headers(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that say metadata; what no header can hold is refused here.

    Raises:
        InvalidRequestError: `invalid_metadata`.
    """
    for key, value in metadata.items():
        if not (_KEY.fullmatch(key) and value.isascii() and value.isprintable()):
            raise InvalidRequestError(
                f"metadata {key[:64]!r} cannot stand in a header", code="invalid_metadata"
            )
    return {f"X-Metadata-{key}": value for key, value in metadata.items()}


async def _threaded(form: Form) -> AsyncIterator[bytes]:
    pieces = form.pieces()
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for at in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[at : at + CHUNK_BYTES])
