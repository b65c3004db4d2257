"""Standing: how a guest that is a process of this machine holds its disk still, for it has none.

Without it such a guest would do with this machine what a guest does with itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmpool import stillness
from vmpool.model import Command

if TYPE_CHECKING:
    import pytest


SAYS = "echo still; read line && echo again; read line"
STANDS = Command(argv=("/bin/sh", "-c", SAYS), user="root", cwd="/", stdin=True)
"""What stands still until it is let go."""

THAWS = replace(STANDS, argv=("/bin/true",), stdin=False)
"""What lets go of a disk that nothing holds."""


def stand(monkeypatch: pytest.MonkeyPatch, script: str = "", *, thaw: str = "") -> None:
    """Have guests run `script` where they were to freeze their file systems.

    Args:
        thaw: A script, run where they were to unfreeze what a killed process froze.
    """
    what = replace(STANDS, argv=("/bin/sh", "-c", script)) if script else STANDS
    monkeypatch.setattr(stillness, "_COMMAND", what)
    thaws = replace(THAWS, argv=("/bin/sh", "-c", thaw)) if thaw else THAWS
    monkeypatch.setattr(stillness, "_THAW", thaws)
