"""What was asked with a key and answered is answered by the next server too; the rest is undone."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests import fake_host
from tests.api.conftest import IMAGE, Server, served
from tests.fakes import FakeEngine
from vmpool.api import idempotency
from vmpool.api.idempotency import JOURNALED_BYTES, KEPT_KEYS, KEPT_NS
from vmpool.errors import DiskFullError
from vmpool.store import AnswerRow, Store
from vmpool.store.answers import Answers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = {"Idempotency-Key": "once"}
SANDBOXES = "/v1/sandboxes"


@contextlib.asynccontextmanager
async def started(state: Path) -> AsyncIterator[Server]:
    """Serve on a state directory, and leave what runs to the next one."""
    async with fake_host.opened(state, FakeEngine(), insecure_no_tokens=True) as host:
        if not host.catalogue.statuses:
            await fake_host.add_template(host)
        await host.catalogue.settled(IMAGE)
        async with served(host, tokens=False) as server:
            yield server
            host.hand_over()


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("host")
    fake_host.furnish(directory, tmp_path_factory.getbasetemp() / "furnished")
    return directory


async def test_the_next_server_gives_the_same_sandbox_with_the_same_token(state: Path) -> None:
    async with started(state) as first:
        status, made = await first.call("POST", SANDBOXES, json={}, headers=KEY)
        assert status == 201
    token = made["access_token"].encode()
    assert not [file for file in state.glob("vmpool.db*") if token in file.read_bytes()]
    async with started(state) as second:
        status, again = await second.call("POST", SANDBOXES, json={}, headers=KEY)
        assert (status, again) == (201, made)
        assert [each.id for each in second.host.sandboxes(owner="local")] == [made["id"]]
        found = await second.host.sandbox_by_access_token(made["id"], made["access_token"])
        assert found is not None
        status, problem = await second.call("POST", SANDBOXES, json={"timeout": 9}, headers=KEY)
        assert (status, problem["code"]) == (409, "idempotency_conflict")
        await second.host.kill(made["id"], owner="local")


async def test_what_nobody_was_told_of_is_undone_and_made_anew(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unsaid(*_: Any, **__: Any) -> None:
        """Lose the answer, as a crash before the record does."""

    async with started(state) as first:
        with monkeypatch.context() as crash:
            crash.setattr(Answers, "record", unsaid)
            status, made = await first.call("POST", SANDBOXES, json={}, headers=KEY)
            assert status == 201
    async with started(state) as second:
        assert second.host.sandboxes(owner="local") == []
        assert (await second.call("GET", f"{SANDBOXES}/{made['id']}"))[0] == 410
        status, again = await second.call("POST", SANDBOXES, json={}, headers=KEY)
        assert status == 201
        assert again["id"] != made["id"]
        await second.host.kill(again["id"], owner="local")


async def test_an_answer_that_cannot_be_recorded_is_not_given_and_its_sandbox_ends(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("the disk is full")

    async with started(state) as server:
        with monkeypatch.context() as disk:
            disk.setattr(Answers, "record", full)
            status, _ = await server.call("POST", SANDBOXES, json={}, headers=KEY)
            assert status == 507
        await server.is_idle()
        status, made = await server.call("POST", SANDBOXES, json={}, headers=KEY)
        assert status == 201
        await server.host.kill(made["id"], owner="local")


async def test_a_key_that_comes_back_much_later_undoes_nothing_of_what_it_once_made(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("the disk is full")

    for limit in ("KEPT_SECONDS", "SWEEP_SECONDS"):
        monkeypatch.setattr(idempotency, limit, 0.0)
    async with started(state) as server:
        _, made = await server.call("POST", SANDBOXES, json={}, headers=KEY)
        monkeypatch.setattr(Answers, "record", full)
        status, _ = await server.call("POST", SANDBOXES, json={}, headers=KEY)
        assert status == 507
        assert (await server.call("GET", f"{SANDBOXES}/{made['id']}"))[1]["state"] == "running"
        await server.host.kill(made["id"], owner="local")


async def test_answers_are_kept_to_some_number_and_for_some_time(tmp_path: Path) -> None:
    now_ns = 10 * KEPT_NS

    def answer(number: int, owner: str = "me") -> AnswerRow:
        return AnswerRow(
            ticket=f"{owner}{number}".encode(), owner=owner, key=str(number), asked=b"a",
            status=201, body=b"b",
        )  # fmt: skip

    async with Store(tmp_path / "db", now_ns=lambda: now_ns) as store:
        for number in range(5):
            now_ns += 1
            await store.answers.record(answer(number), keep=3, within_ns=KEPT_NS)
        await store.answers.record(answer(9, "other"), keep=3, within_ns=KEPT_NS)
        assert [row.key for row in await store.answers.recall(within_ns=KEPT_NS)] == [
            "2",
            "3",
            "4",
            "9",
        ]
        now_ns += KEPT_NS + 1
        await store.answers.record(answer(5), keep=3, within_ns=KEPT_NS)
        assert [row.key for row in await store.answers.recall(within_ns=KEPT_NS)] == ["5"]
    assert JOURNALED_BYTES * KEPT_KEYS <= 8 << 20
