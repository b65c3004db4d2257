"""What was promised is there after a crash; a file that cannot be trusted is refused in words."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.small_disk import mounted
from vmpool.errors import ConflictError, DiskFullError, NotFoundError, StoreError
from vmpool.journal import Durability, Journal
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.scope import Role
from vmpool.store import ImageRow, SandboxRow, Store, TemplateRow
from vmpool.store.schema import SCHEMA
from vmpool.store.tokens import LAST_USED_STEP_NS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlite_utils import Database

IMAGE = ImageRow(digest="sha256:1", name="python", size_bytes=5, created_ns=1)
TEMPLATE = TemplateRow(
    name="python",
    image_digest="sha256:1",
    snapshot_id="s1",
    limits={"ready": 2},
    memory_bytes=1 << 28,
    vcpus=1,
    disk_bytes=0,
    created_ns=2,
)
TABLE = (("CREATE TABLE notes (text TEXT NOT NULL UNIQUE) STRICT",),)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


def sandbox(name: str, **change: object) -> SandboxRow:
    values: dict[str, object] = {
        "id": name,
        "template": "python",
        "clone_id": "c" + name,
        "owner": "local",
        "state": SandboxState.RUNNING,
        "created_ns": 1,
        "deadline_ns": 100,
        "metadata": {"purpose": "täst"},
    }
    return SandboxRow(**values | change)  # type: ignore[arg-type]


def note(text: str) -> Callable[[Database], object]:
    return lambda db: db.execute("INSERT INTO notes VALUES (?)", [text])


def notes(db: Database) -> list[str]:
    return [row["text"] for row in db.query("SELECT text FROM notes ORDER BY rowid")]


def contents(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())


# Verbs.


async def test_images_and_templates_are_kept_and_templates_removed(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.save_image(IMAGE)
        await store.save_template(TEMPLATE)
    async with Store(tmp_path / "db") as store:
        assert await store.images() == [IMAGE]
        assert await store.templates() == [TEMPLATE]
        assert await store.template("python") == TEMPLATE
        await store.remove_template("python")
        assert await store.templates() == []


async def test_saving_again_replaces(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.save_image(IMAGE)
        await store.save_template(TEMPLATE)
        newer = replace(TEMPLATE, snapshot_id="s2", created_ns=3)
        await store.save_template(newer)
        await store.save_image(IMAGE)
        assert await store.templates() == [newer]


async def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        codes = set()
        for missing in (
            store.template("x"),
            store.remove_template("x"),
            store.save_template(TEMPLATE),
            store.tokens.revoke("x"),
            store.sandbox("x"),
            store.end_sandbox("x", EndReason.KILLED),
            store.set_deadline("x", 1),
        ):
            with pytest.raises(NotFoundError) as caught:
                await missing
            codes.add(caught.value.error_code)
        assert codes == {
            "template_not_found",
            "image_not_found",
            "token_not_found",
            "sandbox_not_found",
        }


async def test_a_token_is_found_until_it_is_revoked(tmp_path: Path) -> None:
    clock = Clock()
    async with Store(tmp_path / "db", now_ns=clock) as store:
        token, row = await store.tokens.add("ci", Role.ADMIN.scopes)
        assert len(token) == 44
        assert await store.tokens.find(token) == row
        await store.tokens.revoke(row.id)
        assert await store.tokens.find(token) is None
        revoked = (await store.tokens.list())[0].revoked_ns
        clock.now_ns += 5
        await store.tokens.revoke(row.id)
        assert (await store.tokens.list())[0].revoked_ns == revoked == 1_000_000_000


@pytest.mark.parametrize(
    "token", ["", "e2b_", "e2b_" + "0" * 40, "e2b_" + "G" * 40, "e2b_" + "0" * 41, "\0", "ü" * 99]
)
async def test_what_is_no_token_finds_nothing(tmp_path: Path, token: str) -> None:
    async with Store(tmp_path / "db") as store:
        await store.tokens.add("ci", Role.ADMIN.scopes)
        assert await store.tokens.find(token) is None


async def test_no_token_is_in_the_file(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        token, _ = await store.tokens.add("ci", Role.ADMIN.scopes)
        files = contents(tmp_path)
        assert b"ci" in files
        assert token.removeprefix("e2b_").encode() not in files
        assert bytes.fromhex(token.removeprefix("e2b_")) not in files


async def test_the_last_use_of_a_token_is_written_once_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    async with Store(tmp_path / "db", now_ns=clock) as store:
        token, _ = await store.tokens.add("ci", Role.ADMIN.scopes)
        await store.tokens.find(token)
        first = clock.now_ns
        clock.now_ns += LAST_USED_STEP_NS - 1
        await store.tokens.find(token)
        assert (await store.tokens.list())[0].last_used_ns == first
        clock.now_ns += 1
        await store.tokens.find(token)
        assert (await store.tokens.list())[0].last_used_ns == first + LAST_USED_STEP_NS


async def test_an_ended_sandbox_is_known_with_its_first_reason(tmp_path: Path) -> None:
    clock = Clock()
    async with Store(tmp_path / "db", now_ns=clock) as store:
        await store.record_sandbox(sandbox("a"))
        assert await store.open_sandboxes() == [sandbox("a")]
        await store.set_deadline("a", 200)
        await store.end_sandbox("a", EndReason.EXPIRED)
        clock.now_ns += 1
        await store.end_sandbox("a", EndReason.KILLED)
        await store.set_deadline("a", 300)
        assert await store.open_sandboxes() == []
        assert await store.sandbox("a") == sandbox(
            "a",
            deadline_ns=200,
            state=SandboxState.ENDED,
            ended_ns=clock.now_ns - 1,
            end_reason=EndReason.EXPIRED,
        )


async def test_pruning_forgets_by_age_and_by_number_and_never_an_open_one(tmp_path: Path) -> None:
    clock = Clock()
    async with Store(tmp_path / "db", now_ns=clock) as store:
        for number in range(5):
            clock.now_ns = number * 10
            await store.record_sandbox(sandbox(str(number)))
            await store.end_sandbox(str(number), EndReason.KILLED)
        await store.record_sandbox(sandbox("open"))
        assert await store.prune_sandboxes(ended_before_ns=10, keep=3) == 2
        with pytest.raises(NotFoundError):
            await store.sandbox("1")
        assert (await store.sandbox("2")).end_reason is EndReason.KILLED
        assert await store.prune_sandboxes(ended_before_ns=1_000, keep=0) == 3
        assert len(await store.open_sandboxes()) == 1


async def test_the_past_is_forgotten_while_new_rows_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.store.store.PRUNE_EVERY", 5)
    monkeypatch.setattr("vmpool.store.audit.PRUNE_EVERY", 5)
    monkeypatch.setattr("vmpool.store.store.KEEP_ENDED", 2)
    monkeypatch.setattr("vmpool.store.audit.KEEP_AUDIT", 3)
    async with Store(tmp_path / "db") as store:
        for number in range(20):
            await store.record_sandbox(sandbox(str(number)))
            await store.end_sandbox(str(number), EndReason.KILLED)
            await store.audit.record("x", subject=str(number), tenant_id="local")
            assert len(await store.audit.entries(100)) <= 3 + 5
        with pytest.raises(NotFoundError):
            await store.sandbox("10")
        assert (await store.sandbox("19")).end_reason is EndReason.KILLED


async def test_a_token_made_before_there_were_roles_stays_an_admin(tmp_path: Path) -> None:
    async with Journal(tmp_path / "db", SCHEMA[:1]) as journal:
        row = {"id": "old", "name": "ci", "hash": b"h", "created_ns": 1}
        await journal.run(lambda db: db.table("tokens").insert(row))
    async with Store(tmp_path / "db") as store:
        (token,) = await store.tokens.list()
        assert (token.id, token.tenant_id, token.scopes) == ("old", "old", Role.ADMIN.scopes)
        _, made = await store.tokens.add("new", Role.USE.scopes)
        assert (await store.tokens.list())[1] == made


# The journal.


async def test_what_was_written_survives_the_death_of_the_writer(tmp_path: Path) -> None:
    program = """
