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


STANDS = Command(argv=("/bin/sh", "-c", "echo still; read line"), user="root", cwd="/", stdin=True)
"""What stands still until it is let go."""


def stand(monkeypatch: pytest.MonkeyPatch, script: str = "") -> None:
    """Have guests run `script` where they were to freeze their file systems."""
    what = replace(STANDS, argv=("/bin/sh", "-c", script)) if script else STANDS
    monkeypatch.setattr(stillness, "_COMMAND", what)
