"""Archives: the files that builds copy, sent ahead of them and kept by what the sender calls them.

An address that nobody can guess takes one archive of one tenant, without a token. What is in an
archive, only guests look at. A tenant's oldest make room for its newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import secrets
import time
from collections import Counter, OrderedDict
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmpool.cancellation import opened, uninterrupted
from vmpool.errors import (
    CapacityError,
    DiskFullError,
    HostError,
    NotFoundError,
    TooLargeError,
)
from vmpool.model import GIB

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator


SIZE_MOST: Final = GIB
TENANT_MOST: Final = 4 * GIB
"""Bytes of one archive, and of all that are kept for one tenant; as much may be on its way."""

ADDRESSES_MOST: Final = 1024
"""Addresses of one tenant; its oldest end when it asks for more."""

ADDRESS_SECONDS: Final = 3600.0

_PARTIAL: Final = ".partial-"
_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Address:
    whose: str
    path: Path
    until: float


class Archives:
    """The archives of a host.

    Args:
        directory: Where they lie; made when the first comes.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._addresses: OrderedDict[str, _Address] = OrderedDict()
        self._under_way: Counter[Path] = Counter()

    def sweep(self) -> None:
        """Remove what a crash left half written. Blocks."""
        for left in self._directory.glob(f"*/{_PARTIAL}*"):
            left.unlink()

    def find(self, owner: str, digest: str) -> Path | None:
        """Return a tenant's archive, `None` while it has not sent it. Blocks for a moment."""
        path = self._path(owner, digest)
        return path if path.exists() else None

    def address(self, owner: str, digest: str) -> str:
        """Return what a tenant's archive is to be sent to, for an hour."""
        secret = secrets.token_urlsafe(32)
        until = time.monotonic() + ADDRESS_SECONDS
        self._end_addresses(owner)
        path = self._path(owner, digest)
        self._addresses[secret] = _Address(whose=owner, path=path, until=until)
        return secret

    def _end_addresses(self, whose: str) -> None:
        """Forget those whose time is up, and the oldest of a tenant that has all it may."""
        now = time.monotonic()
        while self._addresses and next(iter(self._addresses.values())).until < now:
            self._addresses.popitem(last=False)
        mine = [secret for secret, each in self._addresses.items() if each.whose == whose]
        for secret in mine[: max(len(mine) - ADDRESSES_MOST + 1, 0)]:
            del self._addresses[secret]

    def require(self, secret: str) -> Path:
        """Return where what is sent to an address goes.

        Raises:
            NotFoundError: `upload_not_found`; there is no such address, or it ended.
        """
        address = self._addresses.get(secret)
        if address is None or address.until < time.monotonic():
            raise NotFoundError("no such upload is awaited", code="upload_not_found")
        return address.path

    async def receive(self, secret: str, chunks: AsyncIterator[bytes]) -> None:
        """Keep what is sent to an address, in place of what was there.

        Raises:
            NotFoundError: As `require`.
            TooLargeError: `upload_too_large`.
            CapacityError: `uploads_busy`; too much is being sent for its tenant.
            DiskFullError: The disk is full.
            HostError: `state_unwritable`.
        """
        path = self.require(secret)
        partial = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
        with self._counted(path.parent) as count:
            try:
                with _writing():
                    await asyncio.to_thread(_make_parent, partial)
                    await _write(partial, chunks, count)
                    await uninterrupted(asyncio.to_thread(_keep, partial, path))
            finally:  # and then it counts no more
                await uninterrupted(asyncio.to_thread(partial.unlink, missing_ok=True))

    @contextlib.contextmanager
    def _counted(self, whose: Path) -> Iterator[Callable[[int], None]]:
        """Return what counts bytes that are to be written for a tenant, for the time of a block.

        It raises CapacityError `uploads_busy`.
        """
        size = 0

        def count(more: int) -> None:
            nonlocal size
            if self._under_way[whose] + more > TENANT_MOST:
                raise CapacityError(
                    f"more than {TENANT_MOST} bytes are being sent already",
                    code="uploads_busy",
                    remedy="wait until some of it is there",
                )
            size += more
            self._under_way[whose] += more

        try:
            yield count
        finally:
            self._under_way[whose] -= size
            if not self._under_way[whose]:
                del self._under_way[whose]

    def _path(self, owner: str, digest: str) -> Path:
        # No word of a request becomes a path as it stands.
        whose = hashlib.sha256(owner.encode()).hexdigest()[:32]
        return self._directory / whose / hashlib.sha256(digest.encode()).hexdigest()


async def read(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield what an archive holds."""
    file = await opened(lambda: path.open("rb"))
    try:
        while piece := await uninterrupted(asyncio.to_thread(file.read, _PIECE_BYTES)):
            yield piece
    finally:
        file.close()


async def _write(path: Path, chunks: AsyncIterator[bytes], count: Callable[[int], None]) -> None:
    size = 0
    file = await opened(lambda: path.open("xb"))
    try:
        async with aclosing(_pieces(chunks)) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > SIZE_MOST:
                    raise TooLargeError(
                        f"the files of a step are more than {SIZE_MOST} bytes",
                        code="upload_too_large",
                        remedy="leave out what need not be copied, in .dockerignore",
                    )
                count(len(piece))
                await uninterrupted(asyncio.to_thread(file.write, piece))
    finally:
        file.close()


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield what comes in pieces that are worth a change of threads."""
    gathered = bytearray()
    async for chunk in chunks:
        gathered += chunk
        if len(gathered) >= _PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _make_parent(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _keep(partial: Path, path: Path) -> None:
    """Give an archive its name, and remove the oldest that there is no more room for."""
    partial.replace(path)
    kept = []
    for each in path.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another that came now has made room
            if not each.name.startswith(_PARTIAL):
                found = each.stat()
                kept.append((found.st_mtime_ns, found.st_size, each))
    room = TENANT_MOST
    for _, size, each in sorted(kept, reverse=True):
        room -= size
        if room < 0:
            each.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("no space for the files of a build") from err
        raise HostError(
            f"cannot keep the files of a build: {err.strerror}", code="state_unwritable"
        ) from err
