"""What a build has said is told by the server that comes after one that was killed."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from tests.api.template_builds import BASE, step_of
from tests.serving import Api, client
from tests.worlds import fake_world
from vmpool.api.e2b import defaults

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHY = "the server was killed; build it again"


async def test_the_log_of_a_build_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    with fake_world() as world:
        with world.serve() as server:
            async with client(server) as api:
                status, made = await api.call("POST", "/v1/templates", json=world.template)
                assert status == 201, made
                await furnish(api, tmp_path)
                ready = await begun(api, "ready", "echo this was done")
                whole = await told(api, ready, lambda found: found["status"] == "ready")
                cut = await begun(api, "cut", "echo this was said; sleep 600")
                before = await told(api, cut, lambda found: "this was said" in said(found))
            server.stop(signal.SIGKILL)
        with world.serve() as server:
            async with client(server) as api:
                assert await status_of(api, ready) == whole
                after = await status_of(api, cut)
                assert after["status"] == "error"
                assert after["reason"] == {"message": WHY, "step": "1"}
                *kept, last = after["logEntries"]
                assert kept == before["logEntries"]
                assert (last["message"], last["level"], last["step"]) == (WHY, "error", "1")
                _, page = await api.call("GET", f"{cut}/status?logsOffset={len(kept)}")
                assert page["logEntries"] == [last]
            server.stop(signal.SIGKILL)
        with world.serve() as server:
            async with client(server) as api:
                assert await status_of(api, cut) == after  # its end was said once
                _, sandboxes = await api.call("GET", "/v1/sandboxes")
                assert sandboxes["sandboxes"] == []


async def furnish(api: Api, directory: Path) -> None:
    """Make what builds begin with, whose commands run in a directory."""
    async with api.sandbox(env={defaults.DIRECTORY: str(directory)}) as sandbox:
        path = f"/v1/sandboxes/{sandbox}/checkpoints"
        status, kept = await api.call("POST", path, json={"name": BASE})
        assert status == 201, kept


async def begun(api: Api, name: str, line: str) -> str:
    """Have a command's outcome built; return where the build is asked after."""
    status, made = await api.call("POST", "/v3/templates", json={"name": name})
    assert status == 202, made
    path = f"/templates/{name}/builds/{made['buildID']}"
    body = {"fromTemplate": BASE, "steps": [step_of("RUN", line)]}
    status, answer = await api.call("POST", f"/v2{path}", json=body)
    assert status == 202, answer
    return path


async def told(api: Api, path: str, enough: Callable[[Any], bool]) -> Any:
    """Return how a build is once that is enough."""
    async with asyncio.timeout(120):
        while not enough(found := await status_of(api, path)):  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)
    return found


async def status_of(api: Api, path: str) -> Any:
    status, found = await api.call("GET", f"{path}/status")
    assert status == 200, found
    return found


def said(found: Any) -> list[str]:
    return [entry["message"] for entry in found["logEntries"]]
