"""Who has a directory, and how the next one asks for it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmpool import tenure
from vmpool.errors import HostError

HOLDER = """
import asyncio, signal, sys
from pathlib import Path
from vmpool import tenure

async def main():
    asked = asyncio.Event()
    if sys.argv[2] == "obeys":
        asyncio.get_running_loop().add_signal_handler(tenure.HAND_OVER, asked.set)
    else:
        signal.signal(tenure.HAND_OVER, signal.SIG_IGN)
    async with tenure.held(Path(sys.argv[1])):
        print("held", flush=True)
        await asked.wait()

asyncio.run(main())
"""


@pytest.fixture(params=["obeys"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path, request.param], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


async def test_who_holds_a_directory_makes_way_when_asked(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert await tenure.succeed(tmp_path, within=30)
    assert await asyncio.to_thread(holder.wait, 10) == 0
    async with tenure.held(tmp_path):
        pass


@pytest.mark.parametrize("holder", ["ignores"], indirect=True)
async def test_one_that_does_not_make_way_is_given_up_in_words(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(HostError, match="did not end") as raised:
        await tenure.succeed(tmp_path, within=0.1)
    assert raised.value.error_code == "server_stays"
    assert holder.poll() is None


async def test_nobody_is_asked_where_nobody_holds_it(tmp_path: Path) -> None:
    assert not await tenure.succeed(tmp_path, within=1)
    async with tenure.held(tmp_path):
        pass
    assert not await tenure.succeed(tmp_path, within=1)


@pytest.mark.parametrize(
    "said",
    ["", "nonsense", f"{os.getpid()} 1\n", "4194304 1\n"],
    ids=["nothing", "nonsense", "this process in another life", "nobody"],
)
async def test_a_stranger_is_never_signalled(said: str, tmp_path: Path) -> None:
    lock = tmp_path / tenure.LOCK
    lock.write_text(said)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not await tenure.succeed(tmp_path, within=1)  # SIGUSR1 would end this process
