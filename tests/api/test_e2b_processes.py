"""The RPC service `process.Process`, asked as E2B's clients ask it, and as they never would."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from vmpool.api.e2b.envelope import END, MESSAGE, enclose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.api.conftest import Server

GRACE = 30.0
STREAM = "application/connect+json"


def frame(message: object) -> bytes:
    return enclose(MESSAGE, json.dumps(message).encode())


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Incoming:
    """The messages of one stream, as they come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content

    async def next(self) -> tuple[int, Any]:
        flags, size = struct.unpack(">BI", await self._content.readexactly(5))
        return flags, json.loads(await self._content.readexactly(size))

    async def started(self) -> int:
        """Return the process id that the first message has."""
        flags, said = await self.next()
        assert (flags, list(said["event"])) == (MESSAGE, ["start"]), said
        return int(said["event"]["start"]["pid"])

    async def until(self, wanted: str, stream: str = "stdout") -> str:
        seen = ""
        while wanted not in seen:
            _, said = await self.next()
            seen += base64.b64decode(said["event"]["data"][stream]).decode()
        return seen

    async def rest(self) -> tuple[dict[str, str], Any, Any]:
        """Return what was written still, the end and what the last frame says."""
        texts = {"stdout": "", "stderr": "", "pty": ""}
        end = None
        while True:
            flags, said = await self.next()
            if flags == END:
                assert self._content.at_eof() or not await self._content.read()
                return texts, end, said
            if "end" in said["event"]:
                end = said["event"]["end"]
                continue
            for stream, data in said["event"].get("data", {}).items():
                texts[stream] += base64.b64decode(data).decode()


class Processes:
    """The service of one sandbox."""

    def __init__(self, server: Server, made: dict[str, Any]) -> None:
        self.id, self.server = made["id"], server
        self.headers = {
            "E2b-Sandbox-Id": made["id"],
            "E2b-Sandbox-Port": "49983",
            "X-Access-Token": made["access_token"],
            "Connect-Protocol-Version": "1",
        }

    async def ask(self, method: str, body: object, **headers: str) -> tuple[int, Any]:
        async with asyncio.timeout(GRACE):
            return await self.server.call(
                "POST", f"/process.Process/{method}", json=body, headers=self.headers | headers
            )

    @contextlib.asynccontextmanager
    async def stream(self, method: str, body: Any, **headers: str) -> AsyncIterator[Incoming]:
        data = frame(body) if isinstance(body, dict) else body
        headers = self.headers | {"Content-Type": STREAM} | headers
        url = f"{self.server.url}/process.Process/{method}"
        async with (
            asyncio.timeout(GRACE),
            self.server.session.post(url, data=data, headers=headers) as response,
        ):
            assert (response.status, response.content_type) == (200, STREAM)
            yield Incoming(response)

    def start(self, line: str, **more: Any) -> Any:
        process = {"cmd": "/bin/bash", "args": ["-c", line]}
        return self.stream("Start", {"process": process, "stdin": False} | more)

    async def refusal(self, method: str, body: Any, **headers: str) -> tuple[str, str]:
        """Return the code and message of an error that is all there is in a stream."""
        async with self.stream(method, body, **headers) as incoming:
            flags, said = await incoming.next()
            assert flags == END
            return said["error"]["code"], said["error"]["message"]

    async def pids(self) -> list[int]:
        status, answer = await self.ask("List", {})
        assert status == 200
        return [process["pid"] for process in answer["processes"]]


@pytest.fixture
async def processes(server: Server) -> Processes:
    return Processes(server, await server.make_sandbox(env={"GIVEN": "1"}))


