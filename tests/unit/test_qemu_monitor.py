"""What QEMU is sent on its control socket, and when."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_fuzz_qmp import GREETING, requests
from vmpool.engine.qemu.monitor import Monitor, listen
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class Slow:
    """Reads all that comes, and answers when a test says so.

    Attributes:
        heard: Commands that were read and not answered yet.
    """

    def __init__(self) -> None:
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._writer: asyncio.StreamWriter | None = None

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read until the other side hangs up."""
        self._writer = writer
        self._say(GREETING)
        async for request in requests(reader):
            if request["execute"] == "qmp_capabilities":
                self._say({"return": {}})
            else:
                self.heard.put_nowait(request)
        writer.transport.abort()

    async def answer(self, answer: dict[str, Any]) -> str:
        """Answer the next command; return its name."""
        async with asyncio.timeout(30):
            request = await self.heard.get()
        self._say({**answer, "id": request["id"]})
        return str(request["execute"])

    async def waiting(self) -> list[str]:
        """Return the names of what has come, once whatever was under way has."""
        for _ in range(50):
            await asyncio.sleep(0)
        found = [self.heard.get_nowait() for _ in range(self.heard.qsize())]
        for each in found:
            self.heard.put_nowait(each)
        return [each["execute"] for each in found]

    def _say(self, message: dict[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[Slow]:
    slow = Slow()
    with listen(tmp_path, "qmp") as server:
        serving = await asyncio.start_unix_server(slow.play, sock=server.dup())
        yield slow
        serving.close()
        await serving.wait_closed()


@pytest.fixture
async def monitor(qemu: Slow, tmp_path: Path) -> AsyncIterator[Monitor]:
    session = Monitor()
    await session.connect(tmp_path, "qmp")
    yield session
    await session.close()


async def test_commands_do_not_wait_for_each_others_answers(qemu: Slow, monitor: Monitor) -> None:
    asking = [asyncio.ensure_future(monitor.execute(name)) for name in ("stop", "cont")]
    assert await qemu.waiting() == ["stop", "cont"]
    for _ in asking:
        await qemu.answer({"return": {}})
    await asyncio.gather(*asking)


async def test_behind_a_descriptor_nothing_is_sent_before_it_was_taken(
    qemu: Slow, monitor: Monitor
) -> None:
    asking = [
        asyncio.ensure_future(each)
        for each in (
            monitor.execute("cont"),
            monitor.give_descriptor(0, "tap"),
            monitor.execute("netdev_add"),
            monitor.add_descriptor(0, 300),
            monitor.execute("stop"),
        )
    ]
    assert await qemu.waiting() == ["cont", "getfd"]
    for _ in range(2):
        await qemu.answer({"return": {}})
    assert await qemu.waiting() == ["netdev_add", "add-fd"]
    await qemu.answer({"return": {}})
    await qemu.answer({"return": {"fd": 9, "fdset-id": 300}})
    assert await qemu.waiting() == ["stop"]
    await qemu.answer({"return": {}})
    assert (await asyncio.gather(*asking))[3] == 9


async def test_what_is_behind_a_descriptor_that_was_refused_is_sent(
    qemu: Slow, monitor: Monitor
) -> None:
    giving = asyncio.ensure_future(monitor.give_descriptor(0, "tap"))
    asking = asyncio.ensure_future(monitor.execute("cont"))
    refusal = {"error": {"class": "GenericError", "desc": "no"}}
    assert await qemu.answer(refusal) == "getfd"
    with pytest.raises(EngineError):
        await giving
    assert await qemu.answer({"return": {}}) == "cont"
    await asking


async def test_what_is_behind_a_descriptor_that_nobody_waits_for_is_sent(
    qemu: Slow, monitor: Monitor
) -> None:
    giving = asyncio.ensure_future(monitor.give_descriptor(0, "tap"))
    asking = asyncio.ensure_future(monitor.execute("cont"))
    assert await qemu.waiting() == ["getfd"]
    giving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving
    for _ in range(2):
        await qemu.answer({"return": {}})
    await asking
