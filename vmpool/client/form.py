"""Form: several files as the body of one request, made as it is sent."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILES = 1000
"""Files that a server takes in one request."""

CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFile:
    """One file of a form.

    Attributes:
        path: Where it goes.
        content: What it holds; a path is of a file of ours, read as it is sent.
        mode: Permission bits, `None` for those of the request.
    """

    path: str
    content: bytes | Path
    mode: int | None = None


class Form:
    """A body of the type `content_type`."""

    def __init__(self, files: Iterable[FormFile]) -> None:
        self._files = files
        self._boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={self._boundary}"

    def pieces(self) -> Iterator[bytes]:
        """Yield the body.

        Raises:
            InvalidRequestError: `file_unreadable`.
        """
        for file in self._files:
            name = quote(file.path.encode("utf-8", "surrogateescape"), safe="")
            mode = "" if file.mode is None else f"X-Mode: {file.mode}\r\n"
            disposition = f"form-data; name=\"file\"; filename*=UTF-8''{name}"
            head = f"--{self._boundary}\r\nContent-Disposition: {disposition}\r\n{mode}\r\n"
            yield head.encode()
            yield from _content(file.content)
            yield b"\r\n"
        yield f"--{self._boundary}--\r\n".encode()


def forms(files: Iterable[FormFile]) -> Iterator[Form]:
    """Yield as many forms as it takes for all files."""
    left = iter(files)
    while batch := list(itertools.islice(left, FILES)):
        yield Form(batch)


def _content(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for at in range(0, len(content), CHUNK_BYTES):
            yield content[at : at + CHUNK_BYTES]
        return
    try:
        with content.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as err:
        raise InvalidRequestError(
            f"cannot read {str(content)!r}: {err.strerror or err}", code="file_unreadable"
        ) from err
