"""Snapshot: memory, device state, disk and manifest of a paused machine, immutable.

The directory of a published snapshot never changes; it is there whole or not at all. A snapshot
is written beside its place under a `.partial-` name, made durable, and renamed; whatever carries
that name when a host starts is the rest of a crash and is swept.

This module decides what a whole snapshot is and where it fits. It does not know how a hypervisor
writes or loads one. All of it blocks; call it from a thread where the loop must not wait.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from vmpool.delta import Delta
from vmpool.digest import digest
from vmpool.errors import ConflictError, DiskFullError, SnapshotError
from vmpool.model import MachineSpec, Processor, new_id

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = 2
"""Version of the manifest; a host refuses any other."""

PARTIAL = ".partial-"
"""What the name of a snapshot begins with while it is being written or removed."""

MANIFEST = "manifest.json"
PROOF = "signature.json"
MEMORY = "memory"
DEVICE_STATE = "device-state"
PAGES = "pages"
DISK = "disk"
_LAYER = "layer-"
LAYERS = f"{_LAYER}*"
"""What finds a checkpoint's layers of disk in its directory; in their order, once sorted."""

_MANIFEST_LIMIT_BYTES = 1 << 20


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one file of a snapshot must be.

    Attributes:
        digest: Of what the file holds, the same whether its zeros are stored or holes; not what
            `sha256sum` prints.
    """

    size_bytes: int
    digest: str


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """The template that a checkpoint is written against.

    Attributes:
        id: Of the template's snapshot. One that was made again has the same, and other memory.
        memory: Digest of the memory that the checkpoint's pages replace parts of.
    """

    id: str
    memory: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is.

    Attributes:
        image: Digest of the image that the machine was booted from.
        spec: What all clones share. Its `root` is absolute, or relative to the snapshot's
            directory, so that a whole state directory can be moved.
        processor: What the virtual CPUs were when they were saved; the guest's kernel looked once,
            as it booted, and uses it from then on.
        files: By name: every file of the snapshot but the manifest and its signature.
        created_ns: Unix time.
        base: What a checkpoint is written against; `None` for a template.
    """

    id: str
    image: str
    spec: MachineSpec
    processor: Processor
    files: dict[str, FileRecord]
    created_ns: int
    base: Base | None = None
    format: int = FORMAT


class _Header(msgspec.Struct):
    """The one field that every version of the manifest has."""

    format: int