async def test_a_command_is_told_from_its_start_to_its_end(processes: Processes) -> None:
    line = "echo $GIVEN $OWN $E2B_SANDBOX $E2B_SANDBOX_ID $PWD; echo err >&2; read x; exit 3"
    envs = {"OWN": "2"}
    process = {"cmd": "/bin/bash", "args": ["-c", line], "envs": envs, "cwd": "/"}
    async with processes.stream("Start", {"process": process, "stdin": False}) as incoming:
        assert await incoming.started() > 0
        texts, end, last = await incoming.rest()
    assert texts["stdout"] == f"1 2 true {processes.id} /\n"
    assert texts["stderr"] == "err\n"
    assert end == {
        "exitCode": 3,
        "exited": True,
        "status": "exit status 3",
        "error": "exit status 3",
    }
    assert last == {}
    async with processes.start("true") as incoming:
        _, end, _ = await incoming.rest()
    assert end == {"exitCode": 0, "exited": True, "status": "exit status 0"}


async def test_one_that_is_killed_is_reaped_told_of_and_then_unknown(
    processes: Processes,
) -> None:
    async with processes.start("sleep 1000 & wait") as incoming:
        pid = await incoming.started()
        named = {"process": {"pid": pid}}
        body = named | {"signal": "SIGNAL_SIGKILL"}
        assert await processes.ask("SendSignal", body) == (200, {})
        assert await processes.pids() == []
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        _, end, _ = await incoming.rest()
    assert end == {
        "exitCode": -1,
        "exited": False,
        "status": "signal: killed",
        "error": "signal: killed",
    }
    unknown = (404, {"code": "not_found", "message": f"process with pid {pid} not found"})
    assert await processes.ask("SendSignal", body) == unknown
    stdin = {"stdin": coded("a")}
    assert await processes.ask("SendInput", named | {"input": stdin}) == unknown
    assert await processes.ask("CloseStdin", named) == unknown
    async with processes.stream("Connect", named) as incoming:
        assert await incoming.started() == pid
        assert (await incoming.rest())[1]["status"] == "signal: killed"


async def test_one_that_is_killed_has_ended_though_another_holds_its_output(
    processes: Processes,
) -> None:
    # The one that leaves the group lives on, so that the output's end never comes by itself.
    async with processes.start("setsid sleep 60 & sleep 1000 & wait") as incoming:
        named = {"process": {"pid": await incoming.started()}}
        body = named | {"signal": "SIGNAL_SIGKILL"}
        assert await processes.ask("SendSignal", body) == (200, {})
        assert await processes.pids() == []
        assert (await processes.ask("SendSignal", body))[0] == 404
        assert (await incoming.rest())[1]["status"] == "signal: killed"


async def test_a_command_whose_time_is_up_is_killed_and_says_so(processes: Processes) -> None:
    body = {"process": {"cmd": "/bin/sleep", "args": ["1000"]}}
    headers = {"Connect-Timeout-Ms": "200"}
    async with processes.stream("Start", body, **headers) as incoming:
        await incoming.started()
        _, end, last = await incoming.rest()
    assert end is None
    assert last["error"]["code"] == "deadline_exceeded"
    assert await processes.pids() == []


async def test_a_command_outlives_its_client_and_is_found_by_pid_and_by_tag(
    processes: Processes,
) -> None:
    body = {
        "process": {"cmd": "/bin/cat", "envs": {"OWN": "2"}, "cwd": "/"},
        "tag": "mine",
    }
    async with processes.stream("Start", body) as incoming:
        pid = await incoming.started()
    config = {"cmd": "/bin/cat", "args": [], "envs": {"OWN": "2"}, "cwd": "/"}
    listed = {"processes": [{"config": config, "pid": pid, "tag": "mine"}]}
    assert await processes.ask("List", {}) == (200, listed)
    by_tag = {"process": {"tag": "mine"}}
    async with processes.stream("Connect", by_tag) as incoming:
        assert await incoming.started() == pid
        stdin = {"stdin": coded("word\n")}
        assert await processes.ask("SendInput", by_tag | {"input": stdin}) == (200, {})
        assert await incoming.until("\n") == "word\n"
        assert await processes.ask("CloseStdin", by_tag) == (200, {})
        assert (await incoming.rest())[1]["exitCode"] == 0
    assert await processes.refusal("Connect", by_tag) == (
        "not_found",
        "process with tag 'mine' not found",
    )


