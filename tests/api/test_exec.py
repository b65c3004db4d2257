"""Exec: lines come as they are said, and end when the reader does."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.fakes import Faults
from vmpool import timed_execution
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Serve, Server

GRACE = 20.0
"""Seconds until a process that should end counts as living on."""


async def lines_of(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        yield json.loads(line)


async def execute(server: Server, sandbox: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    status, answer = await server.call("POST", f"/v1/sandboxes/{sandbox['id']}/exec", json=body)
    assert status == 200, answer
    return [json.loads(line) for line in answer.splitlines()]


async def ended(descriptor: int) -> None:
    """Return when the process behind a pidfd has ended."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(GRACE):
            await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def test_lines_say_all_that_happened(server: Server) -> None:
    sandbox = await server.make_sandbox()
    code = "import sys; print('grüße'); print('err', file=sys.stderr); 6*7"
    lines = await execute(server, sandbox, code=code)
    assert lines[0]["type"] == "started"
    assert {"type": "stdout", "data": "grüße\n"} in lines
    assert {"type": "stderr", "data": "err\n"} in lines
    assert {"type": "result", "mime": {"text/plain": "42"}, "is_main": True} in lines
    last = lines[-1]
    assert (last["type"], last["exit_code"], last["fault"]) == ("exit", 0, None)
    raised = await execute(server, sandbox, code="1/0")
    assert [line["name"] for line in raised if line["type"] == "error"] == ["ZeroDivisionError"]
    assert raised[-1]["fault"] == "task"


async def test_stdin_is_written_while_output_is_read(server: Server) -> None:
    sandbox = await server.make_sandbox()
    text = "a line that comes back\n" * 40_000
    lines = await execute(server, sandbox, argv=["cat"], stdin=text)
    assert "".join(line.get("data", "") for line in lines) == text


async def test_stdin_that_nobody_reads_is_no_failure(server: Server) -> None:
    sandbox = await server.make_sandbox()
    lines = await execute(server, sandbox, argv=["true"], stdin="x" * 1_000_000)
    assert lines[-1]["exit_code"] == 0


async def test_characters_are_whole_and_other_bytes_survive(server: Server) -> None:
    sandbox = await server.make_sandbox()
    split = "import os,time\nfor b in 'ü€'.encode(): os.write(1, bytes([b])); time.sleep(0.02)"
    lines = await execute(server, sandbox, argv=["python3", "-c", split])
    seen = [line["data"] for line in lines if line["type"] == "stdout"]  # what came together is one
    assert "".join(seen) == "ü€"
    lines = await execute(server, sandbox, argv=["printf", r"a\377"])
    assert base64.b64decode(lines[1]["data_base64"]) == b"a\xff"
    lines = await execute(server, sandbox, argv=["printf", r"\303"])
    assert base64.b64decode(lines[1]["data_base64"]) == b"\xc3"


async def test_the_first_line_comes_while_the_process_still_runs(
    server: Server, tmp_path: Path
) -> None:
    sandbox = await server.make_sandbox()
    path = f"/v1/sandboxes/{sandbox['id']}"
    go = tmp_path / "go"
    os.mkfifo(go)
    script = f"echo first; read word < {go}; echo $word"
    async with server.session.post(
        f"{server.url}{path}/exec", json={"argv": ["bash", "-c", script]}
    ) as response:
        lines = lines_of(response)
        assert (await anext(lines))["type"] == "started"
        assert (await anext(lines))["data"] == "first\n"
        body = {"argv": ["bash", "-c", f"echo second > {go}"]}
        assert (await server.call("POST", f"{path}/exec", json=body))[0] == 200
        assert [line.get("data") async for line in lines] == ["second\n", None]


async def test_a_reader_that_leaves_ends_the_whole_process_group(server: Server) -> None:
    sandbox = await server.make_sandbox()
    script = "sleep 1000 & echo $!; wait"
    response = await server.session.post(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec", json={"argv": ["bash", "-c", script]}
    )
    lines = lines_of(response)
    leader = os.pidfd_open((await anext(lines))["pid"])
    child = os.pidfd_open(int((await anext(lines))["data"]))
    response.close()
    await ended(leader)
    await ended(child)
    assert (await server.call("GET", f"/v1/sandboxes/{sandbox['id']}"))[0] == 200


