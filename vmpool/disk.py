"""Disk: the scratch disk of a template and the overlays that its clones write to.

A scratch disk is a sparse raw file with an empty ext4. A clone's overlay is an empty qcow2 file
that names no backing file: the hypervisor is told on its command line what lies beneath, so that
nothing in a file that a guest's hypervisor may write leads to a path on the host.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from typing import TYPE_CHECKING

from vmpool.errors import DiskFullError, HostError, InfrastructureError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLUSTER_BITS = 16
CLUSTER_BYTES = 1 << CLUSTER_BITS
OVERLAY_LIMIT_BYTES = CLUSTER_BYTES // 8 * (CLUSTER_BYTES // 8 * CLUSTER_BYTES)
"""What one cluster of L1 entries can map: 4 TiB."""

_MKFS_TIMEOUT = 60.0
# One fixed UUID for every scratch disk: nobody mounts two at once, and equal images stay equal.
_UUID = "76d90a1b-6a6e-4f0c-9d5c-5d1f5c0b9c01"

# docs/interop/qcow2.rst, "Header": version 3, big-endian, 104 bytes.
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
HEADER_BYTES = _HEADER.size
# Offsets of the clusters that an empty overlay consists of; the header's is 0.
_REFCOUNT_TABLE, _REFCOUNT_BLOCK, _L1_TABLE, _END = (CLUSTER_BYTES * n for n in (1, 2, 3, 4))

# docs/interop/qcow2.rst, "L1 table" and "L2 table"
_TABLE_ENTRIES = CLUSTER_BYTES // 8
_PLACE = (1 << 56) - (1 << 9)
_ZERO = 1
_PACKED = 1 << 62


def write_overlay(descriptor: int, size_bytes: int) -> None:
    """Make an empty file an empty qcow2 overlay: header, refcount table, refcount block.

    The L1 table is a hole: no cluster is allocated, every read falls through to what the
    hypervisor attaches as backing. A hundred times faster than starting `qemu-img`.

    Args:
        descriptor: Open for writing on an empty regular file; stays open.
        size_bytes: What the guest sees, a multiple of 512, as the disk beneath.

    Raises:
        DiskFullError: The disk is full.
        InfrastructureError: The file cannot be written.
    """
    if size_bytes % 512 or not 0 < size_bytes <= OVERLAY_LIMIT_BYTES:
        raise ValueError(f"no overlay can have {size_bytes} bytes")
    try:
        for offset, region in _regions(size_bytes):
            os.pwrite(descriptor, region, offset)
        os.ftruncate(descriptor, _END)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("no space for a disk overlay") from err
        raise InfrastructureError(f"cannot write a disk overlay: {err.strerror}") from err


def _regions(size_bytes: int) -> tuple[tuple[int, bytes], ...]:
    used = _END // CLUSTER_BYTES
    return (
        (0, _header(size_bytes)),
        (_REFCOUNT_TABLE, struct.pack(">Q", _REFCOUNT_BLOCK)),
        (_REFCOUNT_BLOCK, struct.pack(f">{used}H", *[1] * used)),
    )


def _header(size_bytes: int) -> bytes:
    mapped_by_one_l1_entry = CLUSTER_BYTES * (CLUSTER_BYTES // 8)
    return _HEADER.pack(
        b"QFI\xfb",
        3,  # version
        0,  # offset of the backing file's name: none
        0,  # its length
        CLUSTER_BITS,
        size_bytes,
        0,  # encryption
        -(-size_bytes // mapped_by_one_l1_entry),
        _L1_TABLE,
        _REFCOUNT_TABLE,
        1,  # clusters of the refcount table
        0,  # internal snapshots
        0,  # their offset
        0,  # incompatible features
        0,  # compatible features
        0,  # autoclear features
        4,  # refcounts of 1 << 4 bits
        _HEADER.size,
    )


def require_plain(header: bytes, size_bytes: int) -> None:
    """Refuse a frozen overlay that leads elsewhere: its hypervisor may have been a hostile one.

    Args:
        header: The first `HEADER_BYTES` of the file.
        size_bytes: What the guest must see.

    Raises:
        InfrastructureError: It names another file, or is none of ours.
    """
    if len(header) == HEADER_BYTES:
        magic, version, _, backing_length, bits, size, encryption, *rest = _HEADER.unpack(header)
        snapshots, incompatible = rest[4], rest[6]
        # A merge leaves a name of no length, wherever that is.
        found = (magic, version, backing_length, bits, size, encryption)
        wanted = (b"QFI\xfb", 3, 0, CLUSTER_BITS, size_bytes, 0)
        if found == wanted and snapshots == incompatible == 0:
            return
    raise InfrastructureError("a disk overlay is not what was made")


def clusters(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int | None]]:
    """Yield what an overlay holds itself: offset in the disk, and in the file or `None` for zeros.

    In the order of the disk, each place once. The file is believed no further than its header and
    its tables lead within it. Blocks.

    Raises:
        InfrastructureError: It names another file, is packed, or is none of ours.
    """
    header = os.pread(descriptor, HEADER_BYTES, 0)
    require_plain(header, size_bytes)
    _, _, _, _, _, _, _, l1_entries, l1_offset, *_ = _HEADER.unpack(header)
    mapped = CLUSTER_BYTES * _TABLE_ENTRIES
    if l1_entries > _TABLE_ENTRIES:
        raise InfrastructureError("a disk overlay is not what was made")
    for first, table in enumerate(_table(descriptor, l1_offset, l1_entries)):
        if not table & _PLACE:
            continue
        entries = _table(descriptor, table & _PLACE, _TABLE_ENTRIES)
        for second, entry in enumerate(entries):
            place = first * mapped + second * CLUSTER_BYTES
            if entry & _PACKED:
                raise InfrastructureError("a disk overlay is packed, which none of ours is")
            if place >= size_bytes or not entry & (_PLACE | _ZERO):
                continue
            yield place, None if entry & _ZERO else entry & _PLACE


def _table(descriptor: int, offset: int, entries: int) -> tuple[int, ...]:
    """Return a table of offsets; what lies beyond the file's end points nowhere."""
    data = os.pread(descriptor, entries * 8, offset)
    return struct.unpack(f">{entries}Q", data.ljust(entries * 8, b"\0"))


