"""A server that is killed takes nothing with it, and the next one has nothing too many."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from tests import estate
from tests.serving import Ground, client, until
from tests.tcg.conftest import UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]


@pytest.fixture
def other(ground: Ground, server: UpServer) -> Iterator[Ground]:
    """A state directory beside the shared server's, over the same images and snapshots."""
    with ground.beside("r") as beside:
        yield beside


async def test_after_kill_9_the_next_server_goes_on_with_all_that_was_promised(
    other: Ground,
) -> None:
    with UpServer(other, "--ready", "1") as first, first.process:
        async with client(first) as api:
            mine = await estate.build(api, "python")
            machine = other.state / "run/clones" / estate.clone_of(other, mine.id)
            pid = json.loads((machine / "machine.json").read_text())["pid"]
            await until(lambda: estate.has_spare(api))
        left = {at.name for at in other.clones} - {machine.name}
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert left, "the pool had a clone that nobody had"
    half = other.state / "snapshots/.partial-half"
    half.mkdir()

    with UpServer(other, "--ready", "1") as second:
        assert left.isdisjoint(at.name for at in other.clones)
        assert not half.exists()
        assert not any("booting" in line for line in second.lines), "the snapshot was not reused"
        async with client(second) as api:
            await mine.require_going_on(api)
            assert estate.clone_of(other, mine.id) == machine.name
            assert pid in other.hypervisors()
            await mine.require_use(api)
            await estate.asked(api, "POST", f"/v1/sandboxes/{mine.asleep}/pause", 200)
        assert second.stop(signal.SIGTERM) == 0

    assert other.clones == []
    open_rows = estate.rows(other, "SELECT id FROM sandboxes WHERE ended_ns IS NULL")
    assert open_rows == [mine.asleep]


def test_a_second_server_on_the_same_state_is_refused_in_words(
    ground: Ground, server: UpServer
) -> None:
    rival = UpServer(ground, "--check")
    assert rival.process.wait(120) != 0
    rival.stop()
    said = "".join(rival.lines)
    assert "another server runs on" in said
    assert "Traceback" not in said
