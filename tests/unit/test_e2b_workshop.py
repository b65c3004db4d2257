"""What is kept of builds and sent for them is bounded, and no tenant's share is another's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from vmpool.api.e2b.templates import archives as archives_module
from vmpool.api.e2b.templates import workshop as workshop_module
from vmpool.api.e2b.templates.archives import Archives
from vmpool.api.e2b.templates.build import (
    CHARACTERS_MOST,
    LEFT_OUT,
    LINE_MOST,
    Build,
    Lines,
    State,
)
from vmpool.api.e2b.templates.recipe import Recipe
from vmpool.api.e2b.templates.workshop import Workshop
from vmpool.errors import CapacityError, DiskFullError, NotFoundError
from vmpool.model import Stream
from vmpool.store import BuildRow, LineRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


def build() -> Build:
    return Build(id="b", owner="a", name="n", tags=())


def test_a_log_is_bounded_in_characters_and_still_says_why_the_build_failed() -> None:
    made = build()
    lines = Lines(made)
    for _ in range(CHARACTERS_MOST // LINE_MOST + 10):
        lines.feed(Stream.STDOUT, "\N{GRINNING FACE}".encode() * LINE_MOST + b"\n")
    assert made.entries[-1].message == LEFT_OUT
    assert sum(len(entry.message) for entry in made.entries) <= CHARACTERS_MOST + len(LEFT_OUT)
    made.say("more")
    made.fail("because")
    assert [entry.message for entry in made.entries[-2:]] == [LEFT_OUT, "because"]
    assert [entry.message for entry in made.entries].count(LEFT_OUT) == 1


def test_what_the_builder_says_is_cut_but_not_how_it_went() -> None:
    made = build()
    made.say("[builder 1/1] RUN " + "x" * 100_000)
    made.fail(f"failed to run command {'x' * 100_000!r}: exit status 3")
    assert [len(entry.message) for entry in made.entries] == [LINE_MOST, LINE_MOST]
    assert made.reason == made.entries[-1].message
    assert made.reason.startswith("failed to run command 'xxx")
    assert made.reason.endswith("xxx': exit status 3")


class Paper:
    """Records how builds went."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}
        self.logs: dict[str, list[str]] = {}
        self.full = False

    async def save(
        self, build: BuildRow, *, keep: int, lines: Sequence[LineRow], first: int
    ) -> None:
        assert keep > 0
        if self.full:
            raise DiskFullError("no room")
        self.ends[build.id] = build.state
        self.logs.setdefault(build.id, [])[first:] = [each.message for each in lines]


def shop(tmp_path: Path) -> Workshop:
    """Return a workshop where nothing is made, of a host that has a directory and paper."""
    settings, store = SimpleNamespace(state=tmp_path), SimpleNamespace(builds=Paper())
    return Workshop(cast("Any", SimpleNamespace(settings=settings, store=store)))


def failed(workshop: Workshop, owner: str) -> Build:
    made = workshop.promise(owner=owner, name="n", tags=())
    made.begun = True
    made.fail("for a reason")
    return made


def test_a_tenant_with_many_builds_makes_nobody_elses_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop_module, "KNOWN_MOST", 4)
    workshop = shop(tmp_path)
    mine = failed(workshop, "modest")
    waits = workshop.promise(owner="greedy", name="n", tags=())
    theirs = [failed(workshop, "greedy") for _ in range(10)]
    workshop.promise(owner="greedy", name="n", tags=())
    assert workshop.find(mine.id, owner="modest").state is State.ERROR
    assert workshop.find(waits.id, owner="greedy") is waits
    for each in theirs[:6]:
        with pytest.raises(NotFoundError):
            workshop.find(each.id, owner="greedy")
    for each in theirs[6:]:
        assert workshop.find(each.id, owner="greedy") is each


class SlowBuilder:
    """Makes builds that are over when they are told to be; the first begun is the first."""

    begun: list[tuple[str, asyncio.Event]]

    def __init__(self, _host: object, build: Build, *_: object) -> None:
        self.build = build

    async def run(self) -> None:
        over = asyncio.Event()
        SlowBuilder.begun.append((self.build.owner, over))
        await over.wait()
        self.build.state = State.READY


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_tenants_take_turns_at_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop_module, "Builder", SlowBuilder)
    begun: list[tuple[str, asyncio.Event]] = []
    SlowBuilder.begun = begun
    workshop = shop(tmp_path)
    for owner in (*["greedy"] * 4, "modest", "third", "third"):
        made = workshop.promise(owner=owner, name="n", tags=())
        workshop.begin(made, Recipe(base="b", steps=()))
    await settle()
    assert [owner for owner, _ in begun] == ["greedy", "modest"]
    for number in range(4):
        begun[number][1].set()
        await settle()
    order = [owner for owner, _ in begun]
    assert order == ["greedy", "modest", "third", "greedy", "third", "greedy"]
    await workshop.close()


