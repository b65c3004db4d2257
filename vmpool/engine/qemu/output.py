"""Output: the first words of a QEMU process, in a file that cannot grow.

A guest can have QEMU complain a line at a time, for ever: a file on disk would fill the disk. This
one is memory of a fixed size, ends with the process that holds it, and a later manager finds it
there.
"""

from __future__ import annotations

import fcntl
import os

LIMIT_BYTES = 64 << 10
"""What is kept: the first of it, for then QEMU cannot start or load, or complains of the guest."""

_TAIL_BYTES = 4096
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Output:
    """Where a process writes to; whoever makes it calls `close`.

    Args:
        descriptor: Of the file; -1 when it cannot be had.
    """

    def __init__(self, descriptor: int) -> None:
        self._tail = ""
        self._descriptor = descriptor

    @classmethod
    def create(cls) -> Output:
        """Make the file for a process that is about to start."""
        descriptor = os.memfd_create("qemu.log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, LIMIT_BYTES)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    @classmethod
    def of(cls, pid: int) -> Output:
        """Find the file that a process was started with; empty where we may not look.

        What the process has there may be a hostile guest's choice, such as a file of the host that
        it may not read itself. The seals are on ours alone.
        """
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            descriptor = os.open(f"/proc/{pid}/fd/1", flags)
        except OSError:
            return cls(-1)
        try:
            if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS:
                return cls(descriptor)
        except OSError:  # a kind of file that can have none
            pass
        os.close(descriptor)
        return cls(-1)

    def fileno(self) -> int:
        """Return the descriptor to hand over; it stays ours."""
        return self._descriptor

    @property
    def tail(self) -> str:
        """The last lines of what is kept; also after `close`."""
        if self._descriptor >= 0:
            kept = os.pread(self._descriptor, LIMIT_BYTES, 0).rstrip(b"\0")
            self._tail = kept[-_TAIL_BYTES:].decode(errors="replace").strip()
        return self._tail

    def close(self) -> None:
        """Keep the tail and give back the rest. *Idempotent.*"""
        if self._descriptor >= 0:
            self._tail = self.tail
            os.close(self._descriptor)
            self._descriptor = -1
