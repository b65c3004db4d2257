"""Contexts over HTTP: interpreters that keep their state, in a guest that is a local process."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Server


@pytest.fixture
async def path(server: Server) -> str:
    """Where the contexts of a sandbox are."""
    return f"/v1/sandboxes/{(await server.make_sandbox())['id']}/contexts"


async def execute(server: Server, path: str, code: str, **body: Any) -> list[dict[str, Any]]:
    """Run code in a context; return its lines."""
    status, answer = await server.call("POST", f"{path}/exec", json={"code": code, **body})
    assert status == 200, answer
    return [json.loads(line) for line in answer.splitlines()]


async def test_a_context_is_made_used_listed_and_closed(server: Server, path: str) -> None:
    status, made = await server.call("POST", path, json={"language": "python", "cwd": "/"})
    assert (status, made["language"], made["state"], made["cwd"]) == (201, "python", "idle", "/")
    own = f"{path}/{made['id']}"
    await execute(server, own, "x = 41")
    lines = await execute(server, own, "print('grüße')\nx + 1")
    assert [line["type"] for line in lines] == ["started", "stdout", "result", "exit"]
    assert lines[0]["execution_count"] == 2
    assert lines[2] == {"type": "result", "mime": {"text/plain": "42"}, "is_main": True}
    assert (lines[3]["exit_code"], lines[3]["fault"]) == (0, None)
    status, listed = await server.call("GET", path)
    assert [(one["id"], one["executions"]) for one in listed["contexts"]] == [(made["id"], 2)]
    assert (await server.call("DELETE", own))[0] == 204
    status, problem = await server.call("DELETE", own)
    assert (status, problem["code"]) == (404, "context_not_found")


async def test_the_default_contexts_need_no_making(server: Server, path: str) -> None:
    both = await asyncio.gather(
        execute(server, f"{path}/default", "import os; os.getpid()"),
        execute(server, f"{path}/python", "import os; os.getpid()"),
    )
    assert both[0][1] == both[1][1]
    lines = await execute(server, f"{path}/bash", "echo $VMPOOL_SANDBOX_ID")
    assert lines[1] == {"type": "stdout", "data": f"{path.split('/')[3]}\n"}
    status, problem = await server.call("POST", f"{path}/c9/exec", json={"code": "1"})
    assert (status, problem["code"]) == (404, "context_not_found")


async def test_an_execution_is_interrupted_and_its_context_restarted(
    server: Server, path: str
) -> None:
    own = f"{path}/default"
    await execute(server, own, "x = 1")
    running = asyncio.create_task(execute(server, own, "import time; time.sleep(60)"))
    async with asyncio.timeout(20):
        while not (await server.call("POST", f"{own}/interrupt"))[1]["interrupted"]:
            pass
        lines = await running
    assert [line["type"] for line in lines] == ["started", "error", "exit"]
    assert lines[1]["name"] == "KeyboardInterrupt"
    assert (await execute(server, own, "x"))[1]["mime"] == {"text/plain": "1"}
    status, restarted = await server.call("POST", f"{own}/restart")
    assert (status, restarted["executions"]) == (200, 0)
    assert (await execute(server, own, "x"))[1]["name"] == "NameError"


async def test_a_client_that_leaves_interrupts_what_it_began(server: Server, path: str) -> None:
    own = f"{server.url}{path}/default/exec"
    async with asyncio.timeout(20):
        code = {"code": "print('begun', flush=True)\nimport time; time.sleep(60)"}
        async with server.session.post(own, json=code) as response:
            while b"begun" not in await response.content.readline():
                pass
        assert (await execute(server, f"{path}/default", "6 * 7"))[1]["mime"] == {
            "text/plain": "42"
        }


async def test_the_end_says_when_the_state_went_with_it(server: Server, path: str) -> None:
    lines = await execute(server, f"{path}/default", "import os; os._exit(3)")
    assert (lines[-1]["exit_code"], lines[-1]["context_lost"]) == (3, True)
    lines = await execute(server, f"{path}/default", "1")
    assert "context_lost" not in lines[-1]


@pytest.mark.parametrize(
    ("where", "body", "refusal"),
    [
        ("", {"language": "ruby"}, (400, "invalid_request")),
        ("", {"cwd": "/nowhere"}, (400, "cwd_not_found")),
        ("", {"cwd": "relative"}, (400, "invalid_path")),
        ("/default/exec", {"code": "1", "timeout": 1e9}, (400, "invalid_timeout")),
        ("/No-such/exec", {"code": "1"}, (404, "context_not_found")),
        ("/bash/exec", {"code": "1", "env": {"A.B": "1"}}, (400, "bad_request")),
    ],
)
async def test_what_cannot_be_done_says_why(
    server: Server, path: str, where: str, body: dict[str, Any], refusal: tuple[int, str]
) -> None:
    answered, problem = await server.call("POST", f"{path}{where}", json=body)
    assert (answered, problem["code"]) == refusal


async def test_a_context_is_nobody_elses(server: Server, path: str) -> None:
    status, problem = await server.call("GET", path, headers=server.as_other())
    assert (status, problem["code"]) == (404, "sandbox_not_found")
