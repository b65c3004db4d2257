"""Detection: which walls this host can have, found out by making them.

A host that cannot have one of them runs without it; the `lacks` of what is found say so, and why.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu import command
from vmpool.engine.qemu.isolation import Isolation
from vmpool.engine.qemu.jail import account, calls, cgroup, contents, landlock, seccomp
from vmpool.engine.qemu.jail.root import Root
from vmpool.engine.qemu.jail.wall import Lack, Wall
from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmpool.engine.qemu.jail.contents import Contents

_KVM = Path("/dev/kvm")
_UNSHARE = ("unshare", "--user", "--net", "--ipc", "--uts", "--")
_ABLE = "let vmpool make namespaces and mounts, which takes the capability CAP_SYS_ADMIN"
_AS_ROOT = "start vmpool as root, which gives the walls and takes all rights from QEMU"


@dataclass(slots=True)
class _Survey:
    """What is known of this host's walls."""

    walls: set[Wall] = field(default_factory=set)
    lacks: list[Lack] = field(default_factory=list)

    @contextlib.contextmanager
    def trying(self, wall: Wall) -> Iterator[None]:
        """Note a wall as there when the block ends well, as lacking when it does not."""
        try:
            yield
        except HostError as err:
            self.lacks.append(Lack(wall=wall, why=err.message, remedy=err.remedy or _ABLE))
        else:
            self.walls.add(wall)


def detect(binary: str, version: str) -> Isolation:
    """Return the best isolation that this process may give its children. Blocks.

    Control groups are another matter: having them changes the host; see `limited`.

    Args:
        binary: The QEMU that is to be started, found on PATH.
        version: Its version.

    Raises:
        HostError: We are root, but of a user namespace with too few ids (`account_unfit`), or may
            not give up being root (`isolation_failed`).
    """
    try:
        needed = contents.of_qemu(binary)
    except HostError as err:
        return around(err)
    opens_kvm = command.parse_version(version) < command.KVM_DEVICE_SINCE and _KVM.exists()
    return around(replace(needed, devices=(_KVM,) if opens_kvm else ()))


def around(needed: Contents | HostError) -> Isolation:
    """Return the best isolation, as `detect`, for what needs these files; or why that is unknown.

    Raises:
        HostError: As `detect`.
    """
    survey = _Survey()
    if os.geteuid() != 0:
        return _detect_as_user(survey, needed)
    uids = account.uids_here()
    _tried(lambda: calls.become(uids[0], ()))
    survey.walls.add(Wall.ACCOUNT)
    with survey.trying(Wall.NAMESPACES):
        _tried(lambda: calls.unshare(calls.OWN_NAMESPACES))
    root = None
    with survey.trying(Wall.ROOT):
        root = _root(_told(needed))
    readable: tuple[str, ...] = ()
    with survey.trying(Wall.LANDLOCK):
        _require_landlock()
        readable = _paths(_told(needed).readable)
    _try_seccomp(survey)
    return Isolation(
        walls=frozenset(survey.walls),
        uids=uids,
        root=root,
        readable=readable,
        devices=() if isinstance(needed, HostError) else _paths(needed.devices),
        lacks=tuple(survey.lacks),
    )


def limited(isolation: Isolation) -> Isolation:
    """Return `isolation` with a control group for each QEMU, where there can be. Blocks.

    This process may find itself in another group afterwards.
    """
    return _with_groups(isolation, lambda: cgroup.prepare(cgroup.survey()))


def limitable(isolation: Isolation) -> Isolation:
    """Return what `limited` would, but for changing anything: of no use to start a QEMU. Blocks."""
    return _with_groups(isolation, lambda: cgroup.survey().parent)


def _with_groups(isolation: Isolation, found: Callable[[], Path]) -> Isolation:
    survey, groups = _Survey(), None
    with survey.trying(Wall.CGROUP):
        groups = found()
    return replace(
        isolation,
        walls=isolation.walls | survey.walls,
        groups=groups,
        lacks=(*isolation.lacks, *survey.lacks),
    )


def _detect_as_user(survey: _Survey, needed: Contents | HostError) -> Isolation:
    for wall, why in {
        Wall.ACCOUNT: "QEMU runs as this account, and can open what this account can",
        Wall.ROOT: "only root can give it a root directory of its own",
    }.items():
        survey.lacks.append(Lack(wall=wall, why=why, remedy=_AS_ROOT))
    readable: tuple[str, ...] = ()
    with survey.trying(Wall.LANDLOCK):
        _require_landlock()
        readable = _paths(_told(needed).readable + contents.of_program(_UNSHARE[0]).readable)
    with survey.trying(Wall.NAMESPACES):
        _require_user_namespaces()
    if Wall.NAMESPACES not in survey.walls:
        _try_seccomp(survey)
    else:
        why = "the program that makes QEMU's namespaces needs calls that it refuses"
        survey.lacks.append(Lack(wall=Wall.SECCOMP, why=why, remedy=_AS_ROOT))
    return Isolation(
        walls=frozenset(survey.walls),
        readable=readable,
        devices=() if isinstance(needed, HostError) else _paths(needed.devices),
        prefix=_UNSHARE if Wall.NAMESPACES in survey.walls else (),
        lacks=tuple(survey.lacks),
    )


def _try_seccomp(survey: _Survey) -> None:
    def restrict() -> None:
        calls.forbid_new_privileges()
        seccomp.restrict()

    with survey.trying(Wall.SECCOMP):
        _tried(restrict)


def _told(needed: Contents | HostError) -> Contents:
    if isinstance(needed, HostError):
        raise needed
    return needed


def _paths(paths: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(map(os.fspath, paths))


def _root(needed: Contents) -> Root:
    """Make a root and enter it once, as those that spawn QEMUs will."""
    root = Root.of(needed)

    def enter() -> None:
        calls.unshare(calls.OWN_DIRECTORY)
        root.enter()
        calls.unshare(calls.OWN_MOUNTS | calls.OWN_NAMESPACES)
        root.mount_proc()

    _tried(enter)
    return root


def _require_landlock() -> None:
    if landlock.version() == 0:
        raise HostError(
            "this kernel has no Landlock, or has it switched off",
            remedy="boot Linux 5.13 or newer, with landlock among the security modules of lsm=",
        )


def _require_user_namespaces() -> None:
    tried = subprocess.run(
        [*_UNSHARE, "true"], check=False, capture_output=True, timeout=10, close_fds=True
    )
    if tried.returncode != 0:
        raise HostError(
            "this account may not make namespaces",
            remedy="start vmpool as root, or allow user namespaces: "
            "sysctl kernel.unprivileged_userns_clone=1",
        )


def _tried(walling: Callable[[], None]) -> None:
    """Do to a thread that ends with it what is to be done to those that spawn QEMUs."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            walling()
        except BaseException as err:  # noqa: BLE001 -- raised by who waits
            failed.append(err)

    thread = threading.Thread(target=run, name="vmpool-trial")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
