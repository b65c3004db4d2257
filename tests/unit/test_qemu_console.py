"""A booting guest's console: kept to its end, never more than a limit, at a bounded price."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import watch
from vmpool.engine.qemu.console import LIMIT_BYTES, Console

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Said:
    """A console, the file it keeps, and the guest's end of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.console = Console(path)

    @property
    def kept(self) -> bytes:
        """What the file holds."""
        return self.path.read_bytes()

    def say(self, words: bytes) -> None:
        """Write as the guest does; the pipe must have room."""
        assert os.write(self.console.writer, words) == len(words)

    def hang_up(self) -> None:
        """Close the guest's end. *Idempotent.*"""
        if self.console.writer >= 0:
            os.close(self.console.writer)
            self.console.writer = -1


@pytest.fixture
async def said(tmp_path: Path) -> AsyncIterator[Said]:
    made = Said(tmp_path / "console")
    yield made
    made.hang_up()
    made.console.close()


async def test_what_a_guest_says_is_in_the_file_as_it_says_it(said: Said) -> None:
    said.say(b"one\n")
    await watch.holds(said.path, b"one\n")
    said.say(b"two\n")
    await watch.holds(said.path, b"one\ntwo\n")


async def test_its_last_words_are_kept_when_it_is_closed_at_once(said: Said) -> None:
    said.say(b"panic\n")
    said.console.close()
    said.console.close()
    assert said.kept == b"panic\n"


async def test_a_flood_keeps_its_end_and_no_more_than_the_limit(said: Said) -> None:
    for number in range(20):
        said.say(b"%06d\n" % number * (LIMIT_BYTES // 14))
        await watch.holds(said.path, b"%06d\n" % number)
        assert said.path.stat().st_size <= LIMIT_BYTES
    assert said.kept.endswith(b"000019\n")
    assert len(said.kept) >= LIMIT_BYTES // 2


async def test_a_flood_is_held_back_and_not_read_without_end(said: Said) -> None:
    os.set_blocking(said.console.writer, False)

    async def flood() -> None:
        for _ in range(2 * LIMIT_BYTES // 4096):
            said.say(bytes(4096))
            await asyncio.sleep(0)  # the loop may read as often as it likes

    with pytest.raises(BlockingIOError):
        await flood()


async def test_a_guest_that_ended_is_listened_to_no_more(said: Said) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    said.say(b"the end\n")
    said.hang_up()
    await watch.holds(said.path, b"the end\n")
    said.console.close()
    assert len(before - set(Path("/proc/self/fd").iterdir())) == 3  # the file and both ends
