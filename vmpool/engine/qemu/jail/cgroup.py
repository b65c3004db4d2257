"""Cgroup: the control group of one QEMU, which holds it to memory, processes and processor time.

Of version 2 alone: version 1 counts each kind in a tree of its own. Where a service manager has
delegated our group to us, clones get groups below it, and the server one beside them; elsewhere
root has them in a group of its own at the top. See cgroups(7) and systemd's CGROUP_DELEGATION.

A group's path is in its machine's directory before the group is made, and goes after it: whoever
finds the directory finds the group, whatever died in between.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import EngineError, HostError

if TYPE_CHECKING:
    from vmpool.engine.qemu.jail.limits import Limits

log = logging.getLogger(__name__)

FILE = "cgroup"
"""In a machine's directory: the path of its group."""

NEEDED = ("memory", "pids")
WANTED = ("cpu", "io")

_CLONES = "vmpool"
_SERVER = "vmpool-server"
_PERIOD_US = 100_000  # the kernel's own choice
_WEIGHT = 100  # the kernel's own choice, for one processor
_EMPTY_TIMEOUT = 5.0  # seconds from the end of a process until its group has none
_PATH_LIMIT_BYTES = 4096
_DELEGATE = (
    "run the server as a systemd service with Delegate=yes, as docs/cli.md has it, or as root"
)
_UNIFY = "boot the host with cgroups of version 2: systemd.unified_cgroup_hierarchy=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where groups can be made.

    Attributes:
        parent: The group that they go into; need not be there yet.
        leave: The group that this process must leave for it, as no group may have both processes
            and groups with limits; `None` when it need not.
    """

    parent: Path
    leave: Path | None = None


class Cgroup:
    """The group of one QEMU.

    Args:
        path: Of its directory in the kernel's file system.
        note: The file in its machine's directory that says so.
    """

    def __init__(self, path: Path, note: Path) -> None:
        self._path = path
        self._note = note

    @property
    def path(self) -> Path:
        """Of its directory in the kernel's file system."""
        return self._path

    def make(self, limits: Limits) -> None:
        """Make it, with no process in it. Blocks; what is there after a failure `remove` removes.

        Raises:
            HostError: The kernel refused; `cgroup_failed`.
        """
        try:
            self._note.write_text(os.fspath(self._path))
            self._path.mkdir()
            self._limit(limits)
        except OSError as err:
            raise _failed(err) from err

    def add(self, pid: int) -> None:
        """Put a process into it, unless that is gone. Blocks, for some milliseconds.

        What memory the process has by then stays on our account; a QEMU that has read nothing of
        its guest has little.

        Raises:
            HostError: The kernel refused; `cgroup_failed`.
        """
        try:
            with contextlib.suppress(ProcessLookupError):
                (self._path / "cgroup.procs").write_text(str(pid))
        except OSError as err:
            raise _failed(err) from err

    def remove(self) -> None:
        """End what is in it and remove it. *Idempotent.* Blocks.

        One that is empty and that the kernel does not let go limits nobody; it is logged.

        Raises:
            EngineError: `process_stuck`; something in it does not end. Its note stays, for whoever
                tries again.
        """
        with contextlib.suppress(OSError):  # there is no such file before Linux 5.14
            (self._path / "cgroup.kill").write_text("1")
        try:
            _await_empty(self._path)
            self._path.rmdir()
        except FileNotFoundError:
            pass
        except OSError as err:
            if _is_populated(self._path):
                raise EngineError(
                    f"processes of machine {self._path.name!r} do not end", code="process_stuck"
                ) from err
            log.warning("cannot remove the control group %s: %s", self._path, err.strerror)
        self._note.unlink(missing_ok=True)

    def _limit(self, limits: Limits) -> None:
        self._set("memory.max", limits.memory_bytes)
        # Guests' memory is written to no disk that outlives them.
        self._set_if_known("memory.swap.max", 0)
        self._set_if_known("memory.oom.group", 1)
        self._set("pids.max", limits.tasks)
        self._set_if_known("cpu.weight", _WEIGHT * limits.cpus)
        self._set_if_known("cpu.max", f"{limits.cpus * _PERIOD_US} {_PERIOD_US}")

    def _set(self, name: str, value: object) -> None:
        (self._path / name).write_text(str(value))

    def _set_if_known(self, name: str, value: object) -> None:
        """Set what kernels may be built without, or not hand on here."""
        if (self._path / name).exists():
            self._set(name, value)


