"""Processes that stay, over HTTP: start, list, follow, talk to, signal, resize, kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from tests.api.conftest import Server

GRACE = 30.0


class Sandbox:
    """The processes of one sandbox, over HTTP."""

    def __init__(self, server: Server, id: str) -> None:
        self.server = server
        self.path = f"/v1/sandboxes/{id}/processes"

    async def start(self, *argv: str, **body: Any) -> int:
        status, answer = await self.server.call("POST", self.path, json={"argv": argv, **body})
        assert status == 201, answer
        return int(answer["pid"])

    async def call(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        return await self.server.call(method, f"{self.path}{path}", **request)

    async def look(self, pid: int) -> dict[str, Any]:
        status, answer = await self.call("GET", "")
        assert status == 200
        (found,) = [each for each in answer["processes"] if each["pid"] == pid]
        return dict(found)

    async def follow(self, pid: int, backlog_bytes: int = 1 << 20) -> list[dict[str, Any]]:
        url = f"{self.server.url}{self.path}/{pid}?backlog_bytes={backlog_bytes}"
        async with asyncio.timeout(GRACE), self.server.session.get(url) as response:
            assert response.status == 200
            assert response.content_type == "application/x-ndjson"
            return [json.loads(line) async for line in response.content]

    def socket(self, pid: int, query: str = "") -> Any:
        return self.server.session.ws_connect(f"{self.server.url}{self.path}/{pid}/attach{query}")


@pytest.fixture
async def sandbox(server: Server) -> Sandbox:
    made = await server.make_sandbox(env={"GIVEN": "1"})
    return Sandbox(server, made["id"])


def text(lines: list[dict[str, Any]], kind: str = "stdout") -> str:
    return "".join(line["data"] for line in lines if line["type"] == kind)


async def test_a_process_outlives_its_request_and_tells_its_end(sandbox: Sandbox) -> None:
    line = "read word; echo $word $GIVEN $OWN; echo err >&2; exit 3"
    pid = await sandbox.start("bash", "-c", line, env={"OWN": "2"}, tag="mine", cwd="/")
    listed = await sandbox.look(pid)
    assert (listed["tag"], listed["cwd"], listed["ended"]) == ("mine", "/", None)
    assert listed["argv"] == ["bash", "-c", line]
    assert listed["env"]["OWN"] == "2"
    assert listed["stdin_open"]
    assert await sandbox.call("PUT", f"/{pid}/input", data=b"word\n") == (204, b"")
    lines = await sandbox.follow(pid)
    assert lines[0] == {"type": "attached", "pid": pid, "skipped_bytes": 0}
    assert (text(lines), text(lines, "stderr")) == ("word 1 2\n", "err\n")
    assert (lines[-1]["type"], lines[-1]["exit_code"]) == ("exit", 3)
    ended = await sandbox.look(pid)
    assert (ended["ended"]["exit_code"], ended["ended"]["fault"]) == (3, "task")
    assert ended["output_bytes"] == ended["backlog_bytes"] == len("word 1 2\nerr\n")


async def test_a_follower_that_leaves_lets_the_process_go_on(sandbox: Sandbox) -> None:
    pid = await sandbox.start("cat")
    url = f"{sandbox.server.url}{sandbox.path}/{pid}"
    async with sandbox.server.session.get(url) as response:
        assert json.loads(await response.content.readline())["type"] == "attached"
    assert await sandbox.call("PUT", f"/{pid}/input?eof=true", data=b"still here") == (204, b"")
    lines = await sandbox.follow(pid)
    assert (text(lines), lines[-1]["exit_code"]) == ("still here", 0)


async def test_a_socket_is_a_conversation_that_leaves_the_process_alone(sandbox: Sandbox) -> None:
    pid = await sandbox.start("bash", "-c", "while read a; do echo got $a; done")
    for word in ("one", "two"):
        async with asyncio.timeout(GRACE), sandbox.socket(pid) as socket:
            assert (await socket.receive_json())["type"] == "attached"
            await socket.send_json({"stdin": f"{word}\n"})
            assert (await socket.receive_json())["data"] == f"got {word}\n"
    async with asyncio.timeout(GRACE), sandbox.socket(pid, "?backlog_bytes=8") as socket:
        assert (await socket.receive_json())["skipped_bytes"] == 8
        assert (await socket.receive_json())["data"] == "got two\n"
        await socket.send_bytes(b"three\n")
        await socket.send_json({"stdin_base64": "Zm91cgo="})
        await socket.send_json({"eof": True})
        lines = [json.loads(message.data) async for message in socket]
    assert text(lines) == "got three\ngot four\n"
    assert lines[-1]["exit_code"] == 0
    assert socket.close_code == 1000


async def test_a_terminal_is_resized_and_interrupted(sandbox: Sandbox) -> None:
    # Interrupted when stty has ended: what interrupts a child that then ends well, bash ignores.
    line = "stty size; read go; stty size; read go; stty size; echo up; read go; sleep 1000"
    pid = await sandbox.start("bash", "-c", line, pty={"rows": 10, "cols": 20})
    async with asyncio.timeout(GRACE), sandbox.socket(pid, "?backlog_bytes=100") as socket:
        seen = ""
        for end, say in (
            ("10 20\r\n", {"resize": {"rows": 30, "cols": 40}}),
            ("30 40\r\n", None),
            ("50 60\r\nup\r\n", {"stdin": "\x03"}),
        ):
            while not seen.endswith(end):
                seen += (await socket.receive_json()).get("data", "")
            if say is None:
                size = {"rows": 50, "cols": 60}
                assert await sandbox.call("POST", f"/{pid}/resize", json=size) == (204, b"")
            else:
                await socket.send_json(say)
            await socket.send_json({"stdin": "\r"})
        lines = [json.loads(message.data) async for message in socket]
    assert lines[-1]["signal"] == signal.SIGINT
    assert (await sandbox.look(pid))["pty"] == {"rows": 50, "cols": 60}


async def test_a_kill_answers_when_the_process_is_gone_and_may_come_twice(
    sandbox: Sandbox,
) -> None:
    pid = await sandbox.start("sleep", "1000")
    for _ in range(2):
        assert await sandbox.call("DELETE", f"/{pid}") == (204, b"")
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert (await sandbox.follow(pid))[-1]["signal"] == signal.SIGKILL


async def test_a_signal_goes_to_the_group(sandbox: Sandbox) -> None:
    pid = await sandbox.start("sleep", "1000")
    assert await sandbox.call("POST", f"/{pid}/signal", json={"signal": 15}) == (204, b"")
    assert (await sandbox.follow(pid))[-1]["signal"] == signal.SIGTERM


async def test_a_start_that_is_sent_twice_is_done_once(sandbox: Sandbox) -> None:
    request = {"json": {"argv": ["cat"]}, "headers": {"Idempotency-Key": "start"}}
    (_, first), (_, second) = [await sandbox.call("POST", "", **request) for _ in range(2)]
    assert first == second
    assert len((await sandbox.call("GET", ""))[1]["processes"]) == 1


@pytest.mark.parametrize(
    ("asked", "request_", "answer"),
    [
        ("POST ", {"json": {"argv": ["there-is-none"]}}, (400, "program_not_found")),
        ("POST ", {"json": {"argv": []}}, (400, "invalid_request")),
        ("POST ", {"json": {"argv": ["a"], "timeout": 1e9}}, (400, "invalid_timeout")),
        ("POST ", {"json": {"argv": ["a"], "pty": {"rows": 0}}}, (400, "invalid_request")),
        ("GET /1", {}, (404, "process_not_found")),
        ("GET /one", {}, (404, "process_not_found")),
        ("GET /PID/attach", {}, (426, "upgrade_required")),
        ("DELETE /1", {}, (404, "process_not_found")),
        ("POST /1/signal", {"json": {"signal": 9}}, (404, "process_not_found")),
        ("POST /PID/signal", {"json": {"signal": 65}}, (400, "invalid_request")),
        ("POST /PID/resize", {"json": {"rows": 1, "cols": 1}}, (409, "no_terminal")),
        ("PUT /1/input", {"data": b"x"}, (404, "process_not_found")),
        ("GET /PID?backlog_bytes=-1", {}, (400, "invalid_request")),
    ],
)
async def test_what_cannot_be_asked_is_an_ordinary_problem(
    sandbox: Sandbox, asked: str, request_: dict[str, Any], answer: tuple[int, str]
) -> None:
    pid = await sandbox.start("cat")
    method, path = asked.replace("PID", str(pid)).split(" ")
    status, problem = await sandbox.call(method, path, **request_)
    assert (status, problem["code"]) == answer


async def test_a_bad_message_ends_the_conversation_and_not_the_process(sandbox: Sandbox) -> None:
    pid = await sandbox.start("cat")
    async with asyncio.timeout(GRACE), sandbox.socket(pid) as socket:
        await socket.receive_json()
        await socket.send_json({"stdin": "a", "eof": True})
        assert (await socket.receive_json())["problem"]["code"] == "invalid_request"
        await socket.receive()
    assert socket.close_code == 1008
    assert (await sandbox.look(pid))["ended"] is None


async def test_somebody_else_sees_no_processes(sandbox: Sandbox) -> None:
    status, problem = await sandbox.call("GET", "", headers=sandbox.server.as_other())
    assert (status, problem["code"]) == (404, "sandbox_not_found")


async def test_a_sandbox_that_ends_tells_those_who_follow(sandbox: Sandbox) -> None:
    pid = await sandbox.start("cat")
    url = f"{sandbox.server.url}{sandbox.path}/{pid}"
    async with (
        asyncio.timeout(GRACE),
        sandbox.server.session.get(url) as following,
        sandbox.socket(pid) as socket,
    ):
        await following.content.readline()  # both follow before the sandbox ends
        await socket.receive_json()
        path = sandbox.path.removesuffix("/processes")
        assert (await sandbox.server.call("DELETE", path))[0] == 204
        followed = [json.loads(line) async for line in following.content]
        for last in (followed[-1], await socket.receive_json()):
            assert last["problem"]["code"] == "sandbox_ended"
