"""Inotify: the kernel's word of what happens in directories, by inotify(7), which Python lacks.

It knows numbers and names; what they mean is decided by its user.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import sys
import termios
from typing import NamedTuple

# linux/inotify.h
MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x1000000
DONT_FOLLOW = 0x2000000
EXCL_UNLINK = 0x4000000
ISDIR = 0x40000000

_HEADER = struct.Struct("=iIII")  # struct inotify_event without its name


class Event(NamedTuple):
    """One event as the kernel tells it.

    Attributes:
        watch: The watch that it is about, -1 for none.
        cookie: The same in both halves of a move.
        name: Of the entry in the watched directory; empty for the directory itself.
    """

    watch: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """A queue of events, and what it watches. Close it when done.

    Raises:
        OSError: EMFILE: the kernel grants this account no more of them.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        _check(self.fd)

    def add(self, path: str, mask: int) -> int:
        """Watch what is at `path`; return its number, the same for what is watched already.

        Raises:
            OSError: As inotify_add_watch(2); ENOSPC: the kernel grants no more watches.
        """
        watch: int = self._library.inotify_add_watch(self.fd, os.fsencode(path), mask)
        _check(watch)
        return watch

    def remove(self, watch: int) -> None:
        """Watch something no longer. *Idempotent.*"""
        self._library.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """Return all that is queued now."""
        queued = fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4))
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.fd, int.from_bytes(queued, sys.byteorder))
        events = []
        at = 0
        while at < len(data):
            watch, mask, cookie, length = _HEADER.unpack_from(data, at)
            at += _HEADER.size
            name = os.fsdecode(data[at : at + length].split(b"\0", 1)[0])
            at += length
            events.append(Event(watch, mask, cookie, name))
        return events

    def close(self) -> None:
        """Give the queue back, and all watches with it. *Idempotent.*"""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