async def test_input_is_streamed_while_its_stream_is_open(processes: Processes) -> None:
    echoed = asyncio.Event()

    async def talk() -> AsyncIterator[bytes]:
        yield frame({"start": {"process": {"pid": pid}}})
        yield frame({"data": {"input": {"stdin": coded("one\n")}}})
        await echoed.wait()
        yield frame({"keepalive": {}})
        yield frame({"data": {"input": {"stdin": coded("two\n")}}})

    async with processes.stream("Start", {"process": {"cmd": "/bin/cat"}}) as incoming:
        pid = await incoming.started()
        streaming = asyncio.create_task(_answer(processes, talk()))
        assert await incoming.until("\n") == "one\n"
        echoed.set()
        assert await streaming == [(MESSAGE, {}), (END, {})]
        assert await incoming.until("\n") == "two\n"


async def _answer(processes: Processes, data: Any) -> list[tuple[int, Any]]:
    async with processes.stream("StreamInput", data) as incoming:
        answers = [await incoming.next()]
        if answers[0][0] != END:
            answers.append(await incoming.next())
        return answers


async def test_a_stream_of_input_ends_with_its_process(processes: Processes) -> None:
    async def keep_talking() -> AsyncIterator[bytes]:
        yield frame({"start": {"process": {"pid": pid}}})
        yield frame({"data": {"input": {"stdin": coded("one\n")}}})
        await asyncio.Event().wait()

    async with processes.start("read word", stdin=True) as incoming:
        pid = await incoming.started()
        assert await _answer(processes, keep_talking()) == [(MESSAGE, {}), (END, {})]
        assert (await incoming.rest())[1]["exitCode"] == 0
    ((_, said),) = await _answer(processes, keep_talking())
    assert said["error"]["code"] == "not_found"


async def test_a_terminal_is_typed_at_and_resized(processes: Processes) -> None:
    line = "stty size; read word; stty size; echo got $word; exit 5"
    async with processes.start(line, pty={"size": {"rows": 10, "cols": 20}}) as incoming:
        pid = await incoming.started()
        assert await incoming.until("\n", "pty") == "10 20\r\n"
        named = {"process": {"pid": pid}}
        bigger = {"pty": {"size": {"rows": 30, "cols": 40}}}
        assert await processes.ask("Update", named | bigger) == (200, {})
        typed = {"input": {"pty": coded("word\n")}}
        assert await processes.ask("SendInput", named | typed) == (200, {})
        texts, end, _ = await incoming.rest()
    assert texts["pty"].endswith("30 40\r\ngot word\r\n")
    assert end["exitCode"] == 5


async def test_what_a_guest_refuses_is_told_in_its_words(processes: Processes) -> None:
    def start(**more: Any) -> dict[str, Any]:
        return {"process": {"cmd": "/bin/true"} | more}

    basic = {"Authorization": "Basic " + coded("nobody-here:")}
    assert await processes.refusal("Start", start(), **basic) == (
        "unauthenticated",
        "invalid username: 'nobody-here'",
    )
    assert await processes.refusal("Start", start(cwd="/no/where")) == (
        "invalid_argument",
        "cwd '/no/where' does not exist",
    )
    code, message = await processes.refusal("Start", start(cmd="no-such-program"))
    assert (code, "no-such-program" in message) == ("invalid_argument", True)
    counts = b""
    async with asyncio.timeout(GRACE):  # counted behind the answer, whose status is 200
        while b'code="program_not_found",route="e2b 49983 /process.Process/Start"' not in counts:
            _, counts = await processes.server.call("GET", "/metrics")


