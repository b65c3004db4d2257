"""Root: a root directory in which nothing is but what QEMU needs, and nothing can be written.

Made once, in a mount namespace that nobody is in: a small file system in memory that holds nothing
but the places that the host's files are mounted on, one by one. The namespace is reached by its
descriptor alone, so that the host's own mounts are never touched and nothing is left when whoever
holds it is killed. Each QEMU gets a copy of it, and in it a /proc where it finds its descriptors
and no process but its own.

What is mounted is the very file, whatever later takes its path: an upgrade of the host's QEMU
does not change what a running server starts.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu.jail import calls
from vmpool.errors import HostError

if TYPE_CHECKING:
    from vmpool.engine.qemu.jail.contents import Contents

_PROC = "/proc"
# Nothing of the kernel's, and of processes those of one's own account: each QEMU has another.
_PROC_OPTIONS = "hidepid=invisible,subset=pid"
_SHELL = "mode=755,size=1m"  # of places to mount on

_UNUSABLE = calls.READ_ONLY | calls.NO_SUID | calls.NO_DEVICES | calls.NO_EXEC


class Root:
    """A mount namespace, which lives as long as this or a process that entered it.

    Args:
        descriptor: Of the namespace; closed with this, at the latest when this is no more.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._closed = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, contents: Contents) -> Root:
        """Make a root of `contents`, each at the path that it has on the host. Blocks.

        Raises:
            HostError: The kernel refused (`isolation_failed`), or a file cannot be mounted.
        """
        return cls(_built(contents))

    def enter(self) -> None:
        """Move the calling thread into it; its directory must be its own. Its /proc is empty yet.

        Raises:
            HostError: The kernel refused; `isolation_failed`.
        """
        calls.enter_mounts(self._descriptor)

    def close(self) -> None:
        """Let go of it: nobody can enter it any more. *Idempotent.*"""
        self._closed()

    @staticmethod
    def mount_proc() -> None:
        """Mount /proc for the calling thread, which entered and then took mounts of its own.

        Raises:
            HostError: The kernel refused, or it is in no such root; `isolation_failed`.
        """
        if os.listdir(_PROC):  # noqa: PTH208 -- a name is enough
            raise _not_apart()
        calls.mount("proc", _PROC, "proc", _UNUSABLE, _PROC_OPTIONS)


def _built(contents: Contents) -> int:
    """Return a descriptor of the namespace that a thread made for itself, and left."""
    made: list[int | BaseException] = []

    def build() -> None:
        try:
            calls.unshare(calls.OWN_DIRECTORY | calls.OWN_MOUNTS)
            namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _build(contents)
            except BaseException:
                os.close(namespace)
                raise
            made.append(namespace)
        except BaseException as err:  # noqa: BLE001 -- raised by who waits
            made.append(err)

    thread = threading.Thread(target=build, name="vmpool-root")
    thread.start()
    thread.join()
    match made[0]:
        case int(descriptor):
            return descriptor
        case OSError() as err:
            raise HostError(
                f"cannot make a root for QEMU: {err.filename}: {err.strerror}",
                code="isolation_failed",
            ) from err
        case err:
            raise err


def _build(contents: Contents) -> None:
    """Give the calling thread's mount namespace its root."""
    calls.mount(None, "/", None, calls.RECURSIVE | calls.PRIVATE)
    _require_apart()
    # Any directory will do to put it on, and this one is wherever there are processes.
    calls.mount("tmpfs", _PROC, "tmpfs", calls.NO_SUID | calls.NO_DEVICES | calls.NO_EXEC, _SHELL)
    at = Path(_PROC)
    for path in contents.code:
        _bind(path, at, calls.NO_DEVICES)
    for path in contents.data:
        _bind(path, at, calls.NO_DEVICES | calls.NO_EXEC)
    for path in contents.devices:
        _bind(path, at, calls.NO_EXEC)
    (at / "proc").mkdir()
    os.chdir(at)
    calls.change_root()
    calls.mount(None, "/", None, calls.REMOUNT | calls.BIND | _UNUSABLE)


def _require_apart() -> None:
    """Make sure that what the calling thread mounts is seen by nobody else.

    On the host's own /proc it would take the host down: not to be left to one call's doing what it
    says.
    """
    own, ours = (Path(f"/proc/{whose}/ns/mnt").stat().st_ino for whose in ("thread-self", "self"))
    lines = Path("/proc/thread-self/mountinfo").read_text().splitlines()
    passed_on = any(
        field.startswith("shared:")
        for line in lines
        for field in line.partition(" - ")[0].split()[6:]  # see proc_pid_mountinfo(5)
    )
    if own == ours or passed_on:
        raise _not_apart()


def _not_apart() -> HostError:
    return HostError(
        "cannot make a root for QEMU: the mounts are not its own", code="isolation_failed"
    )


def _bind(path: Path, at: Path, flags: int) -> None:
    place = at / path.relative_to("/")
    if path.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    # By its real path: a link among the places would lead out of the new root, or nowhere.
    calls.mount(os.fspath(path.resolve()), os.fspath(place), None, calls.BIND)
    options = calls.REMOUNT | calls.BIND | calls.READ_ONLY | calls.NO_SUID | flags
    calls.mount(None, os.fspath(place), None, options)
