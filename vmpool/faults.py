"""Faults: named places where a test has the server die, as a crash would.

Each stands between two steps that a crash may come between. Off unless the environment names one;
what a server owes to whoever survives it is proved by starting the next one after each.
"""

from __future__ import annotations

import os
import signal
from typing import Final

VARIABLE: Final = "VMPOOL_FAULT"
"""Names the place."""

_armed = os.environ.get(VARIABLE, "")


def reach(place: str) -> None:
    """End this process with SIGKILL when `place` is the one that was named."""
    if place == _armed:
        os.kill(os.getpid(), signal.SIGKILL)
