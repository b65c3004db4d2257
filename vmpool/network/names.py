"""Names: what a rule's domain means, and whether a name that was asked for is among it.

A pattern is a name, or `*.` before one for all that are below it, at any depth and without itself.
Both sides are compared in one form: lower-case labels of letters, digits, `-` and `_` in ASCII,
without the dot at the end. A name that has no such form is covered by no pattern.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import idna

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME_BYTES: Final = 253
"""Length of a name without the dot at its end (RFC 1035, 2.3.4: 255 with length bytes)."""

_LABEL: Final = re.compile(rb"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_WILDCARD: Final = "*."


def pattern(text: str) -> str:
    """Return a rule's domain in the form that `covers` takes; `*.Bücher.example.` is one.

    Raises:
        InvalidRequestError: `invalid_domain`; it is neither a name nor `*.` before one.
    """
    if len(text) > NAME_BYTES + 3:  # with `*.` and the dot at the end
        raise _invalid(text)
    wildcard, bare = (_WILDCARD, text[2:]) if text.startswith(_WILDCARD) else ("", text)
    try:
        encoded = idna.encode(bare.lower(), uts46=True) if not bare.isascii() else bare.encode()
    except UnicodeError as err:  # which idna's errors are as well
        raise _invalid(text) from err
    name = canonical(encoded.removesuffix(b".").split(b"."))
    if name is None or name.rpartition(".")[2].isdecimal():
        raise _invalid(text)
    return wildcard + name


def canonical(labels: Iterable[bytes]) -> str | None:
    """Return the name of labels as they stand in a message, without the root's empty one.

    `None` for one that no host has: empty, too long, or with other characters.
    """
    lowered = [label.lower() for label in labels]
    if not lowered or not all(map(_LABEL.fullmatch, lowered)):
        return None
    name = b".".join(lowered)
    return name.decode("ascii") if len(name) <= NAME_BYTES else None


def covers(pattern: str, name: str) -> bool:
    """Tell whether `name`, as `canonical` returns it, is meant by `pattern`."""
    if pattern.startswith(_WILDCARD):
        return name.endswith(pattern[1:])
    return name == pattern


def _invalid(text: str) -> InvalidRequestError:
    shown = text if len(text) <= NAME_BYTES else text[:NAME_BYTES] + "…"
    return InvalidRequestError(
        f"{shown!r} is no domain",
        code="invalid_domain",
        remedy="write a name, or *. before one for all that are below it; addresses are a cidr",
    )
