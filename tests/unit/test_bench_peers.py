"""What is compared takes turns, what is not here is skipped in words, and nothing of it stays."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from aiohttp import web

from bench import peer
from bench.line import FIRST_OUTPUT
from bench.measurement import Findings, Pace
from bench.measurements import peers
from bench.peer import Arena, Peer, Phases, Start, UnavailableError, run_line, tried
from bench.peers import bubblewrap, crun, e2b, gvisor, python
from vmpool.errors import GuestError, InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from bench.subject import Subject

FOREVER = Pace(rounds=12, deadline=math.inf)


class Clock:
    """Time that passes only when somebody starts something."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def runner(name: str, seconds: float, clock: Clock, starts: list[str]) -> peers.Turn:
    """Return the turns of a peer whose starts take so long."""

    async def start() -> Phases:
        starts.append(name)
        clock.now += seconds
        return {FIRST_OUTPUT: 1000 * seconds}

    return peers.Turn(peer=_peer(name, start), start=start)


def _peer(name: str, start: Start) -> Peer:
    @contextlib.asynccontextmanager
    async def opened(arena: Arena) -> AsyncIterator[Start]:
        yield start

    return Peer(name=name, summary=f"what {name} does", open=opened)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(peers, "time", stopped)
    return stopped


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    """An arena whose image is never looked at."""
    host = SimpleNamespace(settings=SimpleNamespace(state=tmp_path))
    subject = SimpleNamespace(stand=SimpleNamespace(host=host, clones=tmp_path))
    return Arena(subject=cast("Subject", subject), directory=tmp_path, sockets=tmp_path)


def findings() -> Findings:
    return Findings(measurement="peers", image="base")


async def test_a_slow_one_is_started_now_and_then_and_a_quick_one_in_every_round(
    clock: Clock,
) -> None:
    starts: list[str] = []
    turns = [
        runner("boot", 12.0, clock, starts),
        *(runner(f"quick {n}", 1.0, clock, starts) for n in range(3)),
    ]
    await peers._rounds(turns, Pace(rounds=40, deadline=math.inf), findings())
    assert [starts.count(f"quick {n}") for n in range(3)] == [40, 40, 40]
    boots = [at for at, name in enumerate(starts) if name == "boot"]
    assert 3 <= len(boots) <= 5
    assert boots[-1] > len(starts) / 2  # spread, not all at the beginning


async def test_the_first_of_a_round_is_another_each_time(clock: Clock) -> None:
    starts: list[str] = []
    turns = [runner(name, 1.0, clock, starts) for name in ("a", "b", "c")]
    await peers._rounds(turns, Pace(rounds=3, deadline=math.inf), findings())
    assert starts == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


async def test_one_that_fails_leaves_the_others_their_turns(clock: Clock) -> None:
    async def fail() -> Phases:
        raise GuestError("no answer", code="guest_unreachable")

    starts: list[str] = []
    broken = peers.Turn(peer=_peer("broken", fail), start=fail)
    found = findings()
    await peers._rounds([broken, runner("well", 1.0, clock, starts)], FOREVER, found)
    assert found.failures == ["broken: no answer [guest_unreachable]"] * peers.FAILURES_MOST
    assert len(starts) >= FOREVER.rounds - peers.FAILURES_MOST
    assert [one.name for one in found.all_series] == [f"well: {FIRST_OUTPUT}"]


