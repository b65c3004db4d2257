"""Standing: how a guest that is a process of this machine holds its disk still, for it has none.

Without it such a guest would do with this machine what a guest does with itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool import stillness
from vmpool.model import Command

if TYPE_CHECKING:
    import pytest


def stand(monkeypatch: pytest.MonkeyPatch, script: str = "echo still; read line") -> None:
    """Have guests run `script` where they were to freeze their file systems."""
    what = Command(argv=("/bin/sh", "-c", script), user="root", cwd="/", stdin=True)
    monkeypatch.setattr(stillness, "_COMMAND", what)
