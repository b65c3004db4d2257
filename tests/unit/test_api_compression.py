"""Packed bodies: however much comes of little, others have their turn."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest

from vmpool.api import compression

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TURNS = 16


@pytest.mark.parametrize(
    "chunk", [gzip.compress(bytes(TURNS * compression.PIECE_BYTES)), gzip.compress(b"") * TURNS]
)
async def test_others_have_their_turn_while_a_chunk_is_unpacked(chunk: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield chunk

    async def drop() -> None:
        async for _ in compression.unpacked(chunks()):
            pass

    turns = 0
    dropping = asyncio.create_task(drop())
    while not dropping.done():
        await asyncio.sleep(0)
        turns += 1
    await dropping
    assert turns >= TURNS
