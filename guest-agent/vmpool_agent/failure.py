"""Failure: an exception of the code that runs, as the host is told of it."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from vmpool_agent import display

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_LIMIT = 256
_TEXT_LIMIT = 32 * 1024
"""Characters of an exception's text, each 12 bytes of JSON at worst: both fit one message."""


def describe(err: BaseException, is_ours: Callable[[str], bool]) -> dict[str, Any]:
    """Return an exception's name, value and traceback.

    Args:
        is_ours: Whether a file's frames are those that run the code, which its author has no
            interest in.
    """
    told = traceback.TracebackException(type(err), err, err.__traceback__)
    theirs = [frame for frame in told.stack if not is_ours(frame.filename)]
    told.stack = traceback.StackSummary.from_list(theirs)
    if not theirs:
        told.stack = None  # type: ignore[assignment] # what could not be compiled ran nowhere
    try:
        value = str(err)
    except Exception:  # noqa: BLE001 it is the exception's own code
        value = "<its str raised>"
    text = "".join(told.format())
    return {
        "name": display.clean(type(err).__name__[:_NAME_LIMIT]),
        "value": display.clean(value[:_TEXT_LIMIT]),
        "traceback": display.clean(text[-_TEXT_LIMIT:]),
    }
