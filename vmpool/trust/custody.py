"""Custody: snapshots published under the host's signature, and checked before they are used.

A snapshot is believed when somebody signed its manifest whom this host trusts, and when each of its
files has the digest that the manifest says. Digests take a second a GiB, so a file that was found
right is not read again while its inode says that nobody has changed it. What that cannot show is a
disk that returns something else than was written: a restart reads everything anew.

All of it blocks; call it from a thread where the loop must not wait, but for `is_intact`.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from vmpool import snapshot
from vmpool.errors import DiskFullError, SnapshotError
from vmpool.trust.keys import PROOF_LIMIT_BYTES, Purpose

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from vmpool.snapshot import Manifest, Snapshot
    from vmpool.trust.keyring import Keyring

_Seal = tuple[int, int, int, int, int]
"""What changes with a file: device, inode, size, and when its content and its inode last did."""

Seals = dict["Path", _Seal | None]
"""Files as they were at one moment."""


class Custody:
    """The snapshots of a host, in whatever directory; safe to use from several threads.

    Args:
        keyring: Whom to believe, and what to sign with.

    Attributes:
        keyring: As given.
    """

    def __init__(self, keyring: Keyring) -> None:
        self.keyring = keyring
        self._seals: dict[Path, _Seal] = {}
        self._lock = threading.Lock()

    def publish(self, partial: Path, manifest: Manifest, parent: Path) -> Snapshot:
        """Publish a snapshot as `snapshot.publish`, signed by this host.

        Its files must have just been described or verified: they count as checked.

        Raises:
            ConflictError, DiskFullError, SnapshotError: As `snapshot.publish`.
        """
        published = snapshot.publish(partial, manifest, parent, sign=self._signed)
        self.note(self.seals(published.directory / name for name in manifest.files))
        return published

    def load(self, directory: Path) -> Snapshot:
        """Read a snapshot that this host trusts; of its files only the sizes are checked.

        Raises:
            SnapshotError: `snapshot_untrusted`, or as `snapshot.load`.
        """
        found = snapshot.load(directory)
        what = f"snapshot {directory.name!r}"
        self.keyring.require(Purpose.SNAPSHOT, found.document, _read_proof(directory), of=what)
        if found.manifest.id != directory.name:
            raise SnapshotError(
                f"snapshot {directory.name!r} is damaged: its manifest is not its own",
                code="snapshot_damaged",
            )
        return found

    def load_verified(self, directory: Path) -> Snapshot:
        """Read a snapshot that this host trusts, and check all of it that is not known yet.

        Raises:
            SnapshotError: `snapshot_untrusted`, or `snapshot_damaged`, or as `snapshot.load`.
        """
        found = self.load(directory)
        self.verify(found)
        return found

    def verify(self, found: Snapshot) -> None:
        """Compare every file that was not found right, or has changed since, with its digest.

        Raises:
            SnapshotError: `snapshot_damaged`.
        """
        found.check_sizes()
        for name in found.manifest.files:
            path = found.directory / name
            before = _seal_of(path)
            if self._is_known(path, before):
                continue
            found.verify_file(name)
            # Written to meanwhile, it is read again the next time.
            self._remember(path, before)

    def adopt(self, directories: Iterable[Path]) -> list[str]:
        """Sign what this host made before it had a key; return what was not as it had been saved.

        *Idempotent.* What has a signature keeps it, whosever it is.

        Raises:
            DiskFullError, SnapshotError: A signature could not be written.
        """
        refused = []
        for directory in directories:
            try:
                found = snapshot.load(directory)
                if _read_proof(directory):
                    continue
                self.verify(found)
            except SnapshotError as err:
                refused.append(err.message)
            else:
                _write_proof(directory, self._signed(found.document))
        return refused

    def seals(self, paths: Iterable[Path]) -> Seals:
        """Return files as they are now: before they are checked, to be noted behind that."""
        return {path: _seal_of(path) for path in paths}

    def note(self, seals: Seals) -> None:
        """Take files as they were for what they must be: they were checked since."""
        for path, seal in seals.items():
            self._remember(path, seal)

    def is_intact(self, paths: Iterable[Path]) -> bool:
        """Tell whether files were found right and nobody has changed them since; microseconds."""
        return all(self._is_known(path, _seal_of(path)) for path in paths)

    def forget(self, directory: Path) -> None:
        """Know nothing more of what was in a directory that is gone."""
        with self._lock:
            for path in [each for each in self._seals if each.parent == directory]:
                del self._seals[path]

    def _signed(self, document: bytes) -> bytes:
        return self.keyring.own.sign(Purpose.SNAPSHOT, document)

    def _is_known(self, path: Path, seal: _Seal | None) -> bool:
        return seal is not None and self._seals.get(path) == seal

    def _remember(self, path: Path, seal: _Seal | None) -> None:
        with self._lock:
            if seal is None:
                self._seals.pop(path, None)
            else:
                self._seals[path] = seal


def files_of(found: Snapshot) -> Collection[Path]:
    """Return what a machine that runs from a snapshot reads."""
    return [found.directory / name for name in found.manifest.files]


def _seal_of(path: Path) -> _Seal | None:
    try:
        now = path.lstat()
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _read_proof(directory: Path) -> bytes:
    """Return what lies beside a manifest as its signature, empty for nothing."""
    try:
        with (directory / snapshot.PROOF).open("rb") as file:
            return file.read(PROOF_LIMIT_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as err:
        raise SnapshotError(
            f"the signature of snapshot {directory.name!r} cannot be read: {err.strerror}",
            code="snapshot_damaged",
        ) from err


def _write_proof(directory: Path, proof: bytes) -> None:
    """Lay a signature beside a manifest, whole or not at all. *Idempotent.*"""
    beside = directory / f"{snapshot.PARTIAL}{snapshot.PROOF}"
    try:
        beside.write_bytes(proof)
        beside.chmod(0o444)
        snapshot.sync(beside)
        beside.replace(directory / snapshot.PROOF)
        snapshot.sync(directory)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("no space for the signature of a snapshot") from err
        raise SnapshotError(
            f"cannot sign snapshot {directory.name!r}: {err.strerror}", code="snapshot_unsaved"
        ) from err
