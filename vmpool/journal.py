"""Journal: an SQLite file, one thread that uses it, and what can go wrong with it.

Work that comes while the thread is busy goes into one transaction together, each piece behind a
savepoint of its own: a crowd of writes costs one commit, and a failing one spoils no other. What is
in the tables is the store's business.

A commit survives the death of this process at once. It survives a power cut once the write-ahead
log was synced: when SQLite moves it into the file, or as a part of the commit for
`Durability.POWER_CUT`. Nothing that can fail comes after a commit: who is told of an error may rely
on it that nothing was written.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from sqlite_utils import Database

from vmpool.errors import DiskFullError, StoreError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

T = TypeVar("T")

BUSY_TIMEOUT_MS = 5000
"""How long another process, such as `vmpool token create`, may hold the write lock."""

Schema = tuple[tuple[str, ...], ...]
"""Statements that lead from each version of the schema to the next, from an empty file on."""


def insert(db: Database, table: str, row: Mapping[str, object], *, instead: str = "ABORT") -> None:
    """Add a row to a table; sqlite-utils' own asks for the schema first, each time.

    Args:
        table: A name of ours, as are the columns'.
        instead: What SQLite does when there is such a row: its conflict clause.
    """
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    sql = f"INSERT OR {instead} INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - names of ours
    db.execute(sql, list(row.values()))


class Durability(Enum):
    """What a write has survived when its call returns."""

    CRASH = auto()
    """The death of this process."""
    POWER_CUT = auto()
    """The death of the host."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    work: Callable[[Database], object]
    durability: Durability
    outcome: asyncio.Future[Any]


class Journal:
    """An SQLite file in use. An async context manager; leaving it finishes what was begun.

    Args:
        path: The file; made with its directory when missing, readable for its owner alone.
        schema: Its versions; `PRAGMA user_version` counts how many were applied.
    """

    def __init__(self, path: Path, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vmpool journal")
        self._database: Database | None = None
        self._pending: list[_Job] = []
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Open the file and bring its schema up to date.

        Raises:
            StoreError: `store_newer`, `store_damaged`, `store_busy` or `store_error`.
            DiskFullError: There is no room to open it.
        """
        opening = asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        try:
            self._database = await asyncio.shield(opening)
        except BaseException:
            self._thread.shutdown()  # waits for the opening, which the busy timeout bounds
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().conn.close()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish what was queued and close the file; anything later is refused."""
        database, self._database = self._database, None
        try:
            while self._writer is not None and not self._writer.done():
                await asyncio.shield(self._writer)
        finally:
            if database is not None:
                self._thread.submit(database.conn.close)
            self._thread.shutdown()

    async def run(
        self, work: Callable[[Database], T], durability: Durability = Durability.CRASH
    ) -> T:
        """Run `work` in a transaction on the journal's thread and return what it returns.

        When cancelled, `work` may have happened or may happen yet.

        Raises:
            StoreError: The file cannot be read or written, or the journal is closed.
            DiskFullError: The disk is full; `work` has not happened.
            VmpoolError: What `work` raised; it has not happened.
        """
        if self._database is None:
            raise StoreError(f"the journal {str(self.path)!r} is closed", code="store_closed")
        job = _Job(work, durability, asyncio.get_running_loop().create_future())
        self._pending.append(job)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(self._database), name="journal")
        return cast("T", await job.outcome)

    async def _write(self, database: Database) -> None:
        """Give the thread all that is pending, as long as there is something."""
        loop = asyncio.get_running_loop()
        while self._pending:
            jobs, self._pending = self._pending, []
            try:
                outcomes = await loop.run_in_executor(self._thread, self._transact, database, jobs)
            except Exception as error:  # noqa: BLE001 - the task's top: nobody may wait for ever
                outcomes = [error] * len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                if job.outcome.done():
                    continue  # its caller has left
                if isinstance(outcome, BaseException):
                    job.outcome.set_exception(outcome)
                else:
                    job.outcome.set_result(outcome)

    # On the thread.

    def _transact(self, database: Database, jobs: Sequence[_Job]) -> list[object]:
        """Return each job's result or error; all have the commit's when that fails."""
        connection = database.conn
        synced = any(job.durability is Durability.POWER_CUT for job in jobs)
        try:
            connection.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
            # at once for writing: a transaction that begins by reading cannot always go on to
            # write after another process did
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(database, job) for job in jobs]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return [self._wrapped(error)] * len(jobs)
        return outcomes

    def _attempt(self, database: Database, job: _Job) -> object:
        try:
            with database.atomic():
                return job.work(database)
        except sqlite3.Error as error:
            if not database.conn.in_transaction:
                raise  # SQLite has rolled all of it back, what the other jobs wrote too
            return self._wrapped(error)
        except Exception as error:  # noqa: BLE001 - handed to the job's caller
            return error

    def _open(self) -> Database:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(self.path, flags, 0o600))
            connection = sqlite3.connect(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self._wrapped(error) from error
        try:
            return self._prepared(connection)
        except sqlite3.Error as error:
            connection.close()
            raise self._wrapped(error) from error
        except StoreError:
            connection.close()
            raise

    def _prepared(self, connection: sqlite3.Connection) -> Database:
        database = Database(connection)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA foreign_keys = ON")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise self._damaged(verdict)
        self._migrate(connection)
        return database

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            self._check_version(version)
            for statements in self._schema[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(self._schema)}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _check_version(self, version: int) -> None:
        known = len(self._schema)
        if version > known:
            raise StoreError(
                f"{str(self.path)!r} has schema {version}, this vmpool knows up to {known}",
                code="store_newer",
                remedy="use the vmpool that wrote it, or a newer one",
            )

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"{str(self.path)!r} is damaged: {what}",
            code="store_damaged",
            remedy="stop vmpool and put a backup in its place; or move it away and begin anew, and"
            " move away the directory 'checkpoints' too, for what no journal knows is removed",
        )

    def _wrapped(self, error: OSError | sqlite3.Error) -> VmpoolError:
        """Return an error of the operating system or of SQLite as one of ours."""
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL" or getattr(error, "errno", None) == errno.ENOSPC:
            wrapped: VmpoolError = DiskFullError(
                f"no room to write {str(self.path)!r}: {error}", remedy="make room on that disk"
            )
        elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            wrapped = self._damaged(str(error))
        elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            wrapped = StoreError(
                f"another process holds {str(self.path)!r}: {error}",
                code="store_busy",
                remedy="find it with fuser(1) and stop it",
            )
        else:
            wrapped = StoreError(f"cannot use {str(self.path)!r}: {error}")
        wrapped.__cause__ = error
        return wrapped
