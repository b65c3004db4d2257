"""`vmpool up` and `vmpool serve` as processes: what they say, leave, and end with."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.api.conftest import IMAGE, place_image
from vmpool import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

VMPOOL = Path(sys.executable).with_name("vmpool")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _short_run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Running machines have sockets, whose paths are short; those of tests are not."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="vmpool-") as run:
        monkeypatch.setenv("VMPOOL_RUN", run)
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory with an image that is known by two names."""
    place = tmp_path / "state"
    place_image(place)
    names = place / "images/names"
    (names / "toy").write_text((names / IMAGE).read_text())
    return place


def environment(state: Path) -> dict[str, str]:
    return os.environ | {
        "VMPOOL_STATE": os.fspath(state),
        "VMPOOL_LISTEN": "127.0.0.1:0",
        "PATH": f"{VMPOOL.parent}:{os.environ['PATH']}",
    }


@contextlib.asynccontextmanager
async def running(what: str, state: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.api.fake_server", what,
        cwd=ROOT, env=environment(state), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(120):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def lines_until(stream: asyncio.StreamReader | None, start: str) -> list[str]:
    """Return the lines up to the one that starts so, it included."""
    assert stream is not None
    lines: list[str] = []
    while not (lines and lines[-1].startswith(start)):
        line = await stream.readline()
        assert line, lines
        lines.append(line.decode().rstrip("\n"))
    return lines


async def shell(line: str, state: Path) -> str:
    """Run a command line as a person would, in a shell that knows of no server."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", line, env=environment(state), stdout=subprocess.PIPE
    )
    stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout.decode()


def leftovers() -> list[str]:
    """Return the names of machines' directories that are left."""
    return [path.name for path in Path(os.environ["VMPOOL_RUN"], "clones").iterdir()]


async def test_up_shows_a_request_and_command_lines_that_work_as_they_stand(state: Path) -> None:
    async with running("up", state) as process:
        said = await lines_until(process.stdout, "Serving on http://127.0.0.1:")
        assert "    6 * 7 = 42" in said
        assert any(line.startswith("    acquire ") for line in said)
        own = next(line for line in said if line.startswith("    vmpool run "))
        curl = next(line for line in said if line.startswith("    curl "))
        assert await shell(own, state) == "1\n"
        assert '"stdout":"42\\n"' in await shell(curl, state)
        assert stat.S_IMODE(local.token_path(state).stat().st_mode) == 0o600
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert local.read_server(state) == ""


async def test_a_second_up_uses_the_token_and_the_template_of_the_first(state: Path) -> None:
    async with running("stop", state) as process:
        assert await process.wait() == 0
    token = local.read_token(state)
    async with running("stop", state) as process:
        _, steps = await process.communicate()
        assert process.returncode == 0
    assert local.read_token(state) == token
    assert b"boot" not in steps


async def test_serve_says_what_to_do_where_there_is_no_template(state: Path) -> None:
    async with running("serve", state) as process:
        said = await lines_until(process.stderr, "serving on http://127.0.0.1:")
        assert any("no template yet: vmpool template create" in line for line in said)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_serve_serves_what_up_made_until_it_is_interrupted(state: Path) -> None:
    async with running("stop", state) as process:
        assert await process.wait() == 0
    async with running("serve", state) as process:
        said = await lines_until(process.stderr, "serving on http://127.0.0.1:")
        assert not any("no template" in line for line in said)
        sandbox = (await shell("vmpool sandbox create", state)).strip()
        assert sandbox in await shell("vmpool sandbox list", state)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert (await process.stderr.read()).decode().endswith("stopping\n")
        assert await process.wait() == 0
    assert leftovers() == []


async def test_a_check_leaves_the_sandboxes_that_it_found(state: Path) -> None:
    async with running("stop", state) as process:
        assert await process.wait() == 0
    async with running("serve", state) as killed:
        await lines_until(killed.stderr, "serving on http://127.0.0.1:")
        sandbox = (await shell("vmpool sandbox create", state)).strip()
        killed.kill()
        await killed.wait()
    async with running("stop", state) as check:
        assert await check.wait() == 0
    async with running("serve", state) as server:
        await lines_until(server.stderr, "serving on http://127.0.0.1:")
        assert await shell(f"vmpool exec {sandbox} -- echo still here", state) == "still here\n"
        server.send_signal(signal.SIGTERM)
        assert await server.wait() == 0
    assert leftovers() == []


async def test_serve_drain_takes_over_from_the_server_that_runs(state: Path) -> None:
    async with running("stop", state) as process:
        assert await process.wait() == 0
    async with running("serve", state) as first:
        await lines_until(first.stderr, "serving on http://127.0.0.1:")
        sandbox = (await shell("vmpool sandbox create", state)).strip()
        async with running("drain", state) as second:
            said = await lines_until(second.stderr, "serving on http://127.0.0.1:")
            assert f"adopted sandbox {sandbox}" in said
            assert await first.wait() == 0
            assert sandbox in await shell("vmpool sandbox list", state)
            assert await shell(f"vmpool exec {sandbox} -- echo still here", state) == "still here\n"
            second.send_signal(signal.SIGTERM)
            assert await second.wait() == 0
    assert leftovers() == []


def refused(*argv: str, **env: str) -> tuple[int, str]:
    ended = subprocess.run(
        [VMPOOL, *argv], env=os.environ | env, capture_output=True, check=False, text=True
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_taken_port_is_said_before_anything_slow_begins(command: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refused(
            command, "--state", os.fspath(tmp_path), "--listen", f"127.0.0.1:{port}"
        )
    assert code == 1
    assert said.startswith(f"error: something listens on 127.0.0.1:{port} already [address_in_use]")
    assert "--listen" in said


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_state_directory_that_cannot_be_is_said_with_what_to_do(
    command: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, said = refused(command, "--state", os.fspath(tmp_path / "file/state"))
    assert code == 1
    assert "[state_unusable]" in said
    assert "--state DIR" in said


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--listen", "nowhere"), "[invalid_settings]"),
        (("--config", "/no/such/file"), "[invalid_settings]"),
        (("--listen", "192.0.2.1:8700"), "[address_unavailable]"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(
    options: tuple[str, ...], code: str, tmp_path: Path
) -> None:
    ended, said = refused("serve", "--state", os.fspath(tmp_path), *options)
    assert ended == 1
    assert code in said


def test_tokens_work_without_a_server(tmp_path: Path) -> None:
    env = os.environ | {"VMPOOL_STATE": os.fspath(tmp_path)}

    def vmpool(line: str) -> str:
        return subprocess.run(
            [VMPOOL, *shlex.split(line)], env=env, capture_output=True, check=True, text=True
        ).stdout

    assert vmpool("token create ci").startswith("e2b_")
    assert " ci " in vmpool("token list")
    assert vmpool("token revoke ci") == ""
    code, said = refused("token", "revoke", "ci", VMPOOL_STATE=os.fspath(tmp_path))
    assert code == 1
    assert "[token_not_found]" in said


def test_images_are_listed_and_removed_without_a_server(state: Path) -> None:
    env = os.environ | {"VMPOOL_STATE": os.fspath(state)}
    listed = subprocess.run(
        [VMPOOL, "image", "list"], env=env, capture_output=True, check=True, text=True
    ).stdout
    assert f"{IMAGE} " in listed
    assert refused("image", "remove", IMAGE, VMPOOL_STATE=os.fspath(state)) == (0, "")
    code, said = refused("image", "remove", IMAGE, VMPOOL_STATE=os.fspath(state))
    assert code == 1
    assert "[image_not_found]" in said


async def test_an_image_that_a_template_is_made_of_is_not_removed(state: Path) -> None:
    async with running("stop", state) as process:
        assert await process.wait() == 0
    code, said = await asyncio.to_thread(
        refused, "image", "remove", IMAGE, VMPOOL_STATE=os.fspath(state)
    )
    assert code == 1
    assert "[image_in_use]" in said
