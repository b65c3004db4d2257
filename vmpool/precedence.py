"""Precedence: this process goes before its guests, so that requests are answered while those run.

To the kernel a hypervisor is as good as the server, and there are many: without this a server gets
one share of many just when it has woken a crowd of guests. It knows neither. How both stand to the
other programs of the host is the operator's to say, by how nice the server is started: guests are
as nice as that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

STEP = 5
"""By how much less nice to be: three times the share of a process that is as usual (sched(7))."""

LEAST = -20  # setpriority(2)

USUAL = os.getpriority(os.PRIO_PROCESS, 0)
"""How nice this process was started. Asked now: the kernel keeps what is, not what was."""

# Where the kernel groups processes by their session, priorities count in a session alone, and this
# one's is told apart here. A hypervisor has a session of its own.
_SESSION = Path("/proc/self/autogroup")


@contextlib.contextmanager
def before_guests() -> Iterator[None]:
    """Go first for the time of a block, with all threads, where this process may.

    A program that is started in the block goes first, too, unless its thread calls `give_up`.
    """
    session = _session()
    try:
        _set(_before(USUAL))
        if session is not None:
            _SESSION.write_text(str(_before(session)))
    except OSError as err:
        log.info("this process may not go before its guests: %s", err.strerror)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _set(USUAL)
            if session is not None:
                _SESSION.write_text(str(session))


def give_up() -> None:
    """Have the calling thread, and what it starts from here on, go first no longer."""
    if os.getpriority(os.PRIO_PROCESS, 0) < USUAL:  # Linux: of the thread
        os.setpriority(os.PRIO_PROCESS, 0, USUAL)


def _before(usual: int) -> int:
    return max(usual - STEP, LEAST)


def _set(nice: int) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def _session() -> int | None:
    """Return how nice this session is; `None` where the kernel knows no such thing."""
    try:
        found = re.search(r"nice (-?\d+)", _SESSION.read_text())
    except OSError:
        return None
    return None if found is None else int(found[1])