_HEADERS = msgspec.json.Decoder(_Header)  # msgspec crashes when two threads are first to decode
_MANIFESTS = msgspec.json.Decoder(Manifest, dec_hook=lambda kind, value: kind(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A published snapshot: a directory and what its manifest says.

    Attributes:
        delta: Memory of a checkpoint that is not published, in place of its file.
        document: The manifest as it was read: what a signature is of.
    """

    directory: Path
    manifest: Manifest
    delta: Delta | None = None
    document: bytes = field(default=b"", repr=False, compare=False)

    @property
    def memory(self) -> Path:
        """A template's guest RAM as a raw file with holes, to be mapped privately."""
        return self.directory / MEMORY

    @property
    def device_state(self) -> Path:
        """The hypervisor's migration stream: devices, and of RAM what no file holds."""
        return self.directory / DEVICE_STATE

    @property
    def pages(self) -> Path:
        """A checkpoint's memory where it differs from its template's, a `delta` file."""
        return self.directory / PAGES

    @property
    def disk(self) -> Path | None:
        """A template's scratch disk as a raw file with holes, to be backed by, never written."""
        return self.directory / DISK if self.manifest.spec.disk_bytes else None

    @property
    def spec(self) -> MachineSpec:
        """What all clones share, with an absolute `root`."""
        spec = self.manifest.spec
        return replace(spec, root=Path(os.path.normpath(self.directory / spec.root)))

    @property
    def layers(self) -> tuple[Path, ...]:
        """A checkpoint's layers over its template's scratch disk, bottom first, never written."""
        names = sorted(name for name in self.manifest.files if name.startswith(_LAYER))
        return tuple(self.directory / name for name in names)

    @property
    def as_base(self) -> Base:
        """What a checkpoint of this template's clones is written against."""
        return Base(id=self.manifest.id, memory=self.manifest.files[MEMORY].digest)

    @property
    def has_memory(self) -> bool:
        """Whether a machine can go on from it; else it can only be booted on its disk."""
        return DEVICE_STATE in self.manifest.files

    def require_loadable_over(self, template: Snapshot) -> None:
        """Refuse a shell of another template, and a checkpoint that is a disk alone.

        Raises:
            SnapshotError: As `require_of`; `snapshot_unfit` also when it has no memory.
        """
        self.require_of(template)
        if not self.has_memory:
            raise SnapshotError(
                f"snapshot {self.manifest.id!r} is a disk: it has no memory to go on from",
                code="snapshot_unfit",
            )

    def require_of(self, template: Snapshot) -> None:
        """Refuse another template, or one that was made anew since.

        Raises:
            SnapshotError: This is neither `template` nor a checkpoint against it; code
                `snapshot_unfit`.
        """
        if self.manifest.base is None:
            if self.manifest.id == template.manifest.id:
                return
        elif self.manifest.base == template.as_base:
            return
        raise SnapshotError(
            f"snapshot {self.manifest.id!r} does not descend from {template.manifest.id!r} "
            "as it is now",
            code="snapshot_unfit",
        )

    def verify(self) -> None:
        """Read every file and compare it with its digest.

        Reads all that is stored of the memory file: for an import or the start of a host, not for a
        restore.

        Raises:
            SnapshotError: A file is missing or not what was saved; code `snapshot_damaged`.
        """
        self.check_sizes()
        for name in self.manifest.files:
            self.verify_file(name)

    def verify_file(self, name: str) -> None:
        """Read one file of the manifest and compare it with its digest.

        Raises:
            SnapshotError: It is not what was saved; code `snapshot_damaged`.
        """
        try:
            found = digest(self.directory / name)
        except OSError as err:
            raise _damaged(self.directory, f"{name!r}: {err.strerror}") from err
        if found != self.manifest.files[name].digest:
            raise _damaged(self.directory, f"{name!r} does not match its digest")

    def check_sizes(self) -> None:
        """Compare the size of every file with its record: cheap, and a mapping of a file that was
        cut short would kill the hypervisor with SIGBUS.

        Raises:
            SnapshotError: A file is missing or cut short; code `snapshot_damaged`.
        """
        for name, record in self.manifest.files.items():
            try:
                found = (self.directory / name).lstat()
            except OSError as err:
                raise _damaged(self.directory, f"{name!r}: {err.strerror}") from err
            if not stat.S_ISREG(found.st_mode) or found.st_size != record.size_bytes:
                raise _damaged(
                    self.directory,
                    f"{name!r} has {found.st_size} bytes, not {record.size_bytes}",
                )

    def remove(self) -> None:
        """Remove the snapshot, as `discard`. *Idempotent.*"""
        discard(self.directory)


class Publish(Protocol):
    """Gives the files of a snapshot their name, as `publish` does."""

    def __call__(self, partial: Path, manifest: Manifest, parent: Path, /) -> Snapshot:
        """Publish, or leave nothing."""


def layer_name(number: int) -> str:
    """Return the name of a checkpoint's layer; 0 is the lowest."""
    return f"{_LAYER}{number:02d}"


def begin(parent: Path) -> Path:
    """Create an empty directory among the snapshots in `parent` to write one's files into.

    Raises:
        DiskFullError: The disk is full.
        SnapshotError: `snapshot_unsaved`; it cannot be created.
    """
    partial = parent / f"{PARTIAL}{new_id()}"
    try:
        partial.mkdir(mode=0o700)
    except OSError as err:
        raise _publishing_failed(partial, err) from err
    return partial


def describe(
    partial: Path,
    *,
    id: str,
    image: str,
    spec: MachineSpec,
    processor: Processor,
    created_ns: int,
    base: Base | None = None,
) -> Manifest:
    """Return the manifest of the files in `partial`; reads what they store for their digests."""
    files = {
        path.name: FileRecord(size_bytes=path.stat().st_size, digest=digest(path))
        for path in sorted(partial.iterdir())
    }
    return Manifest(
        id=id,
        image=image,
        spec=spec,
        processor=processor,
        files=files,
        created_ns=created_ns,
        base=base,
    )


def unsigned(_: bytes) -> bytes:
    """Return no signature; a host refuses what has none."""
    return b""


def publish(
    partial: Path,
    manifest: Manifest,
    parent: Path,
    *,
    sign: Callable[[bytes], bytes] = unsigned,
) -> Snapshot:
    """Make the files in `partial` durable and give them their name, all at once.

    Args:
        partial: From `begin(parent)`, filled; gone afterwards, whatever happened.
        manifest: Written beside the files; its id becomes the snapshot's name.
        parent: Directory of the published snapshots.
        sign: Returns the signature of the manifest's bytes, which is kept beside it.

    Raises:
        ConflictError: There is a snapshot of that name; code `snapshot_exists`.
        DiskFullError: The disk is full; nothing was published.
        SnapshotError: Nothing was published.
    """
    final, document = parent / manifest.id, _encode(manifest)
    proof = sign(document)
    try:
        (partial / MANIFEST).write_bytes(document)
        if proof:
            (partial / PROOF).write_bytes(proof)
        for path in partial.iterdir():
            path.chmod(0o444)
            sync(path)
        sync(partial)
        partial.rename(final)
        sync(parent)
    except OSError as err:
        shutil.rmtree(partial, ignore_errors=True)
        raise _publishing_failed(final, err) from err
    return Snapshot(directory=final, manifest=manifest, document=document)


def load(directory: Path) -> Snapshot:
    """Read the snapshot in `directory`; its manifest and the sizes of its files are checked.

    Who signed it is not: what is to run is loaded by `trust`.

    Raises:
        SnapshotError: There is none (`snapshot_missing`), it is damaged (`snapshot_damaged`), or
            another vmpool wrote it (`snapshot_unfit`).
    """
    try:
        with (directory / MANIFEST).open("rb") as file:
            data = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError as err:
        raise SnapshotError(
            f"there is no snapshot {directory.name!r}", code="snapshot_missing"
        ) from err
    except OSError as err:
        raise _damaged(directory, f"{MANIFEST!r}: {err.strerror}") from err
    manifest = _decode(directory, data)
    found = Snapshot(directory=directory, manifest=manifest, document=data)
    found.check_sizes()
    return found


def discard(directory: Path) -> None:
    """Remove a snapshot in whatever state it is, without reading it. *Idempotent.*

    Hypervisors that run from it keep its files until they end. A crash leaves a `.partial-`
    directory for `sweep`, never half a snapshot.
    """
    doomed = directory.with_name(f"{PARTIAL}{new_id()}")
    try:
        directory.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed)


def sweep(parent: Path) -> tuple[Path, ...]:
    """Remove what crashes left among the snapshots in `parent`; return what it was.

    Only while nobody else writes or removes a snapshot there: when a host starts.
    """
    left = tuple(sorted(parent.glob(f"{PARTIAL}*")))
    for directory in left:
        shutil.rmtree(directory)
    return left


def _encode(manifest: Manifest) -> bytes:
    # The one foreign type is Path; a set is written sorted.
    data = msgspec.json.encode(manifest, enc_hook=str, order="deterministic")
    return msgspec.json.format(data, indent=2) + b"\n"


def _decode(directory: Path, data: bytes) -> Manifest:
    if len(data) > _MANIFEST_LIMIT_BYTES:
        raise _damaged(directory, f"{MANIFEST!r} is longer than {_MANIFEST_LIMIT_BYTES} bytes")
    try:
        version = _HEADERS.decode(data).format
        if version != FORMAT:
            raise SnapshotError(
                f"snapshot {directory.name!r} has format {version}, this vmpool reads {FORMAT}",
                code="snapshot_unfit",
                remedy="upgrade vmpool" if version > FORMAT else "make the template again",
            )
        manifest = _MANIFESTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise _damaged(directory, f"{MANIFEST!r}: {err}") from err
    if any("/" in name or name in {".", "..", "", PROOF} for name in manifest.files):
        raise _damaged(directory, f"{MANIFEST!r} names a file outside the snapshot")
    required = _required(manifest)
    if missing := required - manifest.files.keys():
        raise _damaged(directory, f"{MANIFEST!r} does not list {', '.join(sorted(missing))}")
    return manifest


def _required(manifest: Manifest) -> set[str]:
    if manifest.base is not None:
        disk = {layer_name(0)} if manifest.spec.disk_bytes else set()
        alone = disk and not {DEVICE_STATE, PAGES} & manifest.files.keys()
        return disk if alone else {DEVICE_STATE, PAGES} | disk
    return {MEMORY, DEVICE_STATE} | ({DISK} if manifest.spec.disk_bytes else set())


def wrong_files(manifest: Manifest) -> set[str]:
    """Return the files that a snapshot of its kind must have and has not, and those that none has.

    `load` asks for no more than it needs; this is for manifests that a stranger wrote.
    """
    names, required = manifest.files.keys(), _required(manifest)
    layers: set[str] = set()
    if manifest.base is not None and manifest.spec.disk_bytes:
        layers = {layer_name(number) for number in range(min(len(names), 100))}
    return (required - names) | (names - required - layers)


def _damaged(directory: Path, what: str) -> SnapshotError:
    return SnapshotError(
        f"snapshot {directory.name!r} is damaged: {what}",
        code="snapshot_damaged",
        remedy="remove it and make the template again",
    )


def _publishing_failed(final: Path, err: OSError) -> ConflictError | DiskFullError | SnapshotError:
    if err.errno in {errno.ENOTEMPTY, errno.EEXIST}:
        return ConflictError(f"there is a snapshot {final.name!r}", code="snapshot_exists")
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"no space to publish the snapshot {final.name!r}")
    return SnapshotError(
        f"cannot publish snapshot {final.name!r}: {err.strerror}", code="snapshot_unsaved"
    )


def sync(path: Path) -> None:
    """Make a file, or a directory's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
