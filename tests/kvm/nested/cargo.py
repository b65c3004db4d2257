"""Cargo: what the host in the machine finds on its disk beside its image.

The disk is the upper layer of the host's root: the checkout as it is now, uncommitted files
included, vmpool's metadata as an install would leave it, the guest's image where a library keeps
it, and what pytest is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

from tests.kvm.nested.place import ROOT
from tests.kvm.nested.wheels import PYTHON
from vmpool.model import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmpool.image import Image

_UPPER = "root"  # where the images' init has the upper layer on a scratch disk
_CHECKOUT = "srv/vmpool"
_ARGUMENTS = "srv/arguments.json"
_IMAGES = "root/.cache/vmpool/tests/images"
_SITE = f"opt/ring/lib/python{PYTHON}/site-packages"
_DISK_BYTES = 4 * GIB
_INODES = 65536


def checkout_files(root: Path = ROOT) -> list[Path]:
    """Return the files of the checkout, relative to it: all that git tracks or would."""
    argv = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, check=True, stdout=PIPE, text=True, cwd=root).stdout
    paths = sorted({Path(name) for name in listed.split("\0") if name})
    return [path for path in paths if (root / path).is_symlink() or (root / path).is_file()]


def pack(guest: Image, arguments: Sequence[str], *, at: Path) -> Path:
    """Write the disk into the directory `at` and return it. Blocks for some seconds.

    Args:
        guest: On the same file system as `at`.
        arguments: For pytest.
        at: The caller's to remove.

    Raises:
        subprocess.CalledProcessError: git or mkfs.ext4 failed.
    """
    upper = at / "cargo" / _UPPER
    for path in checkout_files():
        _copy(ROOT / path, upper / _CHECKOUT / path)
    _write(upper / _ARGUMENTS, json.dumps(list(arguments)))
    _write(upper / _IMAGES / "names" / guest.name, guest.digest)
    for file in guest.directory.iterdir():
        kept = upper / _IMAGES / guest.digest / file.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, kept)
    _write_metadata(upper / _SITE)
    return _format(at)


def _write_metadata(site: Path) -> None:
    """Write what `importlib.metadata` says of vmpool here."""
    installed = distribution("vmpool")
    for name in ("METADATA", "entry_points.txt"):
        text = installed.read_text(name)
        if text is not None:
            _write(site / f"vmpool-{installed.version}.dist-info" / name, text)


def _format(at: Path) -> Path:
    disk = at / "cargo.ext4"
    with disk.open("xb") as file:
        file.truncate(_DISK_BYTES)
    argv = [
        *("mkfs.ext4", "-q", "-F"),
        *("-N", str(_INODES)),
        # The file is a hole: its inode tables are zero, neither mkfs nor the guest need zero them.
        *("-E", "root_owner=0:0,assume_storage_prezeroed=1,nodiscard"),
        *("-O", "^has_journal,^resize_inode"),
        *("-m", "0"),
        *("-d", os.fspath(at / "cargo")),
        os.fspath(disk),
    ]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    subprocess.run(argv, check=True, env={**os.environ, "PATH": path})
    return disk


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
