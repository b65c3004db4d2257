"""Builds: of templates, as far as somebody may still ask how they went, as the journal has it.

A build's log goes with the build. How long it may become, whoever makes builds decides.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlite_utils import Database

    from vmpool.journal import Journal

KEEP_NS = 7 * 24 * 3600 * 10**9
"""As long as of sandboxes that ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRow:
    """A build.

    Attributes:
        owner: Id of the tenant whose it is.
        tags: What it is to be found by, beside its name.
        vcpus: Of the machine that it is to have; `None` for as many as its base's.
        memory_bytes: Likewise.
        state: Word of whoever makes builds.
        step: Where it was.
        reason: Why it failed; empty when it has not.
        made_ns: When it was promised.
    """

    id: str
    owner: str
    name: str
    tags: tuple[str, ...]
    vcpus: int | None = None
    memory_bytes: int | None = None
    state: str
    step: str
    reason: str
    made_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRow:
    """One line of a build's log.

    Attributes:
        at_ns: When it was said, Unix time.
        level: Word of whoever makes builds.
        step: Where the build was.
    """

    at_ns: int
    level: str
    message: str
    step: str


# Not replaced: its lines would go with the row that makes way.
_SAVE = """INSERT INTO builds
    (id, owner, name, tags, vcpus, memory_bytes, state, step, reason, made_ns)
    VALUES (:id, :owner, :name, :tags, :vcpus, :memory_bytes, :state, :step, :reason, :made_ns)
    ON CONFLICT (id) DO UPDATE SET
    state = excluded.state, step = excluded.step, reason = excluded.reason"""
_SAY = """INSERT OR REPLACE INTO build_lines (build_id, number, at_ns, level, message, step)
    VALUES (?, ?, ?, ?, ?, ?)"""


class Builds:
    """The builds of a journal; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal, now_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._now_ns = now_ns

    async def save(
        self, build: BuildRow, *, keep: int, lines: Sequence[LineRow] = (), first: int = 0
    ) -> None:
        """Record a build, or how far it is by now, and more of its log. *Idempotent.*

        Args:
            keep: How many of its owner's are kept; the oldest are forgotten.
            first: The number of the first of `lines` in the log, from 0.
        """
        columns = asdict(build) | {"tags": json.dumps(build.tags)}
        before_ns = self._now_ns() - KEEP_NS
        said = [
            (build.id, number, line.at_ns, line.level, line.message, line.step)
            for number, line in enumerate(lines, start=first)
        ]

        def save(db: Database) -> None:
            db.execute(_SAVE, columns)
            db.conn.executemany(_SAY, said)
            db.execute("DELETE FROM builds WHERE made_ns < ?", [before_ns])
            db.execute(
                """DELETE FROM builds WHERE owner = ? AND id NOT IN (
                SELECT id FROM builds WHERE owner = ? ORDER BY made_ns DESC, id LIMIT ?)""",
                [build.owner, build.owner, keep],
            )

        await self._journal.run(save)

    async def all(self) -> list[BuildRow]:
        """Return all builds, the oldest first."""
        sql = "SELECT * FROM builds ORDER BY made_ns, id"
        return [_row(each) for each in await self._journal.run(lambda db: list(db.query(sql)))]

    async def lines(self, id: str) -> list[LineRow]:
        """Return the log of a build, as far as it was recorded; of one that is not there, none."""
        sql = """SELECT at_ns, level, message, step FROM build_lines
            WHERE build_id = ? ORDER BY number"""
        found = await self._journal.run(lambda db: list(db.query(sql, [id])))
        return [LineRow(**each) for each in found]


def _row(found: dict[str, Any]) -> BuildRow:
    return BuildRow(**found | {"tags": tuple(json.loads(found["tags"]))})
