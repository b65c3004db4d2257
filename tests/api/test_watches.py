"""What happens in a directory comes line by line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import Faults
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Serve, Server


@asynccontextmanager
async def watching(server: Server, sandbox: str, query: str) -> AsyncIterator[Any]:
    """Yield what returns the next line, once all that happens is told."""
    url = f"{server.url}/v1/sandboxes/{sandbox}/files/watch?{query}"
    async with asyncio.timeout(30), server.session.get(url) as response:
        assert response.content_type == "application/x-ndjson"

        async def line() -> dict[str, Any]:
            return dict(json.loads(await response.content.readline()))

        assert await line() == {"type": "watching"}
        yield line


async def test_changes_come_as_they_happen_up_to_the_directorys_end(
    server: Server, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    sandbox = (await server.make_sandbox())["id"]
    async with watching(server, sandbox, f"path={top}&recursive=true") as line:
        (top / "sub").mkdir()
        expected = {"type": "change", "directory": True, "destination": None}
        assert await line() == {"event": "created", "path": "sub"} | expected
        (top / "sub").rename(top / "moved")
        expected["destination"] = "moved"
        assert await line() == {"event": "moved", "path": "sub"} | expected
        (top / "moved" / "caf\udce9").touch()
        assert (await line())["path"].startswith("moved/caf\ufffd")
        top.rename(tmp_path / "elsewhere")
        assert (await line())["event"] == "gone"
        with pytest.raises(json.JSONDecodeError):
            await line()


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("path=/there/is/none", (404, "file_not_found")),
        ("path=/etc/passwd", (409, "not_a_directory")),
        ("path=relative", (400, "invalid_path")),
        ("path=/tmp&recursive=perhaps", (400, "invalid_request")),
    ],
)
async def test_what_cannot_be_watched_is_a_problem(
    server: Server, query: str, wanted: tuple[int, str]
) -> None:
    sandbox = (await server.make_sandbox())["id"]
    status, problem = await server.call("GET", f"/v1/sandboxes/{sandbox}/files/watch?{query}")
    assert (status, problem["code"]) == wanted


async def test_the_last_line_tells_why_a_watch_was_broken_off(
    serving: Serve, tmp_path: Path
) -> None:
    death = GuestError("the guest's kernel panicked", code="guest_panicked")
    async with serving(faults=Faults(death=death)) as server:
        made = await server.make_sandbox()
        async with watching(server, made["id"], f"path={tmp_path}") as line:
            assert (await server.call("DELETE", f"/v1/sandboxes/{made['id']}"))[0] == 204
            last = await line()
        assert (last["type"], last["problem"]["code"]) == ("problem", "sandbox_ended")
        made = await server.make_sandbox()
        (sandbox,) = server.host.sandboxes(owner=server.owner)
        async with watching(server, made["id"], f"path={tmp_path}") as line:
            os.kill(sandbox.clone.machine.pid, signal.SIGKILL)
            last = await line()
        assert last["problem"]["code"] == "guest_panicked"


async def test_a_reader_that_leaves_ends_the_watch_and_nothing_else(
    server: Server, tmp_path: Path
) -> None:
    sandbox = (await server.make_sandbox())["id"]
    with contextlib.suppress(ConnectionError):
        async with watching(server, sandbox, f"path={tmp_path}"):
            raise ConnectionError
    # One agent takes 256 operations at once: if none ended, one of these would be refused.
    for _ in range(300):
        async with watching(server, sandbox, f"path={tmp_path}"):
            pass


async def test_a_watcher_tells_what_happened_to_who_asks(server: Server, tmp_path: Path) -> None:
    url = f"/v1/sandboxes/{(await server.make_sandbox())['id']}/files/watchers"
    status, made = await server.call("POST", url, json={"path": str(tmp_path), "recursive": True})
    assert status == 201
    mine = f"{url}/{made['id']}"

    async def take() -> list[tuple[str, str]]:
        status, answer = await server.call("POST", f"{mine}/take", json={})
        assert status == 200, answer
        return [(one["event"], one["path"]) for one in answer["changes"]]

    assert await take() == []
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").touch()
    assert set(await take()) >= {("created", "sub"), ("created", "sub/file")}
    assert await take() == []
    status, refused = await server.call("POST", f"{mine}/take", json={}, headers=server.as_other())
    assert (status, refused["code"]) == (404, "sandbox_not_found")
    assert (await server.call("DELETE", mine))[0] == 204
    for method, path in (("POST", f"{mine}/take"), ("DELETE", mine)):
        status, refused = await server.call(method, path, json={} if method == "POST" else None)
        assert (status, refused["code"]) == (404, "watcher_not_found")
    status, refused = await server.call("POST", url, json={"path": f"{tmp_path}/nowhere"})
    assert (status, refused["code"]) == (404, "file_not_found")
