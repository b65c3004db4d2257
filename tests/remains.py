"""Remains: what a host may leave on a machine, looked for by the names that it gives things.

Unlike `leftovers`, which compares a whole machine before and after, this is about one state
directory, whatever else goes on beside it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests import estate, processes
from tests.seclusion import NAMES
from vmpool.network.namespace import HOME, Namespace

if TYPE_CHECKING:
    from tests.serving import Ground

JOURNAL = "vmpool.db"

_GROUPS = "*/vmpool/*"
_GRACE_SECONDS = 5.0
"""That a group of a server beside us may be without a process: it is just made, or removed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What there is of a host while no server of it runs.

    Attributes:
        files: Below the state directory, but for the journal's own.
        groups: Control groups of machines, those of other servers too: none has its host's name.
        rows: Of sandboxes that have not ended, and checkpoints.
        rules: Tables of the firewall, links and taps where the server lives.
    """

    files: frozenset[str]
    groups: frozenset[str]
    namespaces: frozenset[str]
    processes: frozenset[int]
    rows: frozenset[str]
    rules: frozenset[str]

    @classmethod
    def of(cls, ground: Ground, home: Namespace = HOME) -> Self:
        """Look for all of it.

        Args:
            home: The namespace that its servers lived in.
        """
        tag = hashlib.sha256(os.fsencode(ground.state.resolve())).hexdigest()[:6]
        living = estate.rows(ground, "SELECT id FROM sandboxes WHERE ended_ns IS NULL")
        return cls(
            files=frozenset(
                str(path.relative_to(ground.state))
                for path in ground.state.rglob("*")
                if not path.name.startswith(JOURNAL)
            ),
            groups=frozenset(map(str, _empty_groups())),
            namespaces=frozenset(path.name for path in NAMES.glob(f"vmpool-{tag}-*")),
            processes=frozenset(processes.naming(ground.state)),
            rows=frozenset([*living, *estate.rows(ground, "SELECT id FROM checkpoints")]),
            rules=frozenset(_rules(home, tag)),
        )

    def beyond(self, before: Remains) -> list[str]:
        """Return what there is more than before, one line each."""
        return [
            f"{kind[:-1] if kind != 'processes' else 'process'} {each}"
            for kind in self.__dataclass_fields__
            for each in sorted(getattr(self, kind) - getattr(before, kind), key=str)
        ]


def _empty_groups() -> list[Path]:
    """Return control groups of machines in which no process is, nor comes to be."""
    top = Path("/sys/fs/cgroup")
    found = [each for each in [*top.glob("vmpool/*"), *top.glob(_GROUPS)] if each.is_dir()]
    end = time.monotonic() + _GRACE_SECONDS
    while (found := [each for each in found if _is_empty(each)]) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _is_empty(group: Path) -> bool:
    try:
        return "populated 0" in (group / "cgroup.events").read_text()
    except OSError:
        return False


def _rules(home: Namespace, tag: str) -> list[str]:
    """Return what has a host's tag among the links and tables of where its server lived."""
    if os.geteuid() != 0:
        return []
    enter = ["nsenter", f"--net={home.path}"]
    links = _printed(*enter, "ip", "-brief", "link")
    tables = _printed(*enter, "nft", "list", "tables")
    return [line for line in [*links, *tables] if tag in line]


def _printed(*argv: str) -> list[str]:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
