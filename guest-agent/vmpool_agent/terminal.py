"""Terminal: the pseudo-terminal of a program, its size and its shortcuts to the kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from typing import TypeGuard

    from vmpool_agent.system import Account

KIND = "xterm-256color"
"""What a program takes its terminal for, unless it is told."""

_MOST = 0xFFFF  # struct winsize holds unsigned shorts, asm-generic/termios.h
_WINSIZE = struct.Struct("HHHH")  # rows, columns, and two that nobody uses


class Size(NamedTuple):
    """A terminal's size in characters."""

    rows: int
    cols: int


def read_size(value: object) -> Size:
    """Return the size that a message asks for.

    Raises:
        OperationError: It asks for none.
    """
    if isinstance(value, dict):
        rows, cols = value.get("rows"), value.get("cols")
        if _is_count(rows) and _is_count(cols):
            return Size(rows, cols)
    raise OperationError("bad_request", f"rows and cols are numbers from 1 to {_MOST}")


def open_pair(size: Size, account: Account) -> tuple[int, int]:
    """Return the agent's end of a new terminal, which never blocks, and the program's.

    Raises:
        OSError: There is none left.
    """
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    set_size(ours, size)
    # Programs open their terminal again by its name; an agent that is not root has no say.
    with contextlib.suppress(PermissionError):
        os.fchown(theirs, account.uid, -1)
    return ours, theirs


def set_size(fd: int, size: Size) -> None:
    """Set a terminal's size, at either end; who runs in its foreground has SIGWINCH."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.cols, 0, 0))


def take_control() -> None:
    """Make descriptor 0 the controlling terminal of this session; from its leader, the child."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def as_members(size: Size | None) -> dict[str, Any] | None:
    """Return a size as a message has it."""
    return None if size is None else {"rows": size.rows, "cols": size.cols}


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST
