"""Codec: bytes to bodies and back, the one place where JSON is read or written.

Every way in which bytes can fail to be the body that was asked for ends in one clear error that
names the field.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multidict import MultiMapping

T = TypeVar("T", bound=msgspec.Struct)

_ENCODER: Final = msgspec.json.Encoder()
_NOT_ASCII: Final = re.compile("[^\\x00-\\x7f]+")


def encode(body: msgspec.Struct) -> bytes:
    """Return a body as JSON."""
    return _ENCODER.encode(body)


def encode_plain(value: dict[str, Any]) -> bytes:
    """Return a document that is no body as JSON."""
    return _ENCODER.encode(value)


def encode_ascii(body: msgspec.Struct) -> bytes:
    """Return a body as JSON in which all that is not ASCII is escaped."""
    data = _ENCODER.encode(body)
    if data.isascii():
        return data
    # Outside of strings JSON is ASCII.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], data.decode()).encode()


@functools.cache
def _decoder(body: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(body)


def decode(data: bytes, body: type[T]) -> T:
    """Read a request body.

    Raises:
        InvalidRequestError: `invalid_json` when it is no JSON in UTF-8, `invalid_request` when it
            is another body than `body`.
    """
    try:
        value: T = _decoder(body).decode(data)
    except msgspec.ValidationError as err:
        raise InvalidRequestError(_lower(str(err))) from err
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        what = "not UTF-8" if isinstance(err, UnicodeDecodeError) else _lower(str(err))
        raise InvalidRequestError(
            f"the request body cannot be read as JSON: {what}", code="invalid_json"
        ) from err
    return value


def parse_query(query: MultiMapping[str], into: type[T]) -> T:
    """Read query parameters; only those of a list type may be repeated.

    Raises:
        InvalidRequestError: `invalid_request`.
    """
    values: dict[str, Any] = {}
    repeatable = _list_fields(into)
    for name in query:
        if name in repeatable:
            values[name] = query.getall(name)
        elif len(query.getall(name)) > 1:
            raise InvalidRequestError(f"query parameter {name!r} is given more than once")
        else:
            values[name] = query[name]
    try:
        return msgspec.convert(values, into, strict=False)
    except msgspec.ValidationError as err:
        raise InvalidRequestError(f"query: {_lower(str(err))}") from err


@functools.cache
def _list_fields(into: type[msgspec.Struct]) -> frozenset[str]:
    info = msgspec.inspect.type_info(into)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(
        field.encode_name
        for field in info.fields
        if isinstance(field.type, msgspec.inspect.ListType)
    )


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def text(data: bytes, *, cut: bool = False) -> tuple[str, bool]:
    """Return bytes as text, and whether that lost nothing.

    Args:
        data: What may be UTF-8.
        cut: The end was cut off, perhaps in the middle of a character, which is then left out.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(data, final=not cut), True
    except UnicodeDecodeError:
        return data.decode(errors="replace"), False


class Characters:
    """Chunks of one stream, cut where characters end.

    What comes out is whole characters as `str`, and as `bytes` what can be no part of any; put
    together they are what went in. At most three bytes wait for the rest of their character.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str | bytes]:
        """Yield what is certain now."""
        data = self._rest + data
        self._rest = b""
        try:
            chunk, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            # One bad byte and the chunk is binary: its characters would mean nothing in between.
            yield data
            return
        self._rest = data[used:]
        if chunk:
            yield chunk

    def finish(self) -> Iterator[bytes]:
        """Yield what was left waiting."""
        if self._rest:
            rest, self._rest = self._rest, b""
            yield rest