import asyncio, os, pathlib, signal, sys
from vmpool.store import ImageRow, Store
async def main():
    async with Store(pathlib.Path(sys.argv[1])) as store:
        await store.save_image(ImageRow(digest="d", name="n", size_bytes=1, created_ns=1))
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    argv = [sys.executable, "-c", program, os.fspath(tmp_path / "db")]
    process = await asyncio.to_thread(subprocess.run, argv, check=False)
    assert process.returncode == -signal.SIGKILL
    async with Store(tmp_path / "db") as store:
        assert [image.digest for image in await store.images()] == ["d"]


async def test_writes_that_come_together_are_one_commit(tmp_path: Path) -> None:
    commits: list[str] = []
    async with Journal(tmp_path / "db", TABLE) as journal:
        await journal.run(lambda db: db.conn.set_trace_callback(commits.append))
        commits.clear()
        await asyncio.gather(*(journal.run(note(str(n))) for n in range(50)))
        await journal.run(lambda db: db.conn.set_trace_callback(None))
        assert len(await journal.run(notes)) == 50
    assert 1 <= commits.count("COMMIT") <= 3


async def test_a_write_that_fails_spoils_no_other(tmp_path: Path) -> None:
    async with Journal(tmp_path / "db", TABLE) as journal:

        def write_and_fail(db: Database) -> None:
            db.execute("INSERT INTO notes VALUES ('half')")
            raise ConflictError("no")

        outcomes = await asyncio.gather(
            journal.run(note("a")),
            journal.run(write_and_fail),
            journal.run(note("a")),
            journal.run(note("b")),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], ConflictError)
        assert isinstance(outcomes[2], StoreError)
        assert await journal.run(notes) == ["a", "b"]


