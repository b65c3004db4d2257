"""Stand-ins: programs of the host that take QEMU's place within all walls that this host has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu import detection
from vmpool.engine.qemu.jail.contents import Contents

if TYPE_CHECKING:
    from vmpool.engine.qemu.isolation import Isolation

PYTHON = "/usr/bin/python3"

_PROGRAMS = Contents(code=(Path("/usr"), Path("/bin"), Path("/lib"), Path("/lib64")))


def isolated() -> Isolation:
    """Return isolation for any program that the host has installed."""
    return detection.around(_PROGRAMS)
