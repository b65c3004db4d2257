"""Isolation: what QEMU processes are cut off from before their first instruction.

Each wall is a module of `jail`; here they are joined and put into order. A short-lived thread walls
itself in and then spawns QEMU, which inherits it all: no chain of helper programs, no code of ours
between fork and exec.

Which walls this host can have, `detection` finds out.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu.jail import account, calls, cgroup, landlock, limits, seccomp
from vmpool.engine.qemu.jail.account import Account
from vmpool.engine.qemu.jail.cgroup import Cgroup
from vmpool.engine.qemu.jail.limits import Limits
from vmpool.engine.qemu.jail.root import Root
from vmpool.engine.qemu.jail.wall import Lack, Wall

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What every QEMU is started with.

    Attributes:
        uids: What a user id is drawn from for each; empty for our own account, which then is not
            root.
        walls: Those that there are.
        root: What they see as their root directory; `None` for ours.
        readable: What Landlock lets them read and execute where there is no `root`.
        devices: What they open themselves.
        groups: The control group that each gets one below; `None` for ours.
        prefix: Put before each command line.
        lacks: The walls that there are not.
    """

    walls: frozenset[Wall] = frozenset()
    uids: range = range(0)
    root: Root | None = None
    readable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    groups: Path | None = None
    prefix: tuple[str, ...] = ()
    lacks: tuple[Lack, ...] = ()

    @contextlib.contextmanager
    def for_one(self, most: Limits = limits.SMALL, *groups: int) -> Iterator[Jail]:
        """Yield what holds a single QEMU, which is to be started within the block.

        Args:
            most: What it may use.
            groups: Supplementary ones of its account.

        Raises:
            HostError: There is no account for it; `account_unfit`.
        """
        if not self.uids:
            yield Jail(isolation=self, limits=most)
            return
        with account.drawn(self.uids, *groups) as drawn:
            yield Jail(isolation=self, limits=most, account=drawn)

    def close(self) -> None:
        """Give back what it holds; no QEMU can be started with it any more. *Idempotent.*"""
        if self.root is not None:
            self.root.close()

    def without(self, *walls: Wall) -> Isolation:
        """Return this with fewer walls, to see what each is worth; QEMU never runs as root."""
        left = self.walls.difference(walls, {Wall.ACCOUNT}) | (self.walls & {Wall.ACCOUNT})
        return replace(
            self,
            walls=left,
            root=self.root if Wall.ROOT in left else None,
            groups=self.groups if Wall.CGROUP in left else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Jail:
    """What holds one QEMU.

    Attributes:
        account: Whom it runs as; `None` for our own account.
    """

    isolation: Isolation
    limits: Limits
    account: Account | None = None

    def enter(self, handed: Iterable[int]) -> None:
        """Wall the calling thread in, for good: call it in a thread that ends soon after.

        Its directory and descriptors must be its own by then.

        Args:
            handed: The descriptors that QEMU is to have.

        Raises:
            HostError: The kernel refused; `isolation_failed`. The thread is in between.
        """
        walls, root = self.isolation.walls, self.isolation.root
        own = 0
        if Wall.NAMESPACES in walls and not self.isolation.prefix:
            own |= calls.OWN_NAMESPACES
        if root is not None:
            root.enter()
            own |= calls.OWN_MOUNTS
        calls.unshare(own)
        if root is not None:
            root.mount_proc()
        os.chdir("/")
        calls.forbid_new_privileges()
        if Wall.LANDLOCK in walls:
            landlock.restrict(
                landlock.version(),
                readable=("/",) if root is not None else self.isolation.readable,
                devices=self.isolation.devices,
                handed=handed,
            )
        if self.account is not None:
            calls.become(self.account.uid, self.account.groups)
        if Wall.SECCOMP in walls:
            seccomp.restrict()

    def impose_limits(self, pid: int) -> None:
        """Hold a process to what it may use, but for its group's part.

        Call it in the thread that made it.

        Raises:
            HostError: The kernel refused; `isolation_failed`.
        """
        limits.impose(self.limits, pid, own_account=self.account is not None)

    def group(self, directory: Path) -> Cgroup | None:
        """Return the control group of the machine in `directory`, to be made; `None` without."""
        if self.isolation.groups is None:
            return None
        return Cgroup(self.isolation.groups / directory.name, directory / cgroup.FILE)
