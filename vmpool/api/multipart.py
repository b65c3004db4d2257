"""Multipart: several files in one body (RFC 7578), taken apart as it comes.

Nothing is held but the headers of the part at hand, which have a limit, and a few bytes that may
be the beginning of a boundary. Names are told as they were sent; who may use them is not decided
here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping

HEADERS_BYTES: Final = 1 << 14
"""The longest path in the guest, each byte escaped, and then some."""

ASIDE_BYTES: Final = 1 << 14
"""What may stand before the first part and behind the last one, and is nobody's."""

_BOUNDARY: Final = re.compile(
    r"multipart/form-data\s*;(?:.*;)?\s*boundary=(?:\"([^\"\\]{1,70})\"|([^\s\";,]{1,70}))\s*(?:;|$)",
    re.IGNORECASE,
)
_PARAMETER: Final = re.compile(
    r";\s*([\w*!#$&+.^`|~-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"]*))"
)
_ESCAPED: Final = re.compile("%(22|0D|0A)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What stands before a part's content.

    Attributes:
        name: Of the form's field; `None` where there is none.
        filename: As it was sent, slashes and all; `None` where there is none.
        headers: By their names in lower case.
    """

    filename: str | None
    name: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class Parts:
    """The parts of one body, one after the other.

    Args:
        content_type: The body's, which has the boundary.
        chunks: The body.

    Raises:
        InvalidRequestError: `unsupported_media_type`; it is no form.
    """

    def __init__(self, content_type: str, chunks: AsyncIterator[bytes]) -> None:
        found = _BOUNDARY.match(content_type)
        if found is None:
            raise InvalidRequestError(
                f"content type {content_type[:200]!r} is not 'multipart/form-data' with a boundary",
                code="unsupported_media_type",
            )
        boundary = found[1] if found[1] is not None else found[2]
        self._items = _items(b"\r\n--" + boundary.encode(), chunks)
        self._next: Part | None = None

    async def next(self) -> Part | None:
        """Return the next part, `None` after the last; what is left of the one before is skipped.

        Raises:
            InvalidRequestError: `invalid_body`; it is no multipart body, or not whole.
        """
        async for _ in self.content():
            pass
        part, self._next = self._next, None
        return part

    async def content(self) -> AsyncGenerator[bytes, None]:
        """Yield the content of the part at hand.

        Raises:
            InvalidRequestError: As `next`.
        """
        while self._next is None:
            item = await anext(self._items, None)
            if item is None:
                return
            if isinstance(item, Part):
                self._next = item
            else:
                yield item

    async def aclose(self) -> None:
        """Let go of the body's iterator."""
        await self._items.aclose()


async def _items(
    delimiter: bytes, chunks: AsyncIterator[bytes]
) -> AsyncGenerator[Part | bytes, None]:
    """Yield parts, each followed by the pieces of its content."""
    parser = _Parser(delimiter)
    async for chunk in chunks:
        for item in parser.feed(chunk):
            yield item
    if not parser.over:
        raise _broken("it has no end")


class _Parser:
    """Finds boundaries and headers in bytes that come in chunks of any size."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter = delimiter
        self._buffer = bytearray(b"\r\n")  # which a boundary at the very beginning lacks
        self._step: Callable[[], tuple[bool, Part | bytes | None]] = self._skip_preamble
        self._aside_bytes = 0
        self.over = False

    def feed(self, data: bytes) -> Iterator[Part | bytes]:
        """Yield what is certain now; of an epilogue, nothing."""
        if self.over:
            self._set_aside(data)
            return
        self._buffer += data
        more = True
        while more and not self.over:
            more, item = self._step()
            if item:
                yield item

    def _skip_preamble(self) -> tuple[bool, None]:
        more, skipped = self._take_content()
        self._set_aside(skipped)
        return more, None

    def _set_aside(self, data: bytes) -> None:
        """Drop what belongs to no part; the limits of files do not hold for it."""
        self._aside_bytes += len(data)
        if self._aside_bytes > ASIDE_BYTES:
            raise _broken(f"over {ASIDE_BYTES} bytes of it belong to no part")

    def _take_content(self) -> tuple[bool, bytes]:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            end = max(0, len(self._buffer) - len(self._delimiter) + 1)
            content = bytes(self._buffer[:end])
            del self._buffer[:end]
            return False, content
        content = bytes(self._buffer[:at])
        del self._buffer[: at + len(self._delimiter)]
        self._step = self._take_line
        return True, content

    def _take_line(self) -> tuple[bool, None]:
        if self._buffer.startswith(b"--"):
            self.over = True
            self._set_aside(bytes(self._buffer))
            self._buffer.clear()
        elif self._buffer.startswith(b"\r\n"):
            self._step = self._take_headers
        elif len(self._buffer) >= 2:
            raise _broken("a boundary is followed by something else than a line's end")
        else:
            return False, None
        return True, None

    def _take_headers(self) -> tuple[bool, Part | None]:
        # From the line's end on that the boundary has, so that no headers at all are found as well.
        at = self._buffer.find(b"\r\n\r\n")
        if max(at, len(self._buffer) if at < 0 else 0) > HEADERS_BYTES:
            raise _broken(f"the headers of a part are over {HEADERS_BYTES} bytes")
        if at < 0:
            return False, None
        lines = bytes(self._buffer[2:at])
        del self._buffer[: at + 4]
        self._step = self._take_content
        return True, _part(lines)


def _part(lines: bytes) -> Part:
    headers: dict[str, str] = {}
    try:
        for line in filter(None, lines.decode().split("\r\n")):
            name, colon, value = line.partition(":")
            if not colon:
                raise _broken("a part has a header without a colon")
            headers[name.strip().lower()] = value.strip()
    except UnicodeDecodeError as err:
        raise _broken("a part has headers that are not UTF-8") from err
    disposition = headers.get("content-disposition", "")
    found = {match[1].lower(): (match[2], match[3]) for match in _PARAMETER.finditer(disposition)}
    return Part(filename=_filename(found), name=_unquoted(found, "name"), headers=headers)


def _filename(found: Mapping[str, tuple[str | None, str | None]]) -> str | None:
    """Return the name that a part's file has, as browsers, curl and Python's clients write it."""
    exact = "".join(filter(None, found.get("filename*", ())))
    if exact:
        charset, _, quoted = exact.partition("'")
        if charset.lower() != "utf-8":
            raise _broken("a part has a name that is not UTF-8")
        try:
            return unquote_to_bytes(quoted.partition("'")[2]).decode()
        except UnicodeDecodeError as err:
            raise _broken("a part has a name that is not UTF-8") from err
    return _unquoted(found, "filename")


def _unquoted(found: Mapping[str, tuple[str | None, str | None]], name: str) -> str | None:
    if name not in found:
        return None
    quoted, token = found[name]
    if quoted is None:
        return (token or "").strip()
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), quoted.replace('\\"', '"'))


def _broken(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the multipart body is broken: {why}", code="invalid_body")
