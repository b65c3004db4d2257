"""The interpreter's port, asked as E2B's clients ask it, and as they never would."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Server

GRACE = 60.0
KEEPALIVE = '{"type":"keepalive"}'
PLOT = "import matplotlib.pyplot as plt; plt.bar(['ä'], [1], label='n'); plt.show(); {'a': 1}"


class Interpreter:
    """The interpreter's port of one sandbox."""

    def __init__(self, server: Server, made: dict[str, Any]) -> None:
        self.server = server
        self.headers = {
            "E2b-Sandbox-Id": made["id"],
            "E2b-Sandbox-Port": "49999",
            "X-Access-Token": made["access_token"],
        }

    async def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        async with asyncio.timeout(GRACE):
            more = {} if body is None else {"json": body}
            status, answer = await self.server.call(method, path, headers=self.headers, **more)
        return status, answer.decode() if isinstance(answer, bytes) else answer

    async def execute(self, code: str, **body: Any) -> list[dict[str, Any]]:
        """Run code; return its lines, but for the time of what was printed, and keepalives."""
        status, text = await self.ask("POST", "/execute", {"code": code, **body})
        assert status == 200, text
        assert text.isascii()
        lines = [json.loads(line) for line in text.splitlines() if line != KEEPALIVE]
        assert all(line.pop("timestamp", "T") for line in lines)
        assert lines[0]["type"] == "number_of_executions"
        assert lines[-1] == {"type": "end_of_execution"}
        return lines[1:-1]


@pytest.fixture
async def interpreter(server: Server) -> Interpreter:
    """The interpreter's port of a new sandbox."""
    return Interpreter(server, await server.make_sandbox())


async def test_code_says_what_it_prints_shows_and_is_worth(interpreter: Interpreter) -> None:
    lines = await interpreter.execute(
        "print('grüße 🐍')\nimport sys; print(1, file=sys.stderr)\n'x'"
    )
    assert lines == [
        {"type": "stdout", "text": "grüße 🐍\n"},
        {"type": "stderr", "text": "1\n"},
        {"type": "result", "is_main_result": True, "text": "x"},
    ]
    figure, value = await interpreter.execute(PLOT)
    assert figure["png"].startswith("iVBOR")
    assert figure["is_main_result"] is False
    assert figure["chart"]["elements"] == [{"label": "ä", "value": 1.0, "group": "n"}]
    assert value == {
        "type": "result",
        "is_main_result": True,
        "text": "{'a': 1}",
        "json": {"a": 1},
    }


async def test_a_picture_is_shown_when_code_shows_it_or_is_worth_it(
    interpreter: Interpreter,
) -> None:
    made = "from PIL import Image; picture = Image.new('RGB', (4, 4), 'red')"
    shown = await interpreter.execute(f"{made}; display(picture); picture")
    assert [one["is_main_result"] for one in shown] == [False, True], shown
    for one in shown:
        picture = base64.b64decode(one["png"])
        assert picture.startswith(b"\x89PNG"), one


async def test_forms_of_all_kinds_are_told_and_no_others_as_such(interpreter: Interpreter) -> None:
    forms = {
        "text/html": "<b>",
        "image/svg+xml": "<svg/>",
        "application/x-odd": "odd",
        "application/json": "[1,\n 2]",
        "e2b/chart": "[1]",
        "e2b/data": "{",
    }
    code = f"from IPython.display import display; display({forms!r}, raw=True)"
    (shown,) = await interpreter.execute(code)
    assert shown == {
        "type": "result",
        "is_main_result": False,
        "html": "<b>",
        "svg": "<svg/>",
        "json": [1, 2],
        "extra": {"application/x-odd": "odd"},
    }


async def test_code_that_fails_says_so_once(interpreter: Interpreter) -> None:
    (raised,) = await interpreter.execute("1 / 0")
    assert (raised["type"], raised["name"]) == ("error", "ZeroDivisionError")
    assert raised["value"] == "division by zero"
    assert raised["traceback"].startswith("Traceback")
    lost = await interpreter.execute("import os; os.kill(os.getpid(), 9)")
    assert [line["type"] for line in lost] == ["error", "unexpected_end_of_execution"]
    assert lost[0]["name"] == "ContextLost"
    assert "signal 9" in lost[0]["value"]


async def test_each_language_keeps_its_state_and_the_sandboxs_environment(
    interpreter: Interpreter,
) -> None:
    await interpreter.execute("x = 41")
    await interpreter.execute("x=42", language="bash")
    (value,) = await interpreter.execute("x + 1", language="python")
    assert value["text"] == "42"
    (printed,) = await interpreter.execute("echo $x $E2B_SANDBOX", language="bash")
    assert printed["text"] == "42 true\n"
    own = "import os; os.environ.get('OWN')"
    (value,) = await interpreter.execute(own, env_vars={"OWN": "1"}, context_id=None, language=None)
    assert value["text"] == "1"
    assert await interpreter.execute(own) == []


