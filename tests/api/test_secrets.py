"""A secret that a sandbox is told reaches its guest, and is found nowhere else."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tests.fake_host import OWNER, add_template, furnish, opened, wanted
from tests.fakes import FakeEngine, Faults
from vmpool import AsyncClient
from vmpool.cli import parcels, run
from vmpool.errors import ConflictError, EngineError
from vmpool.lifecycle import OnStop
from vmpool.model import Code, Command, Output
from vmpool.policy import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

SECRET = "hunter2-planted-7f3a"
ECHO = {"argv": ["sh", "-c", "test $PASSWORD = hunter2-planted-7f3a && echo known"]}
MEMORY = {"memory", "pages", "device-state"}
"""Files of a guest's state: that they hold what the guest was told is said, and not hidden."""


def planted_in(directory: Path, secret: str = SECRET) -> list[str]:
    """Return the files that hold a secret as it is."""
    return [
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.name not in MEMORY and secret.encode() in path.read_bytes()
    ]


async def told(server: Server, method: str, path: str, **request: Any) -> tuple[int, str]:
    """Return the status and the whole answer, headers too."""
    async with server.session.request(method, server.url + path, **request) as response:
        return response.status, f"{response.headers}{await response.text()}"


async def test_no_answer_log_entry_or_file_holds_a_secret(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = {"secrets": {"PASSWORD": SECRET}}
    answers = []

    async def ask(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        answers.append(await told(server, method, f"/v1/{path}", json=body))
        return answers[-1]

    headers = {"Idempotency-Key": "once"}
    status, made = await server.call("POST", "/v1/sandboxes", json=secrets, headers=headers)
    assert status == 201
    answers.append((status, json.dumps(made)))
    it = f"sandboxes/{made['id']}"
    assert "known" in (await ask("POST", f"{it}/exec", ECHO))[1]
    assert "known" in (await ask("POST", "run", ECHO | secrets))[1]
    await ask("POST", f"{it}/processes", {"argv": ["sleep", "600"]})
    assert "sleep" in (await ask("GET", f"{it}/processes"))[1]
    status, forked = await server.call("POST", f"/v1/{it}/fork", json={"secrets": {"B": SECRET}})
    answers.append((status, json.dumps(forked)))
    child = forked["children"][0]["sandbox"]["id"]
    both = {"argv": ["sh", "-c", "test $B = $PASSWORD && echo same"]}
    assert "same" in (await ask("POST", f"sandboxes/{child}/exec", both))[1]
    await ask("POST", f"{it}/checkpoints", {"name": "kept"})
    await ask("GET", "checkpoints")
    status, grown = await server.call("POST", "/v1/sandboxes", json={"checkpoint": "kept"})
    assert "known" in (await ask("POST", f"sandboxes/{grown['id']}/exec", ECHO))[1]
    await ask("POST", f"{it}/pause", {})
    await ask("POST", f"{it}/resume", {})
    assert "known" in (await ask("POST", f"{it}/exec", ECHO))[1]
    for path in ("sandboxes", it, "audit?limit=1000", "templates", "usage", "checkpoints/kept"):
        await ask("GET", path)
    too_much = {"secrets": {"PASSWORD": SECRET, "MORE": "x" * 400_000}}
    assert (await ask("POST", "sandboxes", too_much))[0] == 413
    assert (await ask("POST", "sandboxes", {"secrets": {"A=B": SECRET}}))[0] == 400
    assert (await ask("POST", "sandboxes", {"secrets": {"A": [SECRET]}}))[0] == 400
    assert (await ask("POST", "sandboxes", secrets | {"checkpoint": "none"}))[0] == 404
    for status, answer in answers:
        assert SECRET not in answer, status
    for record in caplog.records:
        assert SECRET not in f"{record.getMessage()}{record.__dict__}"
    assert planted_in(server.host.settings.state) == []
    assert planted_in(server.host.settings.run) == []
    assert planted_in(server.host.settings.state, made["access_token"]) == []


async def test_a_checkpoint_with_secrets_is_exported_on_purpose_only(
    server: Server, tmp_path: Path
) -> None:
    async with AsyncClient(server.url, token=server.token) as client:
        made = await client.create(secrets={"PASSWORD": SECRET})
        await made.checkpoint("kept")
        target = tmp_path / "parcel"
        with pytest.raises(ConflictError) as refused:
            await client.checkpoints.export_to("kept", target)
        assert refused.value.error_code == "checkpoint_secret"
        assert not target.exists()
        await client.checkpoints.export_to("kept", target, secrets="share")
        _, log = await server.call("GET", "/v1/audit?action=checkpoint.export")
        assert [(each["outcome"], each["detail"]["secrets"]) for each in log["entries"]] == [
            ("ok", "share"),
            ("checkpoint_secret", "keep"),
        ]
        where = ["--server", server.url, "--token", server.token, "--state", str(tmp_path)]
        words = ["kept", str(tmp_path / "again"), "--with-secrets", *where]
        ended = await asyncio.to_thread(CliRunner().invoke, parcels.export, words)
        assert ended.exit_code == 0
        kept = await client.checkpoints.import_from(target, name="here")
        grown = await client.create(checkpoint=kept)
        result = await grown.run(argv=["sh", "-c", "echo ${PASSWORD-unknown}"])
        assert result.stdout == "unknown\n"


async def test_what_one_execution_was_told_is_exported_on_purpose_only(
    server: Server, tmp_path: Path
) -> None:
    async with AsyncClient(server.url, token=server.token) as client:
        told = await client.create()
        before = await told.checkpoint("before")
        await told.run(argv=["true"], secrets={"PASSWORD": SECRET})
        (child,) = await told.fork(1)
        for sandbox in (told, child):
            kept = await sandbox.checkpoint()
            grown = await client.create(checkpoint=kept)
            for each in (kept, await grown.checkpoint()):
                with pytest.raises(ConflictError) as refused:
                    await client.checkpoints.export_to(each, tmp_path / "parcel")
                assert refused.value.error_code == "checkpoint_secret"
        await told.pause()
        await told.resume()
        rows = [await server.host.store.sandbox(each.id) for each in (told, child)]
        assert [row.confided for row in rows] == [True, True]
        await client.checkpoints.export_to(before, tmp_path / "parcel")
        plain = await client.create()
        with pytest.raises(ConflictError):
            await plain.rollback(await child.checkpoint())


async def test_a_rollback_brings_no_secrets_to_a_sandbox_that_has_none(server: Server) -> None:
    async with AsyncClient(server.url, token=server.token) as client:
        told = await client.create(secrets={"PASSWORD": SECRET})
        kept = await told.checkpoint("kept")
        await told.rollback(kept)
        plain = await client.create()
        with pytest.raises(ConflictError) as refused:
            await plain.rollback(kept)
        assert refused.value.error_code == "checkpoint_secret"


async def test_a_command_line_takes_a_secret_from_its_environment_alone(
    server: Server, tmp_path: Path
) -> None:
    where = ["--server", server.url, "--token", server.token, "--state", str(tmp_path)]
    script = ["--", "sh", "-c", "test $PASSWORD = hunter2-planted-7f3a"]

    async def vmpool(*words: str, **env: str) -> int:
        ended = await asyncio.to_thread(
            CliRunner().invoke, run.command, [*where, *words, *script], env=env
        )
        return int(ended.return_value or ended.exit_code)

    assert await vmpool("--secret", "PASSWORD", PASSWORD=SECRET) == 0
    assert await vmpool("--secret", "PASSWORD") == 2
    assert await vmpool("--secret", f"PASSWORD={SECRET}") == 2


async def knows(sandbox: Sandbox) -> bool:
    """Return whether what runs in a sandbox finds the secret."""
    output = b""
    argv = ("sh", "-c", "echo ${PASSWORD-unknown}")
    async with sandbox.execute(Command(argv=argv)) as execution:
        async for event in execution:
            output += event.data if isinstance(event, Output) else b""
    return output.decode().strip() == SECRET


@pytest.fixture
async def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A state directory that a server left with a sandbox that runs, and one that is paused."""
    state = tmp_path_factory.mktemp("host")
    furnish(state, tmp_path_factory.getbasetemp() / "furnished")
    async with opened(state, FakeEngine(), on_stop=OnStop.KEEP) as host:
        await add_template(host, limits=Limits(ready=0, total=4))
        running, asleep = [
            await host.create(wanted(secrets={"PASSWORD": SECRET}), owner=OWNER) for _ in range(2)
        ]
        await host.pause(asleep.id, owner=OWNER)
    return state, running.id, asleep.id


async def both(host: Host, running: str, asleep: str) -> list[bool]:
    found = [await host.sandbox(running, owner=OWNER)]
    found.append(await host.resume(asleep, owner=OWNER, timeout=None))
    return [await knows(each) for each in found]


async def test_the_next_server_tells_what_was_told(kept: tuple[Path, str, str]) -> None:
    state, running, asleep = kept
    assert planted_in(state) == []
    assert (state / "seal-key").stat().st_mode & 0o777 == 0o600
    async with opened(state, FakeEngine()) as host:
        assert await both(host, running, asleep) == [True, True]


async def test_without_the_key_sandboxes_go_on_without_their_secrets(
    kept: tuple[Path, str, str], caplog: pytest.LogCaptureFixture
) -> None:
    state, running, asleep = kept
    (state / "seal-key").unlink()
    async with opened(state, FakeEngine()) as host:
        assert await both(host, running, asleep) == [False, False]
    assert any("sealed with another key" in record.getMessage() for record in caplog.records)


def test_what_is_to_run_shows_no_variable() -> None:
    for what in (Command(argv=("true",), env={"P": SECRET}), Code(source="1", env={"P": SECRET})):
        assert SECRET not in repr(what)
    assert SECRET not in repr(wanted(secrets={"P": SECRET}))


async def test_an_error_of_the_engine_holds_no_secret(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.host._nursery._standby._engine.faults = Faults(load=EngineError("it broke"))
    status, answer = await told(
        server, "POST", "/v1/sandboxes", json={"secrets": {"P": SECRET}, "wait": 0.2}
    )
    assert status >= 429
    assert SECRET not in answer + caplog.text
