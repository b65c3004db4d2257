"""Processes that stay, in a real guest: at a terminal, beside a fork bomb, their caller gone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.serving import Api

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

GRACE = 90.0


async def started(api: Api, path: str, *argv: str, **body: Any) -> int:
    status, answer = await api.call("POST", path, json={"argv": argv, **body})
    assert status == 201, answer
    return int(answer["pid"])


async def test_a_login_shell_at_a_terminal_takes_keys_and_a_new_size(api: Api) -> None:
    async with api.sandbox() as sandbox, asyncio.timeout(GRACE):
        path = f"/v1/sandboxes/{sandbox}/processes"
        pid = await started(api, path, "/bin/bash", "-il", pty={"rows": 30, "cols": 100})
        async with api.session.ws_connect(f"{path}/{pid}/attach?backlog_bytes=65536") as socket:
            seen = ""
            for keys, shown in (
                ("tty; stty size; stat -c %U $(tty)\r", "/dev/pts/0\r\n30 100\r\nuser\r\n"),
                # Said by a child: what bash has not quite begun misses an interrupt.
                ("sh -c 'echo on; exec sleep 1000'\r", "\ron\r\n"),
                ("\x03", "^C"),
                ("stty size; echo $TERM\r", "50 132\r\nxterm-256color\r\n"),
            ):
                await socket.send_json({"stdin": keys})
                while shown not in seen:
                    seen += (await socket.receive_json()).get("data", "")
                seen = seen.partition(shown)[2]
                await socket.send_json({"resize": {"rows": 50, "cols": 132}})
        status, listed = await api.call("GET", path)
        assert (status, listed["processes"][0]["ended"]) == (200, None)


async def test_a_process_lives_beside_a_fork_bomb_that_is_killed_as_one(api: Api) -> None:
    # As the whole account's limit would, in a minute under emulation.
    bomb = "ulimit -u 60; bomb() { bomb | bomb & }; bomb; sleep 1000"
    async with api.sandbox() as sandbox, asyncio.timeout(GRACE):
        path = f"/v1/sandboxes/{sandbox}/processes"
        kept = await started(api, path, "cat", tag="kept")
        armed = await started(api, path, "/bin/bash", "-c", bomb)
        async with api.session.get(f"{path}/{armed}?backlog_bytes=1000") as response:
            async for line in response.content:
                # What it says once the account may have no process more.
                if "Resource temporarily unavailable" in json.loads(line).get("data", ""):
                    break
        assert (await api.call("DELETE", f"{path}/{armed}"))[0] == 204
        gone = "while pgrep -x bash > /dev/null; do sleep 0.1; done"
        assert (await api.execute(sandbox, argv=["/bin/sh", "-c", gone]))["exit_code"] == 0
        assert (await api.call("PUT", f"{path}/{kept}/input?eof=true", data=b"here"))[0] == 204
        async with api.session.get(f"{path}/{kept}?backlog_bytes=1000") as response:
            lines = [json.loads(line) async for line in response.content]
    assert [line.get("data") for line in lines if line["type"] == "stdout"] == ["here"]
    assert lines[-1]["exit_code"] == 0