async def test_what_is_not_here_is_skipped_in_words(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start() -> Phases:
        return {FIRST_OUTPUT: 1.0}

    @contextlib.asynccontextmanager
    async def absent(arena: Arena) -> AsyncIterator[Start]:
        raise UnavailableError("it is not installed")
        yield start

    there = _peer("there", start)
    missing = Peer(name="missing", summary="", open=absent)
    monkeypatch.setattr(peers, "PEERS", (missing, there))
    found = findings()
    await peers.measure(arena.subject, Pace(rounds=1, deadline=math.inf), found)
    assert found.remarks == ["missing: skipped: it is not installed"]
    assert found.notes["peers"] == {"there": "what there does"}
    assert not list(arena.directory.iterdir())


@pytest.mark.parametrize("one", [bubblewrap.PEER, crun.PEER, gvisor.PEER], ids=lambda one: one.name)
async def test_a_program_that_is_missing_is_unavailable(
    one: Peer, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(crun, "_is_hybrid", lambda: False)
    with pytest.raises(UnavailableError, match="is not installed"):
        async with one.open(arena):
            pass


async def test_a_bare_process_prints_the_line(arena: Arena) -> None:
    async with python.PEER.open(arena) as start:
        phases = await start()
    assert 0 < phases[FIRST_OUTPUT] <= phases["end"]


@pytest.mark.parametrize(
    ("argv", "seconds", "why"),
    [
        (("sh", "-c", "echo 43"), 30.0, "printed b'43"),
        (("sh", "-c", "echo first >&2; echo no cgroups here >&2; exit 1"), 30.0, "no cgroups here"),
        (("sh", "-c", "exec sleep 60"), 1.0, "did not end within"),
    ],
)
async def test_a_program_that_does_not_print_the_line_has_failed(
    argv: Sequence[str], seconds: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "START_TIMEOUT", seconds)

    async def start() -> Phases:
        return await run_line(argv)

    with pytest.raises(InfrastructureError, match=why):
        await start()
    with pytest.raises(UnavailableError, match=why):
        await tried(start)


@contextlib.asynccontextmanager
async def e2b_server(output: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve the few routes of E2B's API that are used; yield its address and what was asked."""
    asked: list[str] = []

    async def create(request: web.Request) -> web.Response:
        asked.append(
            f"create {request.headers['X-API-Key']} {(await request.json())['templateID']}"
        )
        values = {"sandboxID": "s1", "envdAccessToken": "t1"}
        return web.json_response(values, status=201)

    async def execute(request: web.Request) -> web.Response:
        named = request.headers["E2B-Sandbox-Id"], request.headers["X-Access-Token"]
        asked.append(f"execute {named} {(await request.json())['code']}")
        return web.Response(text=f'{{"type":"stdout","text":"{output}"}}\n{{"type":"end"}}\n')

    async def kill(request: web.Request) -> web.Response:
        asked.append(f"kill {request.match_info['id']}")
        return web.Response(status=204)

    application = web.Application()
    application.router.add_post("/sandboxes", create)
    application.router.add_post("/execute", execute)
    application.router.add_delete("/sandboxes/{id}", kill)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def _point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("E2B_API_URL", "E2B_SANDBOX_URL"):
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("E2B_API_KEY", "k1")


async def test_a_server_that_speaks_e2bs_api_is_asked_for_the_line(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with e2b_server(r"42\n") as (url, asked):
        _point(monkeypatch, url)
        async with e2b.PEER.open(arena) as start:
            asked.clear()
            phases = await start()
    assert 0 < phases["created"] < phases[FIRST_OUTPUT]
    assert asked == [
        "create k1 code-interpreter-v1",
        "execute ('s1', 't1') print(6*7)",
        "kill s1",
    ]


async def test_a_sandbox_of_a_server_that_answers_wrongly_is_killed(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with e2b_server("41") as (url, asked):
        _point(monkeypatch, url)
        with pytest.raises(UnavailableError, match="without the output"):
            async with e2b.PEER.open(arena):
                pass
    assert asked[-1] == "kill s1"


async def test_without_a_key_no_server_is_asked(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(UnavailableError, match="E2B_API_KEY is not set"):
        async with e2b.PEER.open(arena):
            pass


def test_sandboxes_have_names_of_their_own_unless_one_address_serves_all() -> None:
    service = e2b.Service.named({"E2B_API_KEY": "k", "E2B_DOMAIN": "example.org"})
    assert service.api_url == "https://api.example.org"
    assert service.interpreter("s1") == "https://49999-s1.example.org/execute"


def test_every_peer_has_a_name_and_says_what_it_does() -> None:
    assert len({one.name for one in peers.PEERS}) == len(peers.PEERS) >= 11
    assert all(one.summary for one in peers.PEERS)
