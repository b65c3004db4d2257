"""Metadata: the words that an upload's headers want kept with its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from multidict import MultiMapping

PREFIX: Final = "x-metadata-"

KEY_BYTES: Final = 246
"""The name of an extended attribute (255), without what is put before a key."""

ALL_BYTES: Final = 4096
"""Keys and values together: what every file system has room for."""


def of_headers(headers: MultiMapping[str]) -> dict[str, str]:
    """Return what the headers `X-Metadata-KEY: value` say, keys in lower case.

    Raises:
        InvalidRequestError: `invalid_metadata`; they say too much, or not in printable ASCII.
    """
    found: dict[str, str] = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower.startswith(PREFIX):
            found[lower.removeprefix(PREFIX)] = _fit(lower, value)
    if sum(len(key) + len(value) for key, value in found.items()) > ALL_BYTES:
        raise _unfit(f"all metadata are over {ALL_BYTES} bytes")
    return found


def _fit(name: str, value: str) -> str:
    key = name.removeprefix(PREFIX)
    if not key:
        raise _unfit("a header of metadata has no key")
    if len(key) > KEY_BYTES:
        raise _unfit(f"metadata key {key[:64]!r} is over {KEY_BYTES} bytes")
    if not (value.isascii() and value.isprintable()):
        raise _unfit(f"metadata {key[:64]!r} is not printable ASCII")
    return value


def _unfit(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        why,
        code="invalid_metadata",
        remedy=f"send headers '{PREFIX.title()}KEY: value', {ALL_BYTES} bytes at most together",
    )