async def test_leaving_finishes_what_was_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    go_on = threading.Event()
    async with Journal(tmp_path / "db", TABLE) as journal:
        busy = asyncio.create_task(journal.run(lambda _: go_on.wait(5)))
        write = asyncio.create_task(journal.run(note("queued")))
        await asyncio.sleep(0)  # each task's first step: the thread is busy, the write is queued
        asyncio.get_running_loop().call_soon(go_on.set)
    await asyncio.gather(busy, write)
    with pytest.raises(StoreError) as caught:
        await journal.run(notes)
    assert caught.value.error_code == "store_closed"
    async with Journal(tmp_path / "db", TABLE) as journal:
        assert await journal.run(notes) == ["queued"]


async def test_a_caller_that_leaves_stops_nobody_else(tmp_path: Path) -> None:
    go_on = threading.Event()
    async with Journal(tmp_path / "db", TABLE) as journal:
        busy = asyncio.create_task(journal.run(lambda _: go_on.wait(5)))
        writes = [asyncio.create_task(journal.run(note(str(n)))) for n in range(9)]
        await asyncio.sleep(0)  # each task's first step: all are queued behind the busy thread
        for leaving in [busy, *writes[::2]]:
            leaving.cancel()
        go_on.set()
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert [isinstance(outcome, BaseException) for outcome in outcomes[1::2]] == [False] * 4


async def test_another_process_cannot_come_between_reading_and_writing(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "db", timeout=0, check_same_thread=False)

    def read_and_write(db: Database) -> None:
        notes(db)
        with suppress(sqlite3.OperationalError):
            other.execute("INSERT INTO notes VALUES ('theirs')")
        other.commit()
        db.execute("INSERT INTO notes VALUES ('ours')")

    async with Journal(tmp_path / "db", TABLE) as journal:
        await journal.run(read_and_write)
        assert await journal.run(notes) == ["ours"]
    other.close()