NO_STARTS: tuple[dict[str, Any], ...] = (
    {},
    {"process": {}},
    {"process": {"cmd": ""}},
    {"process": {"cmd": "a\0b"}},
    {"process": {"cmd": "true", "args": ["\0"]}},
    {"process": {"cmd": "true", "args": ["x" * 200_000]}},
    {"process": {"cmd": "true", "envs": {"A=B": "1"}}},
    {"process": {"cmd": "true", "envs": {"A": 1}}},
    {"process": {"cmd": "true", "cwd": "x" * 5000}},
    {"process": {"cmd": "true"}, "tag": "x" * 300},
    {"process": {"cmd": "true"}, "pty": {"size": {"rows": 0, "cols": 80}}},
    {"process": {"cmd": "true"}, "pty": {"size": {"rows": 24, "cols": 70_000}}},
    {"process": {"cmd": "true"}, "stdin": "yes"},
)
NO_REQUESTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("SendInput", {"input": {}}),
    ("SendInput", {"input": {"stdin": "YQ==", "pty": "YQ=="}}),
    ("SendInput", {"input": {"stdin": "no base64"}}),
    ("SendSignal", {}),
    ("SendSignal", {"signal": "SIGNAL_SIGNIFICANT"}),
    ("SendSignal", {"signal": 64}),
    ("Update", {}),
    ("Update", {"pty": {"size": {"rows": -1}}}),
    ("CloseStdin", {"process": {}}),
    ("CloseStdin", {"process": {"pid": 1, "tag": "both"}}),
    ("CloseStdin", {"process": {"pid": -1}}),
    ("CloseStdin", {"process": {"pid": 1 << 40}}),
)
NO_INPUTS = (
    b"",
    frame({"data": {"input": {"stdin": "YQ=="}}}),
    frame({"start": {"process": {}}}),
    frame({"keepalive": {}}),
)


async def test_what_says_nothing_that_can_be_done_is_an_invalid_argument(
    processes: Processes,
) -> None:
    for start in NO_STARTS:
        assert (await processes.refusal("Start", start))[0] == "invalid_argument", start
    for method, more in NO_REQUESTS:
        status, answer = await processes.ask(method, {"process": {"pid": 1}} | more)
        assert (status, answer["code"]) == (400, "invalid_argument"), (method, more)
    for data in NO_INPUTS:
        assert (await processes.refusal("StreamInput", data))[0] == "invalid_argument", data
    assert await processes.pids() == []


async def test_nobody_gets_at_processes_with_the_token_of_another_sandbox(
    processes: Processes,
) -> None:
    other = await processes.server.make_sandbox()
    status, answer = await processes.ask("List", {}, **{"X-Access-Token": other["access_token"]})
    assert (status, answer["code"]) == (401, "unauthenticated")
    key = processes.server.token  # of its owner, who has it shown as what it is, or not at all
    status, _ = await processes.ask("List", {}, **{"X-Access-Token": key})
    assert status == 401


async def test_a_sandbox_that_is_killed_breaks_off_what_is_in_flight(
    processes: Processes,
) -> None:
    async def keep_talking() -> AsyncIterator[bytes]:
        yield frame({"start": {"process": {"pid": pid}}})
        await asyncio.Event().wait()

    async with processes.stream("Start", {"process": {"cmd": "/bin/cat"}}) as incoming:
        pid = await incoming.started()
        giving = asyncio.create_task(_answer(processes, keep_talking()))
        following = asyncio.create_task(_followed(processes, pid))
        body = {"process": {"pid": pid}, "input": {"stdin": coded("a")}}
        assert await processes.ask("SendInput", body) == (200, {})
        assert await incoming.until("a") == "a"
        status, _ = await processes.server.call("DELETE", f"/v1/sandboxes/{processes.id}")
        assert status == 204
        with pytest.raises(aiohttp.ClientError):
            await incoming.next()
        for task in (giving, following):
            with pytest.raises((aiohttp.ClientError, AssertionError)):
                await task
    status, answer = await processes.ask("List", {})
    assert (status, answer["message"]) == (502, "The sandbox was not found")


async def _followed(processes: Processes, pid: int) -> None:
    async with processes.stream("Connect", {"process": {"pid": pid}}) as incoming:
        await incoming.started()
        await incoming.rest()
