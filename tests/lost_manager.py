"""A manager of one machine that comes to a point, says so, and waits to be killed there.

python -m tests.lost_manager ENGINE SNAPSHOT DIRECTORY POINT
"""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fakes import FakeEngine
from vmpool import snapshot
from vmpool.engine.qemu import QemuEngine
from vmpool.model import Attachment

if TYPE_CHECKING:
    from vmpool.engine import Engine, Machine


class Point(StrEnum):
    """Where a manager is when it is killed."""

    WAITING = "the machine waits for a state"
    IDLE = "the machine runs"
    PREPARED = "a capture is prepared"
    PAUSED = "the machine is paused for a capture"
    TAKEN = "a capture is taken, and the machine still paused"
    WRITTEN = "a capture is written, and not left"


async def main(name: str, directory: Path, at: Attachment, point: Point) -> None:
    """Come to `point` and stay."""
    engine: Engine = FakeEngine() if name == "fake" else await QemuEngine.detect()
    template = snapshot.load(directory)
    shell = await engine.prepare(template, at)
    if point is not Point.WAITING:
        machine = await shell.load(template)
        await machine.resume()
        if point is not Point.IDLE:
            await _capture(machine, directory.parent, point)
    await _stay()


async def _capture(machine: Machine, snapshots: Path, point: Point) -> None:
    async with machine.capture(snapshot.begin(snapshots)) as capture:
        if point is not Point.PREPARED:
            await machine.pause()
            if point is not Point.PAUSED:
                await capture.take()
                if point is not Point.TAKEN:
                    await machine.resume()
                    await capture.write()
        await _stay()


async def _stay() -> None:
    print("there", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    named, source, run, last = sys.argv[1:]
    asyncio.run(main(named, Path(source), Attachment(directory=Path(run)), Point(last)))