async def test_a_slow_reader_holds_the_guest_back_and_fills_no_memory(
    server: Server, tmp_path: Path
) -> None:
    sandbox = await server.make_sandbox()
    done = tmp_path / "done"
    size = 64 << 20
    script = f"head -c {size} /dev/zero | tr '\\0' x; touch {done}"
    async with server.session.post(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec", json={"argv": ["bash", "-c", script]}
    ) as response:
        assert json.loads(await response.content.readline())["type"] == "started"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20):
            assert (await execute(server, sandbox, argv=["true"]))[-1]["exit_code"] == 0
        assert not done.exists()
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kib < 24 << 10
        received = 0
        async for line in lines_of(response):
            received += len(line.get("data", ""))
    assert received == size
    assert done.exists()


async def test_a_reader_that_takes_nothing_is_given_up(serving: Serve) -> None:
    async with serving(stall_timeout=0.3) as server:
        sandbox = await server.make_sandbox()
        response = await server.session.post(
            f"{server.url}/v1/sandboxes/{sandbox['id']}/exec", json={"argv": ["yes"]}
        )
        leader = os.pidfd_open(json.loads(await response.content.readline())["pid"])
        await ended(leader)
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_a_guest_that_does_not_keep_its_time_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_execution, "GRACE", 0.2)
    made = await server.make_sandbox()
    path = f"{server.url}/v1/sandboxes/{made['id']}/exec"
    (sandbox,) = server.host.sandboxes(owner=server.owner)
    body = {"argv": ["sleep", "600"], "timeout": 3.0}
    async with asyncio.timeout(GRACE), server.session.ws_connect(path) as socket:
        await socket.send_json(body)
        async with server.session.post(path, json=body) as response:
            lines = lines_of(response)
            assert (await anext(lines))["type"] == "started"
            assert (await socket.receive_json())["type"] == "started"
            os.kill(sandbox.clone.machine.pid, signal.SIGSTOP)
            for last in ([line async for line in lines][-1], await socket.receive_json()):
                assert (last["type"], last["problem"]["code"]) == ("problem", "guest_unresponsive")


async def test_a_sandbox_that_ends_tells_those_who_read(server: Server) -> None:
    sandbox = await server.make_sandbox()
    async with server.session.post(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec", json={"argv": ["sleep", "1000"]}
    ) as response:
        lines = lines_of(response)
        assert (await anext(lines))["type"] == "started"
        assert (await server.call("DELETE", f"/v1/sandboxes/{sandbox['id']}"))[0] == 204
        last = [line async for line in lines][-1]
    assert last["type"] == "problem"
    assert last["problem"]["code"] == "sandbox_ended"
    # The connection that carried it is in order and serves the next request.
    assert (await server.call("GET", "/healthz"))[0] == 200


async def test_a_start_that_fails_is_an_ordinary_problem(server: Server) -> None:
    sandbox = await server.make_sandbox()
    status, problem = await server.call(
        "POST", f"/v1/sandboxes/{sandbox['id']}/exec", json={"argv": ["there-is-none"]}
    )
    assert (status, problem["code"]) == (400, "program_not_found")


async def test_a_socket_takes_input_in_every_form(server: Server) -> None:
    sandbox = await server.make_sandbox()
    async with server.session.ws_connect(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    ) as socket:
        await socket.send_json({"argv": ["cat"], "stdin": "0"})
        await socket.send_json({"stdin": "1"})
        await socket.send_json({"stdin_base64": "Mg=="})
        await socket.send_bytes(b"3")
        await socket.send_json({"eof": True})
        lines = [json.loads(message.data) async for message in socket]
    assert "".join(line.get("data", "") for line in lines) == "0123"
    assert lines[-1]["exit_code"] == 0
    assert socket.close_code == 1000


async def test_a_socket_is_a_conversation(server: Server) -> None:
    sandbox = await server.make_sandbox()
    async with server.session.ws_connect(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    ) as socket:
        await socket.send_json({"argv": ["bash", "-c", "while read a; do echo got $a; done"]})
        assert (await socket.receive_json())["type"] == "started"
        for word in ("one", "two"):
            await socket.send_json({"stdin": f"{word}\n"})
            assert (await socket.receive_json())["data"] == f"got {word}\n"
        await socket.send_json({"signal": 15})
        last = await socket.receive_json()
    assert (last["type"], last["signal"]) == ("exit", 15)