async def create_scratch(path: Path, size_bytes: int) -> None:
    """Create a sparse raw file with an empty ext4 at `path`; a few milliseconds for any size.

    Without a journal: a scratch disk never outlives its machine, it is snapshotted or dropped.

    Raises:
        InvalidRequestError: No disk here can be that large; code `machine_too_large`.
        HostError: `mkfs.ext4` is missing or failed.
        DiskFullError: The disk is full.
    """
    if size_bytes > OVERLAY_LIMIT_BYTES:
        raise _too_large(size_bytes, f"an overlay has at most {OVERLAY_LIMIT_BYTES}")
    with path.open("xb") as file:
        try:
            file.truncate(size_bytes)
        except OSError as err:
            raise _too_large(size_bytes, err.strerror or "") from err
    argv = [
        *("mkfs.ext4", "-q", "-F"),
        *("-U", _UUID),
        # The file is a hole: its inode tables are zero, neither mkfs nor the guest need zero them.
        *("-E", f"hash_seed={_UUID},root_owner=0:0,assume_storage_prezeroed=1,nodiscard"),
        *("-O", "^has_journal,^resize_inode"),
        *("-m", "0"),
        str(path),
    ]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        await _run(argv, {**environment, "E2FSPROGS_FAKE_TIME": "1"})  # equal input, equal file
    except BaseException:
        os.unlink(path)  # noqa: PTH108 -- one system call, also where the loop runs
        raise


def _too_large(size_bytes: int, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"cannot make a disk of {size_bytes} bytes: {why}",
        code="machine_too_large",
        remedy="give the template a smaller disk",
    )


async def _run(argv: list[str], environment: dict[str, str]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as err:
        raise HostError(
            "mkfs.ext4 is missing", code="mkfs_missing", remedy="apt-get install e2fsprogs"
        ) from err
    try:
        async with asyncio.timeout(_MKFS_TIMEOUT):
            _, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        words = stderr.decode(errors="replace").strip()[-500:]
        if "No space left" in words:
            raise DiskFullError(f"no space for a scratch disk: {words}")
        raise HostError(f"mkfs.ext4 failed: {words}", code="mkfs_failed")