async def test_contexts_are_made_listed_restarted_and_closed(interpreter: Interpreter) -> None:
    status, listed = await interpreter.ask("GET", "/contexts")
    assert (status, [one["id"] for one in listed]) == (200, ["python", "javascript"])
    status, made = await interpreter.ask("POST", "/contexts", {"language": "python", "cwd": "/"})
    assert (status, made["language"], made["cwd"]) == (200, "python", "/")
    await interpreter.execute("x = 1")
    await interpreter.execute("x = 2", context_id=made["id"])
    status, listed = await interpreter.ask("GET", "/contexts")
    assert [one["id"] for one in listed] == ["python", "javascript", made["id"]]
    (value,) = await interpreter.execute("x", context_id=made["id"])
    assert value["text"] == "2"
    assert await interpreter.ask("POST", f"/contexts/{made['id']}/restart") == (200, None)
    (raised,) = await interpreter.execute("x", context_id=made["id"])
    assert raised["name"] == "NameError"
    assert await interpreter.ask("DELETE", f"/contexts/{made['id']}") == (200, None)
    refused = (404, f"Context {made['id']} not found")
    assert await interpreter.ask("DELETE", f"/contexts/{made['id']}") == refused
    assert await interpreter.ask("POST", f"/contexts/{made['id']}/restart") == refused
    assert await interpreter.ask("POST", "/contexts/javascript/restart") == (200, None)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"code": "1", "context_id": "nowhere"}, 404, "nowhere"),
        ({"code": "1", "context_id": "../x"}, 404, "not found"),
        ({"code": "1", "context_id": "python", "language": "bash"}, 400, "at most one"),
        ({"code": "1", "language": "r"}, 400, "python, bash, javascript"),
        ({"code": "1\0"}, 400, "code"),
        ({"code": 1}, 400, "code"),
        ({}, 400, "code"),
        ({"code": "1", "env_vars": {"A=B": "1"}}, 400, "env"),
        (["code"], 400, "object"),
    ],
)
async def test_what_cannot_be_run_is_refused_in_words(
    interpreter: Interpreter, body: Any, status: int, said: str
) -> None:
    answered, text = await interpreter.ask("POST", "/execute", body)
    assert answered == status
    assert said in text


async def test_code_that_is_silent_for_long_is_kept_alive(
    interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.api.e2b.interpreter.KEEPALIVE_SECONDS", 0.05)
    body = {"code": "import time; time.sleep(60)"}
    url = f"{interpreter.server.url}/execute"
    async with (
        asyncio.timeout(GRACE),
        interpreter.server.session.post(url, json=body, headers=interpreter.headers) as response,
    ):
        assert b"number_of_executions" in await response.content.readline()
        for _ in range(2):
            assert (await response.content.readline()).decode() == f"{KEEPALIVE}\n"


async def test_a_client_that_leaves_interrupts_what_it_began(interpreter: Interpreter) -> None:
    await interpreter.execute("x = 1")
    body = {"code": "print('begun', flush=True)\nimport time; time.sleep(60)"}
    url = f"{interpreter.server.url}/execute"
    async with asyncio.timeout(GRACE):
        async with interpreter.server.session.post(
            url, json=body, headers=interpreter.headers
        ) as response:
            while b"begun" not in await response.content.readline():
                pass
        (value,) = await interpreter.execute("x")
    assert value["text"] == "1"


async def test_code_takes_the_sandboxs_token_and_health_none(interpreter: Interpreter) -> None:
    del interpreter.headers["X-Access-Token"]
    status, _ = await interpreter.ask("POST", "/execute", {"code": "1"})
    assert status == 401
    status, _ = await interpreter.ask("GET", "/contexts")
    assert status == 403
    assert (await interpreter.ask("GET", "/health")) == (200, "OK")


async def test_a_sandbox_that_is_killed_breaks_its_code_off(interpreter: Interpreter) -> None:
    running = asyncio.create_task(interpreter.execute("import time; time.sleep(60)"))
    async with asyncio.timeout(GRACE):
        while not any(
            info["state"] == "busy" for info in await listed_contexts(interpreter)
        ):  # until it runs
            pass
        path = f"/v1/sandboxes/{interpreter.headers['E2b-Sandbox-Id']}"
        assert (await interpreter.server.call("DELETE", path))[0] == 204
        with pytest.raises(aiohttp.ClientPayloadError):
            await running
    status, said = await interpreter.ask("GET", "/health")
    assert (status, said["message"]) == (502, "The sandbox was not found")


async def listed_contexts(interpreter: Interpreter) -> list[dict[str, Any]]:
    """Return the sandbox's contexts as the native interface has them."""
    path = f"/v1/sandboxes/{interpreter.headers['E2b-Sandbox-Id']}/contexts"
    status, answer = await interpreter.server.call("GET", path)
    assert status == 200, answer
    return list(answer["contexts"])
