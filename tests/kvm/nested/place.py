"""Place: where the runner keeps what it need not make again."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The checkout."""

REPORT = ROOT / "build/kvm.xml"
"""The report of the last run, in JUnit's XML."""

GUEST = "base"
"""Recipe of the ring's guests."""
GUEST_VARIABLE = "VMPOOL_TEST_IMAGE"
"""Names the image of the ring's guests where it is there already and none can be built."""


def cache() -> Path:
    """Return the directory that the rings share; images in it are a library's."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vmpool/tests"
