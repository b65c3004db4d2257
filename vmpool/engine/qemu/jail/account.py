"""Account: the user id that one QEMU has and no other process of this host.

Two QEMUs of one user id could open each other's memory through /proc. That no other process has an
id is not written down anywhere that a crash could falsify: the kernel is asked. Between the asking
and the process's having it, a name that only one process of the host can hold keeps all other
servers, and other starts of this one, from drawing the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

_UID_RANGES = (
    # Between the ids that systemd gives containers and those it keeps for foreign images; see
    # systemd's docs/UIDS-GIDS.md.
    range(0x70000000, 0x7FFE0000),
    # Where a container's root has but 2^16 ids: those of systemd's dynamic users.
    range(61184, 65520),
)

_DRAWS = 1000  # the smaller range half full gives two at a thousand draws once in 10^300 times


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom one QEMU runs as; its group has the same number, and neither has a name.

    Attributes:
        groups: Supplementary ones.
    """

    uid: int
    groups: tuple[int, ...] = ()


@contextlib.contextmanager
def drawn(uids: range, *groups: int) -> Iterator[Account]:
    """Yield an account that nobody has, and that nobody else draws within the block.

    A process that has it when the block ends keeps it from others as long as it is there.

    Raises:
        HostError: None was found; `account_unfit`.
    """
    for _ in range(_DRAWS):
        uid = secrets.choice(uids)
        claim = _claimed(uid)
        if claim is None:
            continue
        with claim:
            # The claim first: whoever else had it has a process by now, or gave it up.
            if not is_taken(uid):
                yield Account(uid=uid, groups=groups)
                return
    raise HostError(
        "every user id that QEMU could run as is in use",
        code="account_unfit",
        remedy="run fewer clones in this container, or give it more user ids",
    )


def is_taken(uid: int) -> bool:
    """Whether any process, ours or not, runs as `uid`, as far as this one can see."""
    try:
        os.getpriority(os.PRIO_USER, uid)
    except ProcessLookupError:
        return False
    return True


def usable_uids(*maps: str) -> range:
    """Return the ids that QEMUs may have where `maps` say which there are; see user_namespaces(7).

    Raises:
        HostError: There are none to spare; code `account_unfit`.
    """
    for uids in _UID_RANGES:
        if all(_covers(text, uids) for text in maps):
            return uids
    raise HostError(
        "no user ids are left here to run QEMU as",
        code="account_unfit",
        remedy="give this container 65536 user ids, or start vmpool as an account that is not root",
    )


def uids_here() -> range:
    """Return the ids that QEMUs may have on this host, as `usable_uids`."""
    return usable_uids(*[Path(f"/proc/self/{kind}_map").read_text() for kind in ("uid", "gid")])


def _claimed(uid: int) -> socket.socket | None:
    """Return what holds the name of an id; `None` while it is held. It goes with its holder."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0vmpool.account.{uid}")
    except OSError:
        claim.close()
        return None
    return claim


def _covers(map_text: str, uids: range) -> bool:
    extents = [[int(part) for part in line.split()] for line in map_text.splitlines()]
    return any(first <= uids[0] and uids[-1] < first + count for first, _, count in extents)
