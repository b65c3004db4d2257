"""Build: one template in the making, as those see it who wait for it.

What it writes down is bounded: a guest may say more than anyone would read. It does nothing itself.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vmpool.derivation import number_of
from vmpool.model import Stream
from vmpool.store import BuildRow, LineRow

if TYPE_CHECKING:
    from collections.abc import Sequence

ENTRIES_MOST: Final = 10_000
CHARACTERS_MOST: Final = 1 << 18
"""Lines and characters of a log, without the last line that says why the build failed."""

LINE_MOST: Final = 4096
"""Characters of a line in the log; the rest of a longer one that a command says is the next."""

LEFT_OUT: Final = "the log ends here: there is too much of it"


class Level(StrEnum):
    """What a line in the log is worth."""

    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class State(StrEnum):
    """How far a build is."""

    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        step: Number of the step from 1, or what it is beside the steps; empty for none.
    """

    at_ns: int
    level: Level
    message: str
    step: str

    @classmethod
    def of(cls, row: LineRow) -> Entry:
        """Return a line that was recorded."""
        return cls(at_ns=row.at_ns, level=Level(row.level), message=row.message, step=row.step)

    @property
    def row(self) -> LineRow:
        """What is recorded of it."""
        return LineRow(
            at_ns=self.at_ns, level=self.level.value, message=self.message, step=self.step
        )


class Build:
    """One build.

    Attributes:
        id: A UUID.
        owner: Id of the tenant whose it is.
        name: Of the template, without a tag.
        tags: What it is to be found by, beside the name.
        vcpus: Of the machine that it is to have; `None` for as many as its base's.
        memory_bytes: Likewise.
        step: Where it is.
        reason: Why it failed, in at most `LINE_MOST` characters; empty while it has not.
        made_at: When this process came to know of it, on the clock of `time.monotonic`.
        made_ns: When it was promised.
        entries: The log, as far as it is `remembered`.
        remembered: Whether the log is here; that of an earlier server's build is in the journal.
        noted: How many entries the journal has.
        news: Set with each entry, for whoever records them.
    """

    def __init__(self, *, id: str, owner: str, name: str, tags: tuple[str, ...]) -> None:
        self.id = id
        self.owner = owner
        self.name = name
        self.tags = tags
        self.vcpus: int | None = None
        self.memory_bytes: int | None = None
        self.state = State.WAITING
        self.begun = False
        self.made_ns = time.time_ns()
        self.entries: list[Entry] = []
        self.remembered = True
        self.noted = 0
        self.news = asyncio.Event()
        self.reason = ""
        self.step = ""
        self.made_at = time.monotonic()
        self._characters = 0
        self._full = False

    @classmethod
    def of(cls, row: BuildRow) -> Build:
        """Return a build that a server before this one has recorded, without its log."""
        build = cls(id=row.id, owner=row.owner, name=row.name, tags=row.tags)
        build.state, build.step, build.reason = State(row.state), row.step, row.reason
        build.vcpus, build.memory_bytes = row.vcpus, row.memory_bytes
        build.begun, build.made_ns = build.state is not State.WAITING, row.made_ns
        build.remembered = not build.begun  # before, it says nothing
        return build

    def remember(self, lines: Sequence[LineRow]) -> None:
        """Take the log that a server before this one has recorded. *Idempotent.*"""
        if not self.remembered:
            self.entries[:0] = map(Entry.of, lines)
            self.noted, self.remembered = len(lines), True

    @property
    def row(self) -> BuildRow:
        """What is recorded of it; one that waits for its turn was begun."""
        waits = self.begun and self.state is State.WAITING
        return BuildRow(
            id=self.id,
            owner=self.owner,
            name=self.name,
            tags=self.tags,
            vcpus=self.vcpus,
            memory_bytes=self.memory_bytes,
            state=(State.BUILDING if waits else self.state).value,
            step=self.step,
            reason=self.reason,
            made_ns=self.made_ns,
        )

    @property
    def unnoted(self) -> list[LineRow]:
        """What the journal has not of its log, yet."""
        return [each.row for each in self.entries[self.noted :]]

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.state in {State.READY, State.ERROR}

    def say(self, message: str, level: Level = Level.INFO) -> None:
        """Write a line into the log, without the middle of one that is too long."""
        if self._full:
            return
        message = _cut(message)
        self._characters += len(message)
        if len(self.entries) >= ENTRIES_MOST - 1 or self._characters > CHARACTERS_MOST:
            self._full = True
            message, level = LEFT_OUT, Level.WARN
        self._write(message, level)

    def fail(self, reason: str) -> None:
        """Note that nothing comes of it, and why. *Idempotent*; the first reason stays."""
        if not self.over:
            self.state, self.reason = State.ERROR, _cut(reason)
            self._write(self.reason, Level.ERROR)

    def _write(self, message: str, level: Level) -> None:
        entry = Entry(at_ns=time.time_ns(), level=level, message=message, step=self.step)
        self.entries.append(entry)
        self.news.set()


class Lines:
    """What a command says, line by line into a build's log; `close` after the last of it."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in Stream
        }
        self._rest = dict.fromkeys(Stream, "")

    def feed(self, stream: Stream, data: bytes) -> None:
        """Take what came."""
        text = self._rest[stream] + self._decoders[stream].decode(data)
        *lines, rest = text.split("\n")
        for line in lines:
            self._say(line)
        while len(rest) > LINE_MOST:
            self._say(rest[:LINE_MOST])
            rest = rest[LINE_MOST:]
        self._rest[stream] = rest

    def close(self) -> None:
        """Take what did not end with a line's end."""
        for rest in self._rest.values():
            if rest:
                self._say(rest)
        self._rest = dict.fromkeys(Stream, "")

    def _say(self, line: str) -> None:
        plain = line.rstrip("\r")
        for start in range(0, max(len(plain), 1), LINE_MOST):
            self._build.say(plain[start : start + LINE_MOST])


def build_id(snapshot: str) -> str:
    """Return the build that a snapshot is of; for one of an image, a number that stays."""
    number = number_of(snapshot)
    return str(UUID(number if number is not None else snapshot.ljust(32, "0")[:32]))


def _cut(message: str) -> str:
    """Return a message that fits into a line: what was done begins it, and how it went ends it."""
    if len(message) <= LINE_MOST:
        return message
    end = LINE_MOST // 4
    return f"{message[: LINE_MOST - end - 1]}…{message[-end:]}"
