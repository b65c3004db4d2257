"""What a client sends twice with one key is done once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import pytest

from vmpool.api import idempotency
from vmpool.api.idempotency import Kept, Ledger
from vmpool.errors import ConflictError, PoolBusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.api.conftest import Server

SANDBOXES = "/v1/sandboxes"


def keyed(key: str, **headers: str) -> dict[str, str]:
    return {"Idempotency-Key": key} | headers


class Work:
    """Counts how often it is done; ends when it is let go."""

    def __init__(self, *, body: bytes = b"", gate: asyncio.Event | None = None) -> None:
        self.done = 0
        self.undone = 0
        self.begun = asyncio.Event()
        self._body = body
        self._gate = gate

    async def __call__(self) -> Kept:
        self.begun.set()
        try:
            if self._gate is not None:
                await self._gate.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # undoing takes a turn of the loop, in which others come
            self.undone += 1
            raise
        self.done += 1
        return Kept(status=201, body=self._body + b"%d" % self.done)


def asking(
    ledger: Ledger,
    work: Callable[[], Awaitable[Kept]],
    *,
    owner: str = "me",
    key: str = "k",
    asked: bytes = b"a",
) -> Any:
    return ledger.once(owner=owner, key=key, asked=asked, work=work)


async def test_the_same_request_gets_the_first_ones_sandbox(server: Server) -> None:
    body = {"metadata": {"a": "1"}}
    status, first = await server.call("POST", SANDBOXES, json=body, headers=keyed("one"))
    assert status == 201
    assert await server.call("POST", SANDBOXES, json=body, headers=keyed("one")) == (201, first)
    _, other = await server.call("POST", SANDBOXES, json=body, headers=keyed("two"))
    assert other["id"] != first["id"]
    _, listed = await server.call("GET", SANDBOXES)
    assert [sandbox["id"] for sandbox in listed["sandboxes"]] == [other["id"], first["id"]]


async def test_an_old_answer_says_that_it_is_one(server: Server) -> None:
    said = []
    for _ in range(2):
        async with server.session.post(
            server.url + SANDBOXES, json={}, headers=keyed("one")
        ) as response:
            assert response.content_type == "application/json"
            said.append(response.headers.get("Idempotent-Replayed"))
    assert said == [None, "true"]


async def test_without_a_key_each_request_is_another(server: Server) -> None:
    assert (await server.make_sandbox())["id"] != (await server.make_sandbox())["id"]


async def test_two_at_once_get_one_sandbox(server: Server) -> None:
    answers = await asyncio.gather(
        *(server.call("POST", SANDBOXES, json={}, headers=keyed("one")) for _ in range(5))
    )
    assert {status for status, _ in answers} == {201}
    assert len({answer["id"] for _, answer in answers}) == 1


async def test_the_same_key_with_another_body_is_refused(server: Server) -> None:
    await server.call("POST", SANDBOXES, json={}, headers=keyed("one"))
    status, problem = await server.call(
        "POST", SANDBOXES, json={"metadata": {"a": "1"}}, headers=keyed("one")
    )
    assert (status, problem["code"]) == (409, "idempotency_conflict")
    status, problem = await server.call("POST", "/v1/run", json={"code": "1"}, headers=keyed("one"))
    assert (status, problem["code"]) == (409, "idempotency_conflict")


async def test_anothers_key_is_another_key(server: Server) -> None:
    _, mine = await server.call("POST", SANDBOXES, json={}, headers=keyed("one"))
    _, theirs = await server.call(
        "POST", SANDBOXES, json={}, headers=keyed("one", **server.as_other())
    )
    assert mine["id"] != theirs["id"]


async def test_whoever_has_a_sandboxs_token_has_keys_of_their_own(server: Server) -> None:
    sandbox = await server.make_sandbox()
    path, body = f"{SANDBOXES}/{sandbox['id']}/processes", {"argv": ["true"]}
    bearer = {"Authorization": f"Bearer {sandbox['access_token']}"}
    pids = [
        (await server.call("POST", path, json=body, headers=keyed("one", **headers)))[1]["pid"]
        for headers in ({}, bearer, bearer)
    ]
    assert pids[0] != pids[1] == pids[2]


async def test_a_run_is_done_once_and_told_twice(server: Server) -> None:
    body = {"argv": ["bash", "-c", "echo $RANDOM$RANDOM$RANDOM"]}
    first = await server.call("POST", "/v1/run", json=body, headers=keyed("one"))
    assert first[0] == 200
    assert await server.call("POST", "/v1/run", json=body, headers=keyed("one")) == first
    assert await server.call("POST", "/v1/run", json=body, headers=keyed("two")) != first
    await server.is_idle()


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_what_is_no_key_is_refused(server: Server, key: str) -> None:
    status, problem = await server.call("POST", SANDBOXES, json={}, headers=keyed(key))
    assert (status, problem["code"]) == (400, "invalid_idempotency_key")
    assert server.host.sandboxes(owner=server.owner) == []


async def test_a_failure_is_not_remembered(server: Server) -> None:
    body = {"template": "none"}
    for _ in range(2):
        status, problem = await server.call("POST", SANDBOXES, json=body, headers=keyed("one"))
        assert (status, problem["code"]) == (404, "template_not_found")
    assert (await server.call("POST", SANDBOXES, json={}, headers=keyed("one")))[0] == 201


async def test_all_who_wait_are_told_of_a_failure_and_the_next_begins_anew() -> None:
    gate = asyncio.Event()
    failures = 0

    async def fail() -> Kept:
        nonlocal failures
        failures += 1
        await gate.wait()
        raise PoolBusyError("full")

    ledger = Ledger()
    waiting = [asyncio.create_task(asking(ledger, fail)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in told] == [PoolBusyError] * 3
    assert failures == 1
    assert await asking(ledger, Work()) == (Kept(status=201, body=b"1"), False)


async def test_work_that_is_cancelled_from_within_is_not_begun_again() -> None:
    begun = 0

    async def broken() -> Kept:
        nonlocal begun
        begun += 1
        assert begun < 10, "it is begun again and again"
        raise asyncio.CancelledError

    ledger = Ledger()
    with pytest.raises(asyncio.CancelledError):
        await asking(ledger, broken)
    assert begun == 1
    assert await asking(ledger, Work()) == (Kept(status=201, body=b"1"), False)


async def test_one_who_leaves_does_not_take_it_from_one_who_stays() -> None:
    gate = asyncio.Event()
    ledger, work = Ledger(), Work(gate=gate)
    leaving = asyncio.create_task(asking(ledger, work))
    staying = asyncio.create_task(asking(ledger, work))
    await work.begun.wait()
    leaving.cancel()
    await asyncio.wait((leaving,))
    gate.set()
    answer, replayed = await staying
    assert (answer.body, replayed) == (b"1", True)
    assert (work.done, work.undone) == (1, 0)


async def test_the_last_who_leaves_ends_it() -> None:
    ledger, work = Ledger(), Work(gate=asyncio.Event())
    leaving = [asyncio.create_task(asking(ledger, work)) for _ in range(2)]
    await work.begun.wait()
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    assert (work.done, work.undone) == (0, 1)
    assert await asking(ledger, Work()) == (Kept(status=201, body=b"1"), False)


async def test_one_who_comes_while_it_is_undone_has_it_done_anew() -> None:
    ledger, work = Ledger(), Work(gate=asyncio.Event())
    leaving = asyncio.create_task(asking(ledger, work))
    await work.begun.wait()
    leaving.cancel()
    again = Work()
    coming = asyncio.create_task(asking(ledger, again))
    assert await coming == (Kept(status=201, body=b"1"), False)
    assert (work.undone, again.done) == (1, 1)
    assert leaving.cancelled()


async def test_a_sandbox_that_came_as_its_client_left_is_given_to_the_retry() -> None:
    ledger, work = Ledger(), Work()
    leaving = asyncio.create_task(asking(ledger, work))
    await work.begun.wait()  # and it was done in the same turn
    leaving.cancel()
    await asyncio.wait((leaving,))
    assert await asking(ledger, Work(body=b"other")) == (Kept(status=201, body=b"1"), True)


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_failure_that_nobody_waits_for_is_told_to_nobody(turns: int) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what["message"]))
    leaving: list[asyncio.Task[Any]] = []

    async def work() -> Kept:
        for _ in range(turns):
            leaving[0].cancel()  # and once more while it is being undone
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        leaving[0].cancel()  # and it fails before the other one's turn
        raise PoolBusyError("none left")

    leaving.append(asyncio.create_task(asking(Ledger(), work)))
    await asyncio.wait(leaving)
    assert leaving.pop().cancelled()
    gc.collect()
    assert told == []


async def test_an_answer_is_forgotten_in_time() -> None:
    now = 0.0
    ledger, work = Ledger(clock=lambda: now), Work()
    assert (await asking(ledger, work))[0].body == b"1"
    now = idempotency.KEPT_SECONDS - 1
    assert (await asking(ledger, work))[0].body == b"1"
    now += idempotency.SWEEP_SECONDS
    assert (await asking(ledger, work))[0].body == b"2"


async def test_the_oldest_keys_of_one_owner_go_first_and_nobody_elses() -> None:
    ledger, work = Ledger(), Work()
    await asking(ledger, work, owner="other")
    for number in range(idempotency.KEPT_KEYS + 1):
        await asking(ledger, work, key=str(number))
    done = work.done
    assert (await asking(ledger, work, owner="other"))[1]
    assert (await asking(ledger, work, key="1"))[1]
    assert work.done == done
    assert not (await asking(ledger, work, key="0"))[1]


async def test_what_is_being_done_is_never_dropped_for_its_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "KEPT_KEYS", 1)
    gate = asyncio.Event()
    ledger, work = Ledger(), Work(gate=gate)
    first = asyncio.create_task(asking(ledger, work, key="first"))
    await work.begun.wait()
    await asking(ledger, Work(), key="second")
    again = asyncio.create_task(asking(ledger, work, key="first"))
    await asyncio.sleep(0)
    gate.set()
    assert (await first)[0] == (await again)[0]
    assert work.done == 1


async def test_answers_that_are_too_much_are_remembered_as_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "KEPT_BYTES", 100)
    ledger, work = Ledger(), Work(body=b"x" * 60)
    await asking(ledger, work, key="first")
    await asking(ledger, work, key="second")
    assert (await asking(ledger, work, key="second"))[1]
    with pytest.raises(ConflictError) as refused:
        await asking(ledger, work, key="first")
    assert refused.value.error_code == "idempotency_answer_gone"
    assert work.done == 2