def of_machine(directory: Path) -> Cgroup | None:
    """Return the group that the machine in `directory` was given; `None` when it has none."""
    note = directory / FILE
    try:
        with note.open("rb") as file:
            path = Path(os.fsdecode(file.read(_PATH_LIMIT_BYTES)))
    except OSError:
        return None
    # One that was cut short names another group, or none.
    return Cgroup(path, note) if path.name == directory.name else None


def survey() -> Plan:
    """Find out where groups can be made; changes nothing. Blocks.

    Raises:
        HostError: Nowhere; `cgroup_missing`, the message says why.
    """
    return planned(
        Path("/proc/self/mountinfo").read_text(),
        Path("/proc/self/cgroup").read_text(),
        is_root=os.geteuid() == 0,
    )


def planned(mounts: str, membership: str, *, is_root: bool) -> Plan:
    """Decide where groups can be made, as `survey`, by what the kernel says of this process.

    Args:
        mounts: As in /proc/self/mountinfo.
        membership: As in /proc/self/cgroup.
        is_root: Whether we may do what only root may.
    """
    found = _mounted(mounts)
    if found is None:
        raise _missing("no cgroup file system of version 2 is mounted", _UNIFY)
    within, top = found
    own = top / _relative(_path(membership), within)
    if own.name == _SERVER:  # DelegateSubgroup= has put us where we would have gone
        own = own.parent
    for group in (own, top):
        lacking = sorted(set(NEEDED) - set(_controllers(group)))
        if lacking:
            words = f"{' and '.join(lacking)} cannot be limited by cgroups of version 2 here"
            raise _missing(f"{words}; version 1 may have them", _UNIFY)
    if not (own / "cgroup.type").exists():  # the root of all, which may have both
        return Plan(parent=own / _CLONES)
    if is_delegated(own) or own == top:
        return Plan(parent=own / _CLONES, leave=own)
    if is_root and not (top / "cgroup.type").exists():
        return Plan(parent=top / _CLONES)
    raise _missing("no control group is delegated to this process")


def is_delegated(group: Path) -> bool:
    """Whether its service manager leaves a group to us, as it marks it."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return os.access(group, os.W_OK)
    return False


def prepare(plan: Plan) -> Path:
    """Make the group for all others, and have it hand on what it can limit. *Idempotent.* Blocks.

    Returns:
        Its path.

    Raises:
        HostError: The kernel refused; `cgroup_failed`.
    """
    try:
        if plan.leave is not None:
            aside = plan.leave / _SERVER
            aside.mkdir(exist_ok=True)
            (aside / "cgroup.procs").write_text(str(os.getpid()))
        plan.parent.mkdir(exist_ok=True)
        for group in (plan.parent.parent, plan.parent):
            _hand_on(group)
    except OSError as err:
        raise _failed(err) from err
    return plan.parent


def _hand_on(group: Path) -> None:
    """Let groups below have limits of their own."""
    control = group / "cgroup.subtree_control"
    enabled = control.read_text().split()
    for name in _controllers(group):
        if name in {*NEEDED, *WANTED} and name not in enabled:
            try:
                control.write_text(f"+{name}")
            except OSError:
                if name in NEEDED:
                    raise


def _controllers(group: Path) -> list[str]:
    try:
        return (group / "cgroup.controllers").read_text().split()
    except OSError:
        return []


def _mounted(mounts: str) -> tuple[str, Path] | None:
    """Return what part of the tree is mounted, and where; see proc_pid_mountinfo(5)."""
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            _, _, _, within, place = fields.split()[:5]
            return within, Path(place)
    return None


def _path(membership: str) -> str:
    for line in membership.splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    raise _missing("this process is in no cgroup of version 2")


def _relative(path: str, within: str) -> str:
    if within not in {"/", path} and not path.startswith(f"{within}/"):
        raise _missing("the mounted cgroups do not hold this process's own")
    return path.removeprefix(within if within != "/" else "").lstrip("/")


def _await_empty(group: Path) -> None:
    """Return when no process is left in a group, or soon after."""
    with (group / "cgroup.events").open() as file:
        watch = select.poll()
        watch.register(file, select.POLLPRI)
        if "populated 0" not in file.read():
            watch.poll(_EMPTY_TIMEOUT * 1000)


def _is_populated(group: Path) -> bool:
    try:
        return "populated 1" in (group / "cgroup.events").read_text()
    except OSError:
        return False


def _missing(why: str, remedy: str = _DELEGATE) -> HostError:
    return HostError(why, code="cgroup_missing", remedy=remedy)


def _failed(err: OSError) -> HostError:
    return HostError(
        f"cannot limit QEMU by a control group: {err.filename}: {err.strerror}",
        code="cgroup_failed",
        remedy=_DELEGATE,
    )
