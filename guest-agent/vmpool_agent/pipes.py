"""Pipes: what connects a child with the agent, made before there is a child."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmpool_agent import terminal, wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmpool_agent.system import Account
    from vmpool_agent.terminal import Size


class Pipes:
    """The pipes of one child: its output, its reports and, when it has one, its stdin.

    Args:
        streams: The channel's stream for each output of the child.

    Attributes:
        outputs: The stream of each of the agent's ends to read from. These, `report` and `stdin`
            never block, and belong to whoever made the pipes until a relay adopts them.
        child: The child's ends of the outputs, and of its reports; closed by whoever made them
            once the child has copies.
    """

    def __init__(self, streams: Iterable[int]) -> None:
        self.stdin: int | None = None
        incoming = [(stream, *_incoming()) for stream in streams]
        self.outputs = {ours: stream for stream, ours, _ in incoming}
        self.report, report = _incoming()
        self.child = (*(theirs for _, _, theirs in incoming), report)

    def add_stdin(self) -> int:
        """Make a pipe to the child's stdin; return the child's end, the caller's to close."""
        child, self.stdin = os.pipe()
        os.set_blocking(self.stdin, False)
        return child

    def add_terminal(self, size: Size, account: Account) -> int:
        """Make a terminal for the child's input and output; return its end, the caller's to close.

        Raises:
            OSError: There is none left.
        """
        ours, child = terminal.open_pair(size, account)
        self.outputs[ours] = wire.TERMINAL
        self.stdin = os.dup(ours)
        return child

    def close_child(self) -> None:
        """Close the child's ends, which it has copies of."""
        for fd in self.child:
            os.close(fd)

    def close(self) -> None:
        """Close the agent's ends: no relay adopts them."""
        for fd in (*self.outputs, self.report, *(() if self.stdin is None else (self.stdin,))):
            os.close(fd)


def _incoming() -> tuple[int, int]:
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    return ours, theirs
