"""Blocking files: those of a sandbox for code without asyncio.

Each call is that of `AsyncFiles`, made through a portal; what it does, takes and raises is said
there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, BinaryIO

from vmpool.client.files import READ_BYTES
from vmpool.client.portal import Portal, entered, iterated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from vmpool.client.files import AsyncFiles
    from vmpool.client.values import FileInfo
    from vmpool.client.watches import FileChange
    from vmpool.errors import VmpoolError


class Files:
    """The files of one sandbox, as `AsyncFiles`."""

    def __init__(self, portal: Portal, behind: AsyncFiles) -> None:
        self._portal = portal
        self._behind = behind

    def read(self, path: str, *, user: str | None = None, limit_bytes: int = READ_BYTES) -> bytes:
        """As `AsyncFiles.read`."""
        return self._portal.call(self._behind.read(path, user=user, limit_bytes=limit_bytes))

    def read_text(self, path: str, *, user: str | None = None) -> str:
        """As `AsyncFiles.read_text`."""
        return self._portal.call(self._behind.read_text(path, user=user))

    @contextlib.contextmanager
    def stream(self, path: str, *, user: str | None = None) -> Iterator[Iterator[bytes]]:
        """As `AsyncFiles.stream`."""
        with entered(self._portal, self._behind.stream(path, user=user)) as chunks:
            yield iterated(self._portal, chunks)

    def download(self, path: str, target: Path | str, *, user: str | None = None) -> None:
        """As `AsyncFiles.download`."""
        self._portal.call(self._behind.download(path, target, user=user))

    def write(
        self,
        path: str,
        content: bytes | str,
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FileInfo:
        """As `AsyncFiles.write`; for a stream there is `upload`."""
        return self._portal.call(
            self._behind.write(path, content, user=user, mode=mode, metadata=metadata)
        )

    def upload(
        self,
        source: Path | str | BinaryIO,
        path: str,
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> FileInfo:
        """As `AsyncFiles.upload`."""
        return self._portal.call(
            self._behind.upload(source, path, user=user, mode=mode, metadata=metadata)
        )

    def list(self, path: str, *, user: str | None = None, depth: int = 1) -> tuple[FileInfo, ...]:
        """As `AsyncFiles.list`."""
        return self._portal.call(self._behind.list(path, user=user, depth=depth))

    def stat(self, path: str, *, user: str | None = None) -> FileInfo:
        """As `AsyncFiles.stat`."""
        return self._portal.call(self._behind.stat(path, user=user))

    def remove(self, path: str, *, user: str | None = None) -> None:
        """As `AsyncFiles.remove`."""
        self._portal.call(self._behind.remove(path, user=user))

    def move(self, source: str, destination: str, *, user: str | None = None) -> FileInfo:
        """As `AsyncFiles.move`."""
        return self._portal.call(self._behind.move(source, destination, user=user))

    def make_directory(self, path: str, *, user: str | None = None) -> FileInfo:
        """As `AsyncFiles.make_directory`."""
        return self._portal.call(self._behind.make_directory(path, user=user))

    def symlink(self, path: str, target: str, *, user: str | None = None) -> FileInfo:
        """As `AsyncFiles.symlink`."""
        return self._portal.call(self._behind.symlink(path, target, user=user))

    def readlink(self, path: str, *, user: str | None = None) -> str:
        """As `AsyncFiles.readlink`."""
        return self._portal.call(self._behind.readlink(path, user=user))

    def chmod(self, path: str, mode: int, *, user: str | None = None) -> FileInfo:
        """As `AsyncFiles.chmod`."""
        return self._portal.call(self._behind.chmod(path, mode, user=user))

    def chown(
        self,
        path: str,
        *,
        owner: str | None = None,
        group: str | None = None,
        user: str | None = None,
    ) -> FileInfo:
        """As `AsyncFiles.chown`."""
        return self._portal.call(self._behind.chown(path, owner=owner, group=group, user=user))

    def write_many(
        self,
        files: Mapping[str, bytes | str | Path],
        *,
        user: str | None = None,
        mode: int | None = None,
    ) -> dict[str, FileInfo | VmpoolError]:
        """As `AsyncFiles.write_many`."""
        return self._portal.call(self._behind.write_many(files, user=user, mode=mode))

    def sign(
        self,
        path: str,
        *,
        method: str = "GET",
        timeout: int = 3600,
        user: str | None = None,
        mode: int | None = None,
    ) -> str:
        """As `AsyncFiles.sign`."""
        signing = self._behind.sign(path, method=method, timeout=timeout, user=user, mode=mode)
        return self._portal.call(signing)

    @contextlib.contextmanager
    def archive(self, path: str, *, user: str | None = None) -> Iterator[Iterator[bytes]]:
        """As `AsyncFiles.archive`."""
        with entered(self._portal, self._behind.archive(path, user=user)) as chunks:
            yield iterated(self._portal, chunks)

    @contextlib.contextmanager
    def watch(
        self, path: str, *, user: str | None = None, recursive: bool = False
    ) -> Iterator[Iterator[FileChange]]:
        """As `AsyncFiles.watch`."""
        block = self._behind.watch(path, user=user, recursive=recursive)
        with entered(self._portal, block) as changes:
            yield iterated(self._portal, changes)
