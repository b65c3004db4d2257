"""Clients in a process of their own do what they are ordered, and say what came of it."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from aiohttp import web

from bench.load import Tally, What, send
from vmpool.client.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.subject import Subject


@contextlib.asynccontextmanager
async def served(asked: list[str], *, refuse_every: int = 0) -> AsyncIterator[Subject]:
    """Serve what clients ask for; of runs, refuse some."""

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        if request.path == "/v1/run":
            assert request.headers["Authorization"] == "Bearer t1"
            if refuse_every and asked.count("POST /v1/run") % refuse_every == 0:
                return web.json_response({"code": "pool_full"}, status=429)
            return web.json_response({"stdout": "42\n"})
        return web.json_response({"id": f"s{len(asked)}"})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        stand = SimpleNamespace(endpoint=Endpoint(url=url, token="t1"))
        template = SimpleNamespace(name="base")
        yield cast("Subject", SimpleNamespace(stand=stand, template=template))
    finally:
        await runner.cleanup()


async def test_what_is_answered_is_timed_and_what_is_refused_is_told() -> None:
    asked: list[str] = []
    async with served(asked, refuse_every=5) as subject:
        tally = await send(subject, What.RUN, clients=3, requests=20, seconds=30)
    assert asked.count("POST /v1/run") == 20
    assert len(tally.latencies) == 16
    assert min(tally.latencies) > 0
    assert len(tally.failures) == 4
    assert "429" in tally.failures[0]


async def test_what_was_created_is_killed() -> None:
    asked: list[str] = []
    async with served(asked) as subject:
        tally = await send(subject, What.CREATE, clients=4, requests=4, seconds=30)
    assert len(tally.ended_ms) == 4
    killed = [one for one in asked if one.startswith("DELETE /v1/sandboxes/s")]
    assert len(set(killed)) == 4


async def test_no_request_begins_after_its_time() -> None:
    asked: list[str] = []
    async with served(asked) as subject:
        tally = await send(subject, What.RUN, clients=2, requests=10**6, seconds=0.2)
    assert 0 < len(tally.ended_ms) < 10**6
    assert max(tally.began_ms) <= 200


def test_a_rate_counts_from_the_first_request_to_the_last_answer() -> None:
    tally = Tally(began_ms=[0.0, 100.0], ended_ms=[100.0, 500.0], failures=[])
    assert tally.rate == 4.0
    assert tally.latencies == [100.0, 400.0]
    assert Tally(began_ms=[], ended_ms=[], failures=[]).rate == 0.0
