"""The Python client over a real guest, as a researcher would use it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

import vmpool
from vmpool.client.events import Output

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tcg.conftest import UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

PLOT = """
import matplotlib.pyplot as plt
print("plotting")
plt.plot([1, 4, 9])
plt.show()
"""
COUNT = "import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.4)"


def test_a_figure_is_shown_and_a_failure_is_told(server: UpServer) -> None:
    with vmpool.Client(server.url, state=server.ground.state) as client:
        result = client.run(PLOT).check()
        shown = result._repr_mimebundle_()
        assert 'src="data:image/png;base64,iVBOR' in shown["text/html"]
        assert "plotting" in shown["text/plain"]
        assert next(one.png for one in result.displays if one.png) is not None
        failed = client.run("1 / 0")
        assert failed.error is not None
        assert failed.error.name == "ZeroDivisionError"
        assert "ZeroDivisionError" in failed._repr_mimebundle_()["text/plain"]


def test_a_sandbox_streams_takes_input_and_moves_files(server: UpServer, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    with vmpool.Client(server.url, state=server.ground.state) as client:
        with client.sandbox(timeout=120, metadata={"test": "client"}) as held:
            held.files.upload(source, "/home/user/data")
            counted = held.run(argv=["wc", "-c", "/home/user/data"]).check()
            assert counted.stdout.split() == ["2000000", "/home/user/data"]
            held.files.download("/home/user/data", target)
            assert target.read_bytes() == content
            with held.exec(COUNT) as running:
                lines = [event.text for event in running if isinstance(event, Output)]
            assert "".join(lines) == "0\n1\n2\n"
            assert len(lines) > 1  # they came while it ran
            with held.interact(argv=["tr", "a-z", "A-Z"]) as talk:
                talk.write("hello\n")
                talk.close_stdin()
                assert talk.result().check().stdout == "HELLO\n"
            assert [info.id for info in client.sandboxes({"test": "client"})] == [held.id]
        assert list(client.sandboxes({"test": "client"})) == []


async def test_many_are_run_at_once(server: UpServer) -> None:
    async with vmpool.AsyncClient(server.url, state=server.ground.state) as client:
        results = await asyncio.gather(*(client.run(f"print({n} ** 2)") for n in range(4)))
    assert [result.stdout for result in results] == ["0\n", "1\n", "4\n", "9\n"]
    assert len({result.identity.machine_id for result in results if result.identity}) == 4
