"""Small disk: a file system that is quickly full."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def mounted(directory: Path, *options: str) -> Iterator[None]:
    """Have a small file system of memory on a directory."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk that is small enough to fill")
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", directory], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
