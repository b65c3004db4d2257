"""Namespace: a network namespace by its path, and what is done inside of one.

A thread has a network namespace of its own. What has to happen inside of one happens in a thread
that ends afterwards: neither the main thread nor one of a pool ever leaves the namespace that the
server lives in. Everything here blocks, for a fraction of a millisecond.

Named ones are where `ip netns` looks for them, so that an operator can too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
"""Where named namespaces are; see ip-netns(8)."""

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_MS_BIND = 4096  # linux/mount.h
_MNT_DETACH = 2  # sys/mount.h


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, by a path that holds it."""

    path: Path

    @classmethod
    def named(cls, name: str) -> Namespace:
        """Return the namespace that `ip netns` calls `name`, whether there is one or not."""
        return cls(DIRECTORY / name)

    @property
    def name(self) -> str:
        """What `ip netns` calls it."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Whether the path holds a namespace, and is no file that a failed creation left."""
        try:
            return os.path.ismount(self.path)
        except OSError:
            return False


HOME = Namespace(Path("/proc/self/ns/net"))
"""The one that the server lives in."""


def create(name: str) -> Namespace:
    """Make a namespace that holds nothing but its loopback, which is down. *Not idempotent.*

    Raises:
        HostError: `network_failed`; there is one of that name, or the kernel refused.
    """
    made = Namespace.named(name)

    def bind() -> None:
        _call("unshare", _CLONE_NEWNET)
        own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _call("mount", own.encode(), os.fsencode(made.path), b"none", _MS_BIND, None)

    try:
        DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        made.path.touch(mode=0o444, exist_ok=False)
        try:
            _in_own_thread(bind)
        except BaseException:
            made.path.unlink()
            raise
    except OSError as err:
        raise HostError(
            f"cannot make network namespace {name!r}: {err.strerror}", code="network_failed"
        ) from err
    return made


def remove(namespace: Namespace) -> None:
    """Let go of a named namespace; it ends when nobody is in it any more. *Idempotent.*

    Raises:
        HostError: `network_failed`; the kernel refused.
    """
    try:
        while namespace.exists:
            _call("umount2", os.fsencode(namespace.path), _MNT_DETACH)
        namespace.path.unlink(missing_ok=True)
    except OSError as err:
        raise HostError(
            f"cannot remove network namespace {namespace.name!r}: {err.strerror}",
            code="network_failed",
        ) from err


def named(prefix: str) -> Iterator[Namespace]:
    """Yield the namespaces whose names begin so, also what is only left of one's making."""
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(DIRECTORY.iterdir()):
            if entry.name.startswith(prefix):
                yield Namespace(entry)


def call_in(namespace: Namespace, function: Callable[[], T]) -> T:
    """Return what `function` returns inside of a namespace. Blocks, in a thread of its own.

    Raises:
        HostError: `network_failed`; there is no such namespace, or this process may not enter it.
        BaseException: What the function raises.
    """

    def entered() -> T:
        try:
            with namespace.path.open("rb") as holder:
                _call("setns", holder.fileno(), _CLONE_NEWNET)
        except OSError as err:
            raise HostError(
                f"cannot enter network namespace {namespace.name!r}: {err.strerror}",
                code="network_failed",
            ) from err
        return function()

    return _in_own_thread(entered)


def socket_in(namespace: Namespace, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Return a new socket of a namespace; it stays there, whoever uses it. Blocks.

    Raises:
        HostError: `network_failed`, as `call_in`.
        OSError: The kernel has no such sockets.
    """
    return call_in(namespace, lambda: socket.socket(family, kind, protocol))


def _in_own_thread(function: Callable[[], T]) -> T:
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as err:  # noqa: BLE001 -- raised again where it is waited for
            failure.append(err)

    thread = threading.Thread(target=run, name="in a network namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
