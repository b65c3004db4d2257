"""Archive: the guest agent as one file, the same bytes from the same sources."""

from __future__ import annotations

import io
import zipfile
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
_MODE = 0o644
_MAIN = b"from vmpool_agent.__main__ import main\n\nmain()\n"


def archive_bytes() -> bytes:
    """Return a zip application that holds the agent; `python3 -I FILE` runs it."""
    agent = resources.files("vmpool_agent")
    sources = {
        f"vmpool_agent/{inside}{entry.name}": entry.read_bytes()
        for inside in ("", "seeded/")
        for entry in agent.joinpath(inside).iterdir()
        if entry.name.endswith(".py")
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, source in sorted({**sources, "__main__.py": _MAIN}.items()):
            member = zipfile.ZipInfo(name, _EPOCH)
            member.create_system = 3  # Unix, whatever this is
            member.external_attr = _MODE << 16
            file.writestr(member, source)
    return out.getvalue()


def archive(path: Path) -> None:
    """Write the agent's archive to `path`, over what is there."""
    path.write_bytes(archive_bytes())
