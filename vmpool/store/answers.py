"""Answers: what was told to whoever may ask again, as the journal has it.

A sandbox that was made for a request with an idempotency key carries that request's ticket until
the answer is recorded, both in one transaction: a server that comes after a crash knows of which
sandboxes nobody was ever told. Answers hold access tokens, so they lie sealed on the disk.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from vmpool.journal import insert

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlite_utils import Database

    from vmpool.journal import Journal
    from vmpool.trust.sealing import Sealing


# The second condition is the index's own: without it all rows of the past would be looked through.
SETTLE = "UPDATE sandboxes SET ticket = x'' WHERE ticket = ? AND ticket != x''"
"""Takes a ticket off the sandboxes that were made with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """A good answer to a request with an idempotency key.

    Attributes:
        ticket: Of the one time that it was done, and of the sandboxes made then.
        asked: Digest of what was asked with it.
        body: `None` for one that was too large to be kept.
    """

    ticket: bytes
    owner: str
    key: str
    asked: bytes
    status: int
    body: bytes | None


class Answers:
    """The answers of a journal; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal, now_ns: Callable[[], int], sealing: Sealing) -> None:
        self._journal = journal
        self._sealing = sealing
        self._now_ns = now_ns

    async def record(self, answer: AnswerRow, *, keep: int, within_ns: int) -> None:
        """Record an answer before it is given, and that its sandboxes are somebody's.

        Args:
            keep: How many of its owner's are kept; the oldest are forgotten.
            within_ns: All that are older are forgotten.
        """
        body = answer.body
        if body is not None:
            body = self._sealing.seal_bytes(body, of=_owner_of(answer.ticket))
        row = asdict(answer) | {"body": body, "made_ns": self._now_ns()}

        def record(db: Database) -> None:
            insert(db, "answers", row, instead="REPLACE")
            db.execute(SETTLE, [answer.ticket])
            _forget(db, row["made_ns"] - within_ns)
            db.execute(
                """DELETE FROM answers WHERE owner = ? AND made_ns < (SELECT made_ns FROM answers
                WHERE owner = ? ORDER BY made_ns DESC LIMIT 1 OFFSET ?)""",
                [answer.owner, answer.owner, keep - 1],
            )

        await self._journal.run(record)

    async def recall(self, *, within_ns: int) -> list[AnswerRow]:
        """Return the answers of so many nanoseconds, the oldest first; forget the others."""
        since_ns = self._now_ns() - within_ns

        def recall(db: Database) -> list[AnswerRow]:
            _forget(db, since_ns)
            found = db.query(
                """SELECT ticket, owner, key, asked, status, body FROM answers
                ORDER BY made_ns, ticket"""
            )
            return [AnswerRow(**row) for row in found]

        return [self._opened(row) for row in await self._journal.run(recall)]

    def _opened(self, row: AnswerRow) -> AnswerRow:
        """Return a row as it was given; one that was sealed with a key that is lost has no body."""
        if row.body is None:
            return row
        return replace(row, body=self._sealing.unseal_bytes(row.body, of=_owner_of(row.ticket)))


def _owner_of(ticket: bytes) -> str:
    return f"answer {ticket.hex()}"


def _forget(db: Database, before_ns: int) -> None:
    db.execute("DELETE FROM answers WHERE made_ns < ?", [before_ns])
