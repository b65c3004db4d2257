"""Papers: what a clone's directory says of it, for a manager that comes later.

Beside the engine's record of the process: whom the agent obeys and what the guest was told. The
key is a secret; the file is readable for its owner alone, in a directory that is too. Not synced:
a reboot ends the machine, and the papers with it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from vmpool.clone.timings import RestoreTimings
from vmpool.errors import DiskFullError, EngineError, HostError
from vmpool.model import IdentityReceipt
from vmpool.snapshot import Base

if TYPE_CHECKING:
    from pathlib import Path

FILE = "clone.json"

_LIMIT_BYTES = 64 << 10


class Papers(msgspec.Struct, frozen=True, kw_only=True):
    """One clone, but for its process.

    Attributes:
        base: The template that its hypervisor maps, whose checkpoints are of that memory alone.
        key: What the agent obeys; a secret.
        clock_offset_ns: Guest's wall clock minus the host's, as it is meant to be.
    """

    base: Base
    key: bytes
    clock_offset_ns: int
    receipt: IdentityReceipt
    timings: RestoreTimings

    def __repr__(self) -> str:
        return f"Papers({self.receipt.hostname!r})"  # never the key

    def write(self, directory: Path) -> None:
        """Put the papers into a clone's directory, whole or not at all.

        Raises:
            DiskFullError: The disk is full.
            HostError: `state_unwritable`; they cannot be written.
        """
        temporary = directory / f".{FILE}"
        try:
            temporary.touch(mode=0o600)
            temporary.write_bytes(msgspec.json.encode(self))
            temporary.rename(directory / FILE)
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(f"no space for clone {directory.name!r}") from err
            raise HostError(
                f"cannot write the papers of clone {directory.name!r}: {err.strerror}",
                code="state_unwritable",
            ) from err


_DECODER = msgspec.json.Decoder(Papers)
"""Made here, as msgspec crashes when two threads are the first to decode a type."""


def read(directory: Path, base: Base) -> Papers:
    """Return the papers in a clone's directory.

    Args:
        base: The template that they must speak of.

    Raises:
        EngineError: `clone_unknown`; there are none, they cannot be read, or they are of a clone
            of another template, or of one that was made again since.
    """
    try:
        with (directory / FILE).open("rb") as file:
            papers = _DECODER.decode(file.read(_LIMIT_BYTES))
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "they are damaged"
        raise _unknown(directory, f"has no papers that can be read: {why}") from err
    if papers.base != base:
        raise _unknown(directory, f"is not of the template {base.id!r} as it is now")
    return papers


def _unknown(directory: Path, why: str) -> EngineError:
    return EngineError(f"clone {directory.name!r} {why}", code="clone_unknown")
