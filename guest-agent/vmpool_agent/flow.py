"""Flow: one channel's accounts, kept by `wire`. It knows no frame and decides nothing."""

from __future__ import annotations


class Flow:
    """The windows of both directions, and a message being assembled.

    Args:
        window: What either side may send at first.
    """

    __slots__ = (
        "finished_in", "finished_out", "owed", "parts", "receive_window",
        "send_window", "waiting", "withheld",
    )  # fmt: skip

    def __init__(self, window: int) -> None:
        self.send_window = window
        self.receive_window = window
        self.owed = 0  # consumed, and not yet given back
        self.withheld = 0  # cost of assembled parts that must wait for an earlier message
        self.waiting = 0  # messages that the owner has not consumed
        self.parts = bytearray()
        self.finished_in = False
        self.finished_out = False