async def test_a_socket_takes_input_while_output_is_read(server: Server) -> None:
    sandbox = await server.make_sandbox()
    text = "a line that comes back\n" * 40_000
    path = f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    async with asyncio.timeout(GRACE), server.session.ws_connect(path) as socket:
        await socket.send_json({"argv": ["cat"], "stdin": text})
        await socket.send_json({"eof": True})
        lines = [json.loads(message.data) async for message in socket]
    assert "".join(line.get("data", "") for line in lines) == text
    assert lines[-1]["exit_code"] == 0


async def test_a_socket_tells_the_end_of_a_program_that_left_its_input(server: Server) -> None:
    sandbox = await server.make_sandbox()
    path = f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    script = "cat; head -c 300000 /dev/zero | tr '\\0' x; exit 3"
    async with asyncio.timeout(GRACE), server.session.ws_connect(path) as socket:
        await socket.send_json({"argv": ["bash", "-c", script]})
        await socket.send_json({"eof": True})
        await socket.send_json({"stdin": "too late"})
        lines = [json.loads(message.data) async for message in socket]
    assert sum(len(line.get("data", "")) for line in lines) == 300_000
    assert (lines[-1]["type"], lines[-1].get("exit_code")) == ("exit", 3)


async def test_a_socket_that_closes_ends_the_process(server: Server) -> None:
    sandbox = await server.make_sandbox()
    async with server.session.ws_connect(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    ) as socket:
        await socket.send_json({"argv": ["sleep", "1000"]})
        leader = os.pidfd_open((await socket.receive_json())["pid"])
    await ended(leader)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", "invalid_json"),
        ('{"stdin": "a", "eof": true}', "invalid_request"),
        ("{}", "invalid_request"),
        ('{"signal": 4000}', "invalid_request"),
    ],
)
async def test_a_bad_message_ends_the_process_and_says_why(
    server: Server, message: str, code: str
) -> None:
    sandbox = await server.make_sandbox()
    async with server.session.ws_connect(
        f"{server.url}/v1/sandboxes/{sandbox['id']}/exec"
    ) as socket:
        await socket.send_json({"argv": ["sleep", "1000"]})
        leader = os.pidfd_open((await socket.receive_json())["pid"])
        await socket.send_str(message)
        last = await socket.receive_json()
        assert (last["type"], last["problem"]["code"]) == ("problem", code)
        assert (await socket.receive()).type is WSMsgType.CLOSE
    assert socket.close_code == 1008
    await ended(leader)


async def test_a_socket_is_asked_for_where_none_came(server: Server) -> None:
    sandbox = await server.make_sandbox()
    status, problem = await server.call("GET", f"/v1/sandboxes/{sandbox['id']}/exec")
    assert (status, problem["code"]) == (426, "upgrade_required")


PANICS = Faults(death=GuestError("the guest's kernel panicked", code="guest_panicked"))


def panic(server: Server) -> None:
    """End the only sandbox's machine, of what the faults say."""
    (sandbox,) = server.host.sandboxes(owner=server.owner)
    os.kill(sandbox.clone.machine.pid, signal.SIGKILL)


async def test_a_guest_that_panics_is_told_to_those_who_read(serving: Serve) -> None:
    async with serving(faults=PANICS) as server:
        made = await server.make_sandbox()
        path = f"{server.url}/v1/sandboxes/{made['id']}/exec"
        body = {"argv": ["sleep", "600"]}
        async with asyncio.timeout(GRACE), server.session.ws_connect(path) as socket:
            await socket.send_json(body)
            assert (await socket.receive_json())["type"] == "started"
            async with server.session.post(path, json=body) as response:
                lines = lines_of(response)
                assert (await anext(lines))["type"] == "started"
                panic(server)
                for last in ([line async for line in lines][-1], await socket.receive_json()):
                    assert last["problem"]["code"] == "guest_panicked"
                    assert last["problem"]["fault"] == "infrastructure"
