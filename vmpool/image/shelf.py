"""Shelf: files and directories published under a name, whole or not at all.

What is published was written beside, made durable and renamed; what comes second under a name
replaces a file and yields to an image's directory, which is never changed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from vmpool.image.manifest import sync
from vmpool.image.work import erase, full_disk_told

if TYPE_CHECKING:
    from pathlib import Path


def publish_file(source: Path, target: Path) -> None:
    """Give a finished file its name; what had that name is replaced.

    Raises:
        DiskFullError: The disk is full; `target` is as it was.
    """
    with full_disk_told(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        add_file(source, target)


def add_file(source: Path, target: Path) -> None:
    """Give a finished file its name in a directory that is there; what had that name is replaced.

    Raises:
        OSError: It could not be; `target` is as it was. Of a directory that is gone it makes none.
    """
    sync(source)
    source.replace(target)
    sync(target.parent)


def publish_text(text: str, target: Path, *, at: Path) -> None:
    """Write a small file under its name; `at` is a directory on the same file system.

    Raises:
        DiskFullError: The disk is full; `target` is as it was.
    """
    with full_disk_told(target.parent):
        source = at / target.name
        source.write_text(text, encoding="utf-8")
        publish_file(source, target)


def publish_directory(source: Path, target: Path) -> bool:
    """Give a finished directory its name; return whether: one of that name may be there and stays.

    That one should be the same; whether it is, others see to.

    Raises:
        DiskFullError: The disk is full; nothing was published.
    """
    with full_disk_told(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            path.chmod(0o444)
            sync(path)
        sync(source)
        published = True
        try:
            source.rename(target)
        except OSError as err:
            if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            published = False
            erase(source)
        sync(target.parent)
    return published


def replace_directory(source: Path, target: Path, *, at: Path) -> None:
    """Give a finished directory its name; what had that name goes to `at`, to be removed there.

    Raises:
        DiskFullError: The disk is full; nothing was published.
    """
    if target.exists():
        target.rename(at / f"old-{target.name}")
    publish_directory(source, target)
