"""Wheels: what the ring imports, for the Python of the host image, as a layer of its recipe.

Resolved by pip once for each list of requirements: the host in the machine has no network.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

PYTHON = "3.13"
"""Of Debian 13, which the host image is made of."""

_SITE = f"files/opt/ring/lib/python{PYTHON}/site-packages"
_FORMAT = "wheels 1"
"""Part of the layer's name: raise the number when the same list gives another layer."""


def read_requirements(project: bytes) -> tuple[str, ...]:
    """Return what vmpool and its tests need, as `pyproject.toml` says it."""
    table = tomllib.loads(project.decode())["project"]
    return tuple(sorted([*table["dependencies"], *table["optional-dependencies"]["tests"]]))


def name_of(requirements: tuple[str, ...]) -> str:
    """Return the name of the layer that holds `requirements`."""
    return hashlib.sha256("\n".join((_FORMAT, PYTHON, *requirements)).encode()).hexdigest()[:16]


def layer(requirements: tuple[str, ...], *, kept: Path, work: Path) -> Path:
    """Return a directory of a recipe with the packages installed below its `files`.

    Blocks, for as long as pip downloads, unless the layer is kept from before.

    Args:
        kept: Where layers are.
        work: A directory on the same file system, which the caller removes.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    place = kept / name_of(requirements)
    if place.is_dir():
        return place
    made = work / place.name
    argv = [
        *(sys.executable, "-m", "pip", "install"),
        *("--quiet", "--quiet", "--disable-pip-version-check", "--no-compile"),
        *("--target", os.fspath(made / _SITE)),
        *("--python-version", PYTHON, "--only-binary=:all:"),
        *requirements,
    ]
    subprocess.run(argv, check=True)
    kept.mkdir(parents=True, exist_ok=True)
    made.rename(place)
    return place
