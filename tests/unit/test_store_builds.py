"""What the journal keeps of builds: a tenant's latest, for a week."""

from __future__ import annotations

from pathlib import Path

from vmpool.store import BuildRow, LineRow, Store
from vmpool.store.builds import KEEP_NS


def row(id: str, *, owner: str = "a", made_ns: int) -> BuildRow:
    return BuildRow(
        id=id, owner=owner, name="n", tags=("one", "two"), vcpus=2, state="building", step="1",
        reason="", made_ns=made_ns,
    )  # fmt: skip


def line(message: str) -> LineRow:
    return LineRow(at_ns=1, level="info", message=message, step="2")


async def test_a_build_is_there_as_it_was_saved_last(tmp_path: Path) -> None:
    first = row("1", made_ns=1)
    async with Store(tmp_path / "db", now_ns=lambda: 10) as store:
        await store.builds.save(first, keep=3)
        await store.builds.save(first, keep=3)
        await store.builds.save(row("2", made_ns=2), keep=3)
    async with Store(tmp_path / "db") as store:
        assert await store.builds.all() == [first, row("2", made_ns=2)]


async def test_those_of_long_ago_and_too_many_are_forgotten(tmp_path: Path) -> None:
    now = 0
    async with Store(tmp_path / "db", now_ns=lambda: now) as store:
        await store.builds.save(row("other", owner="b", made_ns=1), keep=2)
        for number in range(4):
            await store.builds.save(row(str(number), made_ns=number + 2), keep=2)
        assert [each.id for each in await store.builds.all()] == ["other", "2", "3"]
        now = KEEP_NS + 5
        await store.builds.save(row("late", owner="c", made_ns=now), keep=2)
        assert [each.id for each in await store.builds.all()] == ["3", "late"]


async def test_a_log_is_added_to_and_goes_with_its_build(tmp_path: Path) -> None:
    said = [line("one"), line("two\0 \N{GRINNING FACE}"), line("three")]
    async with Store(tmp_path / "db", now_ns=lambda: 10) as store:
        await store.builds.save(row("1", made_ns=1), keep=1, lines=said[:2])
        await store.builds.save(row("1", made_ns=1), keep=1, lines=said[1:], first=1)
        await store.builds.save(row("1", made_ns=1), keep=1)
    async with Store(tmp_path / "db", now_ns=lambda: 10) as store:
        assert await store.builds.lines("1") == said
        assert await store.builds.lines("2") == []
        await store.builds.save(row("2", made_ns=2), keep=1, lines=said[:1])
        assert await store.builds.lines("2") == said[:1]
        assert await store.builds.lines("1") == []
