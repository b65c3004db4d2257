"""Plug: what a clone's directory says of its network, for a manager that comes later.

It is noted before the link is plugged in: a slot that a machine has and no directory names would be
cleared away under it. One that is noted and was never plugged in is found out by asking the kernel.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import msgspec

from vmpool.errors import DiskFullError, EngineError, HostError

if TYPE_CHECKING:
    from pathlib import Path

FILE = "network.json"

_LIMIT_BYTES = 4096


class Plug(msgspec.Struct, frozen=True, kw_only=True):
    """The slot that a clone is connected to."""

    slot: int

    def write(self, directory: Path) -> None:
        """Put it into a clone's directory, whole or not at all.

        Raises:
            DiskFullError: The disk is full.
            HostError: `state_unwritable`; it cannot be written.
        """
        temporary = directory / f".{FILE}"
        try:
            temporary.write_bytes(msgspec.json.encode(self))
            temporary.rename(directory / FILE)
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError(f"no space for clone {directory.name!r}") from err
            raise HostError(
                f"cannot note the network of clone {directory.name!r}: {err.strerror}",
                code="state_unwritable",
            ) from err


_DECODER = msgspec.json.Decoder(Plug)
"""Made here, as msgspec crashes when two threads are the first to decode a type."""


def read(directory: Path) -> Plug | None:
    """Return what a clone was connected to last; `None` when it never was.

    Raises:
        EngineError: `clone_unknown`; it cannot be read.
    """
    try:
        with (directory / FILE).open("rb") as file:
            return _DECODER.decode(file.read(_LIMIT_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as err:
        raise EngineError(
            f"clone {directory.name!r} does not say how it is connected", code="clone_unknown"
        ) from err
