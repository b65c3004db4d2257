"""The audit log: found by whom and what, cut in length and number, tenant by tenant."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from vmpool.errors import StoreError
from vmpool.journal import Journal
from vmpool.store import AuditFilter, Store
from vmpool.store.audit import DETAIL_BYTES, Audit

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_audit_log_tells_the_newest_first_and_can_be_cut(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        for number in range(5):
            detail = {"n": number}
            await store.audit.record(
                "create", subject=str(number), tenant_id="local", detail=detail
            )
        await store.audit.record("kill", subject="x", tenant_id="t", outcome="not_found")
        log = await store.audit.entries(2)
        assert [(row.action, row.outcome) for row in log] == [
            ("kill", "not_found"),
            ("create", "ok"),
        ]
        assert log[1].detail == {"n": 4}
        assert await store.audit.prune("local", keep=1) == 4
        assert await store.audit.prune("local", keep=1) == 0
        assert [row.subject for row in await store.audit.entries(100)] == ["x", "4"]
        await store.audit.prune_all(keep=0)
        assert await store.audit.entries(100) == []


def note(audit: Audit, subject: str) -> None:
    audit.note("run", subject=subject, tenant_id="t", token_id=None, outcome="ok", detail={})


async def until_written(audit: Audit) -> None:
    while audit.waiting:  # noqa: ASYNC110 it tells nobody
        await asyncio.sleep(0)


def written(path: Path) -> int:
    """Return how many entries anybody else would find in the file."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        return int(other.execute("SELECT count(*) FROM audit").fetchone()[0])


async def test_what_is_noted_is_written_later_and_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.store.audit.LINGER", 3600.0)
    async with Store(tmp_path / "db") as store:
        for number in range(3):
            note(store.audit, str(number))
        await store.open_sandboxes()  # whatever comes to the journal next
        assert written(tmp_path / "db") == 0
        assert [row.subject for row in await store.audit.entries(100)] == ["2", "1", "0"]
        assert written(tmp_path / "db") == 3
        note(store.audit, "last")
    assert written(tmp_path / "db") == 4


async def test_a_crowd_of_notes_waits_for_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.store.audit.LINGER", 3600.0)
    monkeypatch.setattr("vmpool.store.audit.TOGETHER", 3)
    async with Store(tmp_path / "db") as store, asyncio.timeout(60):
        for number in range(4):
            note(store.audit, str(number))
        await until_written(store.audit)  # the one over the number, too
        assert written(tmp_path / "db") == 4


async def test_notes_are_written_when_no_others_come(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store, asyncio.timeout(60):
        note(store.audit, "alone")
        await until_written(store.audit)
        assert written(tmp_path / "db") == 1


async def test_notes_that_the_journal_cannot_take_are_told_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Journal(tmp_path / "db", ()) as journal:
        audit = Audit(journal, lambda: 0)
        note(audit, "one")
        note(audit, "two")
        await audit.flush()
        assert audit.waiting == 0
    assert "the audit log lost run of one by t" in caplog.text
    assert "the audit log lost run of two by t" in caplog.text


async def test_a_log_that_cannot_be_shortened_loses_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vmpool.store.audit.PRUNE_EVERY", 1)

    async def full(audit: Audit, tenant_id: str, *, keep: int) -> int:
        del audit, keep
        raise StoreError(f"the disk is full, says {tenant_id}")

    monkeypatch.setattr(Audit, "prune", full)
    async with Store(tmp_path / "db") as store:
        for tenant in ("a", "b"):
            await store.audit.record("run", subject="s", tenant_id=tenant)
        assert [entry.tenant_id for entry in await store.audit.entries(9)] == ["b", "a"]
    assert "the audit log of tenant a stays too long: the disk is full" in caplog.text


async def test_what_one_tenant_does_pushes_no_others_entries_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.store.audit.PRUNE_EVERY", 5)
    monkeypatch.setattr("vmpool.store.audit.KEEP_AUDIT", 3)
    async with Store(tmp_path / "db") as store:
        await store.audit.record("create", subject="quiet", tenant_id="a")
        for number in range(20):
            await store.audit.record("run", subject=str(number), tenant_id="b")
        log = await store.audit.entries(100)
        assert len(log) <= 1 + 3 + 5
        assert log[-1].subject == "quiet"


async def test_entries_are_found_by_who_what_and_on_which(tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        for number in range(12):
            await store.audit.record(
                ("run", "kill")[number % 2],
                subject=str(number % 3),
                tenant_id=("t", "local")[number // 6],
            )

        async def found(**wanted: object) -> list[int]:
            entries = await store.audit.entries(100, AuditFilter(**wanted))  # type: ignore[arg-type]
            return [entry.id for entry in entries]

        assert await found() == list(range(12, 0, -1))
        assert await found(tenant_id="t") == [6, 5, 4, 3, 2, 1]
        assert await found(action="kill", subject="1") == [8, 2]
        assert await found(action="kill", subject="1", before=8) == [2]
        assert await found(subject="' OR 1=1 --") == []


@pytest.mark.parametrize("word", ["x", '"', "\\", "é", "\0"])
async def test_an_audit_entrys_detail_is_cut(tmp_path: Path, word: str) -> None:
    async with Store(tmp_path / "db") as store:
        await store.audit.record(
            "x", subject="y", tenant_id="local", detail={"image": word * 100_000}
        )
        (row,) = await store._rows("audit", "id")
        assert len(row["detail"]) <= DETAIL_BYTES
        (entry,) = await store.audit.entries(1)
        assert str(entry.detail["cut"]).startswith('{"image": ')
