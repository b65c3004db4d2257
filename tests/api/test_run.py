"""POST /v1/run: what goes in, what comes out, and whose fault it is."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Serve, Server


async def run(server: Server, **body: Any) -> dict[str, Any]:
    status, answer = await server.call("POST", "/v1/run", json=body)
    assert status == 200, answer
    return dict(answer)


async def test_code_runs_and_says_what_it_was(server: Server) -> None:
    answer = await run(server, code="print(6*7)\n'a value'")
    assert answer["stdout"] == "42\n"
    assert answer["stderr"] == ""
    assert answer["exit_code"] == 0
    assert answer["fault"] is None
    assert answer["results"] == [{"text/plain": "'a value'"}]
    assert answer["identity"]["entropy_bits"] >= 256
    times = answer["timings_ms"]
    parts = sum(times[phase] for phase in ("acquire", "upload", "execute", "collect"))
    assert times["total"] == pytest.approx(parts, abs=0.01)
    assert 0 < times["first_output"] <= times["execute"]
    await server.is_idle()


async def test_a_program_runs_with_arguments_environment_and_stdin(server: Server) -> None:
    script = 'echo "$1 $WORD"; cat; pwd'
    answer = await run(
        server,
        argv=["bash", "-c", script, "bash", "one"],
        env={"WORD": "two"},
        stdin="three\n",
        cwd="/usr",
    )
    assert answer["stdout"] == "one two\nthree\n/usr\n"


async def test_bash_runs_as_a_language(server: Server) -> None:
    answer = await run(server, code="echo out; echo err >&2; exit 3", language="bash")
    assert (answer["stdout"], answer["stderr"], answer["exit_code"]) == ("out\n", "err\n", 3)
    assert answer["fault"] == "task"


async def test_files_go_in_and_come_out(server: Server, tmp_path: Any) -> None:
    binary = bytes(range(256))
    answer = await run(
        server,
        argv=["bash", "-c", f"cd {tmp_path}; cat in/text >> in/binary; echo made > out"],
        files={
            f"{tmp_path}/in/text": {"content": "grüße"},
            f"{tmp_path}/in/binary": {"content_base64": base64.b64encode(binary).decode()},
        },
        return_files=[f"{tmp_path}/in/binary", f"{tmp_path}/out", f"{tmp_path}/absent"],
    )
    files = answer["files"]
    joined = base64.b64decode(files[f"{tmp_path}/in/binary"]["content_base64"])
    assert joined == binary + "grüße".encode()
    assert files[f"{tmp_path}/out"] == {"content": "made\n"}
    assert files[f"{tmp_path}/absent"]["error"]["code"] == "file_not_found"


async def test_bytes_that_are_no_text_come_beside_readable_text(server: Server) -> None:
    answer = await run(server, argv=["printf", r"a\377b"])
    assert answer["stdout"] == "a\ufffdb"
    assert base64.b64decode(answer["stdout_base64"]) == b"a\xffb"
    assert "stderr_base64" not in answer


async def test_output_over_the_limit_is_cut_between_characters_and_said(serving: Serve) -> None:
    async with serving(output_bytes=1000) as server:
        answer = await run(server, code="print('ü' * 5000)")
    assert answer["truncated"] is True
    assert answer["stdout"] == "ü" * 500
    assert "stdout_base64" not in answer


async def test_an_exception_is_told_and_is_the_tasks_fault(server: Server) -> None:
    answer = await run(server, code="1/0")
    assert answer["error"]["name"] == "ZeroDivisionError"
    assert answer["exit_code"] == 1
    assert answer["fault"] == "task"


async def test_a_task_over_its_time_is_killed_and_is_no_failed_request(server: Server) -> None:
    answer = await run(server, argv=["sleep", "600"], timeout=0.2)
    assert answer["timed_out"] is True
    assert (answer["exit_code"], answer["signal"], answer["fault"]) == (None, 9, "task")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"code": "1", "argv": ["true"]}, 400, "invalid_request"),
        ({"code": "1", "colour": "red"}, 400, "invalid_request"),
        ({"code": 1}, 400, "invalid_request"),
        ({"code": "a\0b"}, 400, "invalid_request"),
        ({"code": "1", "language": "cobol"}, 400, "invalid_request"),
        ({"code": "1", "timeout": 0}, 400, "invalid_request"),
        ({"code": "1", "timeout": 1e9}, 400, "invalid_timeout"),
        ({"code": "1", "wait": 1e9}, 400, "invalid_wait"),
        ({"code": "1", "cwd": "relative"}, 400, "invalid_path"),
        ({"code": "1", "files": {"../../etc/x": {"content": ""}}}, 400, "invalid_path"),
        ({"code": "1", "files": {"/a/../b": {"content": ""}}}, 400, "invalid_path"),
        ({"code": "1", "files": {"/a\0b": {"content": ""}}}, 400, "invalid_path"),
        ({"code": "1", "files": {"/" + "ü" * 2048: {"content": ""}}}, 400, "invalid_path"),
        ({"code": "1", "files": {"/a": {}}}, 400, "invalid_request"),
        ({"code": "1", "files": {"/a": {"content_base64": "%%"}}}, 400, "invalid_request"),
        ({"code": "1", "return_files": ["a"]}, 400, "invalid_path"),
        ({"argv": ["", "x"]}, 400, "program_not_found"),
        ({"code": "1", "env": {"A=B": "c"}}, 400, "invalid_request"),
        ({"code": "1", "env": {"A": "b\0"}}, 400, "invalid_request"),
        ({"code": "1", "stdin": "a", "stdin_base64": "YQ=="}, 400, "invalid_request"),
        ({"code": "ü" * ((1 << 19) + 1)}, 413, "code_too_large"),
        ({"argv": ["true", "x" * (1 << 17)]}, 413, "arguments_too_large"),
        ({"argv": []}, 400, "invalid_request"),
        ({"argv": ["there-is-no-such-program"]}, 400, "program_not_found"),
        ({"code": "1", "user": "nobody-here"}, 400, "unknown_user"),
        ({"code": "1", "cwd": "/there/is/none"}, 400, "cwd_not_found"),
        ({"code": "1", "template": "absent"}, 404, "template_not_found"),
    ],
)
async def test_bad_input_has_a_code(
    server: Server, body: dict[str, Any], status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    data = io.BytesIO(json.dumps(body, ensure_ascii=False).encode())
    found, problem = await server.call("POST", "/v1/run", data=data, headers=headers)
    assert (found, problem["code"], problem["fault"]) == (status, code, "caller"), problem
    assert problem["status"] == status
    await server.is_idle()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"code": "\xff"}', "invalid_json"),
        (b'{"code": "\\ud800"}', "invalid_json"),
        (b'{"code": "1", "timeout": NaN}', "invalid_json"),
        (b'{"code": "1", "timeout": 1e400}', "invalid_request"),
        (b'{"code": "1", "timeout": ' + b"9" * 5000 + b"}", "invalid_request"),
        (b'{"env": ' + b"[" * 100_000, "invalid_request"),
        (b"[" * 100_000, "invalid_request"),
        (b"null", "invalid_request"),
    ],
)
async def test_what_is_no_json_of_ours_has_a_code(server: Server, raw: bytes, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    status, problem = await server.call("POST", "/v1/run", data=raw, headers=headers)
    assert (status, problem["code"]) == (400, code), problem


async def test_an_unknown_field_is_named(server: Server) -> None:
    _, problem = await server.call("POST", "/v1/run", json={"code": "1", "colour": "red"})
    assert "colour" in problem["detail"]
