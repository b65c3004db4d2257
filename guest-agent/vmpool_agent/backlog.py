"""Backlog: the last of what a process wrote, read from several places at once.

A place is a number of bytes since the process began. It knows no channel and no process, and
decides nothing but what is dropped.
"""

from __future__ import annotations

import collections

LIMIT = 64 * 1024
"""Bytes that are held, each piece counted with what it costs us beside them."""
PIECE_COST = 128
_MERGED = 4096
"""A piece that is shorter takes in what follows it on its stream: crumbs would cost the most."""


class _Piece:
    """Bytes of one stream; `start` is the place of the first."""

    __slots__ = ("data", "start", "stream")

    def __init__(self, stream: int, start: int, data: bytearray) -> None:
        self.stream = stream
        self.start = start
        self.data = data


class Backlog:
    """One process's output.

    Attributes:
        end: The place behind the last byte that was written.
    """

    def __init__(self) -> None:
        self.end = 0
        self._pieces: collections.deque[_Piece] = collections.deque()

    @property
    def start(self) -> int:
        """The place of the first byte that is held."""
        return self._pieces[0].start if self._pieces else self.end

    def append(self, stream: int, data: bytes) -> None:
        """Add what the process wrote now."""
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream == stream and len(last.data) < _MERGED:
            last.data += data
        else:
            self._pieces.append(_Piece(stream, self.end, bytearray(data)))
        self.end += len(data)

    def trim(self, due: int) -> None:
        """Drop the oldest until no more than `LIMIT` is held, but nothing from the place `due`."""
        while (over := self._cost(self.start)) > LIMIT and self.start < due:
            first = self._pieces[0]
            dropped = min(over - LIMIT, due - first.start, len(first.data))
            if dropped == len(first.data):
                self._pieces.popleft()
            else:
                del first.data[:dropped]
                first.start += dropped

    def room(self, due: int) -> int:
        """Return how much may be written before what is due from a place on is over `LIMIT`."""
        return max(0, LIMIT - self._cost(due))

    def read(self, place: int, most: int) -> tuple[int, bytes] | None:
        """Return the stream and at most so many bytes of what is at a place that is held."""
        for piece in reversed(self._pieces):
            if piece.start <= place:
                offset = place - piece.start
                data = bytes(piece.data[offset : offset + most])
                return (piece.stream, data) if data else None
        return None

    def _cost(self, place: int) -> int:
        cost = self.end - place
        for piece in reversed(self._pieces):
            if piece.start + len(piece.data) <= place:
                break
            cost += PIECE_COST
        return cost
