"""Local files: what commands read on this host and write to it, `-` for stdin and stdout."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, BinaryIO

from vmpool.cli import task
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def reading(source: Path) -> Iterator[BinaryIO]:
    """Yield a file open for reading.

    Raises:
        InvalidRequestError: `file_unreadable`.
    """
    if str(source) == "-":
        yield sys.stdin.buffer
        return
    try:
        file = source.open("rb")
    except OSError as err:
        raise task.unreadable(source, err) from err
    with file:
        yield file


@contextlib.contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `target` once it is whole; nothing is left of half a one.

    Raises:
        InvalidRequestError: `file_unwritable`.
    """
    if str(target) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    beside = target.with_name(f".{target.name}.part")
    try:
        with contextlib.ExitStack() as undo:
            with beside.open("wb") as file:
                undo.callback(beside.unlink)
                yield file
            beside.replace(target)
            undo.pop_all()
    except OSError as err:
        raise InvalidRequestError(
            f"cannot write {str(target)!r}: {err.strerror or err}", code="file_unwritable"
        ) from err
