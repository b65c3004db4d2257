"""Message: what the host in the machine tells whoever started it, one JSON object a line.

They come over a port of their own, so nothing that a program prints is ever taken for one.
"""

from __future__ import annotations

import msgspec

from vmpool.model import MIB

MAX_BYTES = 8 * MIB
"""Of one line; a report of a thousand tests has some hundred KiB."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """Any of those below."""


class Up(Message, frozen=True, kw_only=True):
    """Process 1 runs."""

    kernel: str


class Lacking(Message, frozen=True, kw_only=True):
    """What the host lacks for the ring, in words; then the ring is not begun."""

    what: tuple[str, ...]


class Began(Message, frozen=True, kw_only=True):
    """Pytest is about to start."""


class Failed(Message, frozen=True, kw_only=True):
    """A test has failed; the ring goes on."""

    test: str


class Report(Message, frozen=True, kw_only=True):
    """Pytest has ended: its exit code, and its report in JUnit's XML."""

    code: int
    junit: str


class Halted(Message, frozen=True, kw_only=True):
    """The ring's process has ended, and the host is about to halt."""

    code: int


Any = Up | Lacking | Began | Failed | Report | Halted


def encode(message: Any) -> bytes:
    """Return the message as a line."""
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Any:
    """Return the message in a line, with or without its end.

    Raises:
        ValueError: It is none.
    """
    try:
        found: Any = msgspec.json.decode(line, type=Any)
    except msgspec.DecodeError as err:
        raise ValueError(f"not a message: {line[:200]!r}: {err}") from err
    return found
