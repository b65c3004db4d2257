"""Envelope: messages in a stream of the protocol Connect, put in frames and taken out.

Pure. A frame is a byte of flags, four of length and the message. It knows lengths and flags, and
nothing of what the messages say.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vmpool.errors import InvalidRequestError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGE: Final = 0
COMPRESSED: Final = 1
END: Final = 2
"""Flags of a frame; the last is the server's alone, around what it says in the end."""

_HEAD: Final = struct.Struct(">BI")


def enclose(flags: int, message: bytes) -> bytes:
    """Return the frame of a message."""
    return _HEAD.pack(flags, len(message)) + message


class Frames:
    """The frames of one client's stream.

    Args:
        most_bytes: What a message may have.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held = bytearray()

    @property
    def held_bytes(self) -> int:
        """What came of a frame that is not whole."""
        return len(self._held)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole now.

        Raises:
            InvalidRequestError: `invalid_body`; a frame has flags that a client's cannot have.
            TooLargeError: `body_too_large`; a message is going to be.
        """
        self._held += data
        while len(self._held) >= _HEAD.size:
            flags, size_bytes = _HEAD.unpack_from(self._held)
            self._check(flags, size_bytes)
            end = _HEAD.size + size_bytes
            if len(self._held) < end:
                return
            message = bytes(memoryview(self._held)[_HEAD.size : end])
            del self._held[:end]
            yield message

    def finish(self) -> None:
        """Note that nothing follows.

        Raises:
            InvalidRequestError: `invalid_body`; the last frame is not whole.
        """
        if self._held:
            raise broken("the last frame is not whole")

    def _check(self, flags: int, size_bytes: int) -> None:
        if flags == COMPRESSED:
            raise broken("a frame is compressed, and no way of that was agreed on")
        if flags != MESSAGE:
            raise broken(f"a frame has the flags {flags:#04x}")
        if size_bytes > self._most_bytes:
            raise TooLargeError(
                f"a frame of {size_bytes} bytes is over {self._most_bytes}", code="body_too_large"
            )


def broken(why: str) -> InvalidRequestError:
    """Return, as an error to raise, what is wrong with a stream."""
    return InvalidRequestError(f"the stream of frames is broken: {why}", code="invalid_body")
