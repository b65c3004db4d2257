"""Kept: what earlier test runs made, lent to this one.

Runs that go on at the same time share the images, whose library locks what it is building, and get
snapshots of their own: a server that starts sweeps what is half made, and knows nothing of another.
Whoever uses the cache holds its lock together with the others; whoever is alone at the end prunes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import ImageError
from vmpool.image import Library, signature
from vmpool.trust import HostKey, Keyring

if TYPE_CHECKING:
    from collections.abc import Iterator

NEWEST = 8
"""Images, and snapshots, that are kept at most."""

LONGEST_SECONDS = 14 * 86400.0
"""How long one is kept that no run used."""

IMAGES = "images"
SNAPSHOTS = "snapshots"

KEY = "host-key"
"""What images and snapshots are signed with: a state directory that has them must have it too."""


@contextlib.contextmanager
def lent(cache: Path, state: Path, *names: str) -> Iterator[None]:
    """Have the directories `names` of a cache in a state directory for a block.

    What the block makes is kept.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits while another prunes
        _lend_key(cache, state)
        for name in names:
            (cache / name).mkdir(exist_ok=True)
            if name == SNAPSHOTS:
                (state / name).mkdir()
                _link_all(cache / name, state / name)
            else:
                (state / name).symlink_to(cache / name)
                _vouch(cache, Keyring.open(state))
        try:
            yield
        finally:
            if SNAPSHOTS in names:
                _link_all(state / SNAPSHOTS, cache / SNAPSHOTS)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                prune(cache)


def prune(cache: Path) -> None:
    """Remove what is old and not named, and what nobody finished; nobody uses the cache."""
    named = _names(cache / IMAGES)
    images = [entry for entry in _entries(cache / IMAGES) if len(entry.name) == 64]  # SHA-256
    for image in images:
        if image.name in named:
            os.utime(image)
    gone = {image.name for image in _outdated(images)}
    snapshots = _entries(cache / SNAPSHOTS)
    orphans = [one for one in snapshots if any(name in _manifest(one) for name in gone)]
    unfinished = [one for one in snapshots if one.name.startswith(".")]
    finished = [one for one in snapshots if not one.name.startswith(".")]
    for entry in {*_outdated(images), *orphans, *unfinished, *_outdated(finished)}:
        shutil.rmtree(entry, ignore_errors=True)


def _outdated(entries: list[Path]) -> list[Path]:
    newest_first = sorted(entries, key=lambda entry: entry.stat().st_mtime, reverse=True)
    oldest = time.time() - LONGEST_SECONDS
    return [
        entry
        for rank, entry in enumerate(newest_first)
        if rank >= NEWEST or entry.stat().st_mtime < oldest
    ]


def _link_all(source: Path, target: Path) -> None:
    """Give `target` all that is whole in `source`, without copying where that can be."""
    for entry in _entries(source):
        if entry.name.startswith(".") or (target / entry.name).exists():
            continue
        beside = target / f".partial-{uuid.uuid4().hex}"
        shutil.copytree(entry, beside, copy_function=_link)
        try:
            beside.rename(target / entry.name)
        except OSError as err:
            shutil.rmtree(beside)
            if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise


def _lend_key(cache: Path, state: Path) -> None:
    """Have a state directory sign as all others of this cache do."""
    with (cache / "lock.key").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that make one at the same time make two
        if not (cache / KEY).exists():
            HostKey.fresh().save(cache / KEY)
    shutil.copy2(cache / KEY, state / KEY)


def _vouch(cache: Path, keyring: Keyring) -> None:
    """Sign the images that no host of this cache has signed: it is believed in all that it has."""
    for image in Library(cache).list():
        try:
            signature.require(image, keyring)
        except ImageError:
            with tempfile.TemporaryDirectory(prefix=".signing-", dir=cache) as beside:
                signature.sign(image, keyring, at=Path(beside))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)


def _entries(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [entry for entry in directory.iterdir() if entry.is_dir() and not entry.is_symlink()]


def _names(images: Path) -> set[str]:
    names = images / "names"
    return {name.read_text() for name in names.iterdir()} if names.is_dir() else set()


def _manifest(snapshot: Path) -> str:
    try:
        return (snapshot / "manifest.json").read_text()
    except OSError:
        return ""
