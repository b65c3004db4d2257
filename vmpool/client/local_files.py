"""Local files: files of this host that go to a server or come from one.

Read as they are sent; written beside and renamed, so that half a one is never found under its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CHUNK_BYTES = 1 << 18


async def read_chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield what an open file still holds."""
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        yield chunk


def reading(source: Path) -> BinaryIO:
    """Return a file open for reading.

    Raises:
        InvalidRequestError: `file_unreadable`.
    """
    try:
        return source.open("rb")
    except OSError as err:
        raise InvalidRequestError(
            f"cannot read {str(source)!r}: {err.strerror or err}", code="file_unreadable"
        ) from err


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `target` once it is whole; nothing is left of half a one.

    Raises:
        InvalidRequestError: `file_unwritable`.
    """
    try:
        with contextlib.ExitStack() as undo:
            descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            undo.callback(os.unlink, name)
            with os.fdopen(descriptor, "wb") as file:
                yield file
            Path(name).replace(target)
            undo.pop_all()
    except OSError as err:
        raise InvalidRequestError(
            f"cannot write {str(target)!r}: {err.strerror or err}", code="file_unwritable"
        ) from err