class TalkativeBuilder(SlowBuilder):
    """Says something before it waits to be told to be over."""

    async def run(self) -> None:
        self.build.say("one")
        await super().run()


async def test_what_is_said_is_recorded_before_the_build_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop_module, "Builder", TalkativeBuilder)
    SlowBuilder.begun = []
    workshop = shop(tmp_path)
    made = workshop.promise(owner="a", name="n", tags=())
    workshop.begin(made, Recipe(base="b", steps=()))
    await settle()
    paper = cast("Paper", workshop._host.store.builds)
    assert paper.logs[made.id] == ["one"]
    made.say("two")
    assert [entry.message for entry in await workshop.log_of(made)] == ["one", "two"]
    assert paper.logs[made.id] == ["one", "two"], "what is told is recorded before"
    paper.full = True
    made.say("three")
    await settle()
    assert [entry.message for entry in await workshop.log_of(made)] == ["one", "two", "three"]
    paper.full = False
    (over,) = (over for _, over in SlowBuilder.begun)
    over.set()
    await settle()
    assert (paper.ends[made.id], paper.logs[made.id]) == ("ready", ["one", "two", "three"])
    await workshop.close()


class Sender:
    """Sends a piece at a time to an address, each when it is told to."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.pieces.get():
            yield piece


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archives:
    """Archives of which a tenant may have three bytes, and each byte is a piece."""
    monkeypatch.setattr(archives_module, "TENANT_MOST", 3)
    monkeypatch.setattr(archives_module, "_PIECE_BYTES", 1)
    return Archives(tmp_path)


async def test_an_address_that_is_used_at_once_takes_no_more_than_its_tenant_may(
    archives: Archives, tmp_path: Path
) -> None:
    address = archives.address("greedy", "0")
    senders = [Sender() for _ in range(2)]
    for sender in senders:
        sender.pieces.put_nowait(b"x")
        sender.pieces.put_nowait(b"x")
    tasks = [asyncio.create_task(archives.receive(address, aiter(each))) for each in senders]
    done, waits = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    (refused,) = done
    error = refused.exception()
    assert isinstance(error, CapacityError)
    assert error.error_code == "uploads_busy"
    assert len(list(tmp_path.glob("*/*"))) == 1  # what was written of it is gone
    other = Sender()
    for piece in (b"abc", b""):
        other.pieces.put_nowait(piece)
    await archives.receive(archives.address("modest", "0"), aiter(other))
    for sender in senders:
        sender.pieces.put_nowait(b"y")  # nor does it count any more
        sender.pieces.put_nowait(b"")
    await asyncio.gather(*waits)
    found = archives.find("greedy", "0")
    assert found is not None
    assert found.read_bytes() == b"xxy"


def test_a_tenant_with_many_addresses_ends_its_own_alone(
    archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives_module, "ADDRESSES_MOST", 4)
    modest = archives.address("modest", "0")
    greedy = [archives.address("greedy", str(number)) for number in range(10)]
    archives.require(modest)
    for ended in greedy[:6]:
        with pytest.raises(NotFoundError):
            archives.require(ended)
    for good in greedy[6:]:
        archives.require(good)


def test_addresses_whose_time_is_up_are_kept_no_longer(
    archives: Archives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives_module, "ADDRESS_SECONDS", -1.0)
    ended = [archives.address(owner, "0") for owner in ("a", "b", "c")]
    monkeypatch.undo()
    archives.address("d", "0")
    assert len(archives._addresses) == 1
    for each in ended:
        with pytest.raises(NotFoundError):
            archives.require(each)


async def test_an_archive_that_made_room_meanwhile_is_in_nobodys_way(
    archives: Archives, tmp_path: Path
) -> None:
    sender = Sender()
    for piece in (b"abc", b"", b"abc", b""):
        sender.pieces.put_nowait(piece)
    await archives.receive(archives.address("a", "0"), aiter(sender))
    (directory,) = tmp_path.iterdir()
    (directory / "gone").symlink_to("nowhere")  # listed, and then not to be found
    await archives.receive(archives.address("a", "1"), aiter(sender))
    assert archives.find("a", "1") is not None
    assert archives.find("a", "0") is None