async def test_a_full_disk_has_its_own_error_and_the_file_stays_good(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store.save_image(IMAGE)
        await store._journal.run(lambda db: list(db.query("PRAGMA max_page_count = 1")))
        with pytest.raises(DiskFullError):
            await store.audit.record("x", subject="y" * 100_000, tenant_id="local")
        assert await store.images() == [IMAGE]
        assert await store.audit.entries(1) == []


async def test_what_a_full_disk_refused_was_not_written(tmp_path: Path) -> None:
    written: list[str] = []

    async def write_until_full(journal: Journal) -> None:
        for number in range(1000):
            text = f"{number} {'x' * 1500}"
            await journal.run(note(text), Durability.POWER_CUT)
            written.append(text)

    with mounted(tmp_path, "size=400k"):
        async with Journal(tmp_path / "db", TABLE) as journal:
            with pytest.raises(DiskFullError):
                await write_until_full(journal)
            assert await journal.run(notes) == written


async def test_only_what_must_survive_a_power_cut_waits_for_the_disk(tmp_path: Path) -> None:
    def synchronous(db: Database) -> object:
        return db.execute("PRAGMA synchronous").fetchone()[0]

    async with Journal(tmp_path / "db", TABLE) as journal:
        assert await journal.run(synchronous, Durability.POWER_CUT) == 2  # FULL
        assert await journal.run(synchronous) == 1  # NORMAL


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        await store._journal.run(lambda db: db.execute("PRAGMA user_version = 99"))
    with pytest.raises(StoreError) as caught:
        await Store(tmp_path / "db").__aenter__()
    assert caught.value.error_code == "store_newer"
    assert caught.value.remedy


async def test_an_older_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    async with Journal(tmp_path / "db", TABLE) as journal:
        await journal.run(note("kept"))
    newer = (*TABLE, ("ALTER TABLE notes ADD COLUMN author TEXT",))
    async with Journal(tmp_path / "db", newer) as journal:
        rows = await journal.run(lambda db: list(db.query("SELECT * FROM notes")))
        assert rows == [{"text": "kept", "author": None}]


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    broken = (*TABLE, ("ALTER TABLE notes ADD COLUMN author TEXT", "NONSENSE"))
    async with Journal(tmp_path / "db", TABLE):
        pass
    with pytest.raises(StoreError):
        await Journal(tmp_path / "db", broken).__aenter__()
    async with Journal(tmp_path / "db", TABLE) as journal:
        assert await journal.run(notes) == []


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"no database, " * 100)
    with pytest.raises(StoreError) as caught:
        await Store(tmp_path / "db").__aenter__()
    assert caught.value.error_code == "store_damaged"
    assert caught.value.remedy


async def test_a_damaged_page_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with Store(path) as store:
        for number in range(200):
            await store.audit.record("x" * 100, subject=str(number), tenant_id="local")
    data = bytearray(path.read_bytes())
    page = 4096 * (len(data) // 4096 - 3)
    data[page : page + 512] = os.urandom(512)
    path.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        await Store(path).__aenter__()
    assert caught.value.error_code == "store_damaged"


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file/db"):
        await Store(tmp_path / "file" / "db").__aenter__()


async def test_a_file_that_another_process_holds_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.journal.BUSY_TIMEOUT_MS", 10)
    async with Store(tmp_path / "db") as store:
        other = sqlite3.connect(tmp_path / "db")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError) as caught:
            await store.save_image(IMAGE)
        assert caught.value.error_code == "store_busy"
        other.execute("ROLLBACK")
        other.close()
        await store.save_image(IMAGE)


async def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    async with Store(tmp_path / "new" / "db") as store:
        await store.save_image(IMAGE)
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()
        }
        assert set(modes.values()) == {0o600}
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
