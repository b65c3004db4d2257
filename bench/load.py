"""Load: clients in a process of their own, so that their work is not counted as the server's.

    python -m bench.load

reads one `Order` as JSON from its input, sends the requests, and writes a `Tally` as JSON.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from enum import StrEnum
from typing import TYPE_CHECKING

import aiohttp
import msgspec

from bench.line import LINE
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from bench.subject import Subject

_OVERTIME = 30.0
"""Seconds beyond an order's own after which its clients are ended."""

_TALLY_BYTES = 16 << 20
_WORDS_MOST = 300


class What(StrEnum):
    """What each client does, over and over."""

    RUN = "run"
    """`POST /v1/run`: a machine of its own for each."""
    EXECUTE = "execute"
    """An execution in one of the sandboxes."""
    CREATE = "create"
    """`POST /v1/sandboxes`; they are killed when all have been made."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What clients are to do.

    Attributes:
        clients: How many at one time.
        requests: Of all of them together.
        seconds: After which no more is begun.
        sandboxes: Ids, for executions.
    """

    what: What
    url: str
    token: str
    template: str
    clients: int
    requests: int
    seconds: float
    sandboxes: tuple[str, ...] = ()


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order.

    Attributes:
        began_ms, ended_ms: Of each request that was answered well, from the order's beginning.
        failures: What others were answered.
    """

    began_ms: list[float]
    ended_ms: list[float]
    failures: list[str]

    @property
    def latencies(self) -> list[float]:
        """How long each request took, in milliseconds."""
        return [end - began for began, end in zip(self.began_ms, self.ended_ms, strict=True)]

    @property
    def rate(self) -> float:
        """Answers a second, from the first request to the last answer."""
        return 1000 * len(self.ended_ms) / max(self.ended_ms, default=1.0)


async def send(
    subject: Subject,
    what: What,
    *,
    clients: int,
    requests: int,
    seconds: float,
    sandboxes: tuple[str, ...] = (),
) -> Tally:
    """Have clients in another process do something to the subject's server.

    Raises:
        InfrastructureError: They did not come to an end.
    """
    endpoint = subject.stand.endpoint
    order = Order(
        what=what,
        url=endpoint.url,
        token=endpoint.token,
        template=subject.template.name,
        clients=clients,
        requests=requests,
        seconds=seconds,
        sandboxes=sandboxes,
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        limit=_TALLY_BYTES,
    )
    try:
        async with asyncio.timeout(seconds + _OVERTIME):
            said, _ = await process.communicate(msgspec.json.encode(order))
    except TimeoutError as err:
        raise InfrastructureError("the clients did not come to an end") from err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise InfrastructureError(f"the clients ended with {process.returncode}")
    return msgspec.json.decode(said, type=Tally)


async def _carried_out(order: Order) -> Tally:
    """Do what an order says, in this process."""
    headers = {"Authorization": f"Bearer {order.token}"} if order.token else {}
    connector = aiohttp.TCPConnector(limit=order.clients)
    tally = Tally(began_ms=[], ended_ms=[], failures=[])
    async with aiohttp.ClientSession(order.url, headers=headers, connector=connector) as session:
        await _connected(session, order.clients)
        made: list[str] = []
        numbers = iter(range(order.requests))
        began = time.perf_counter()

        def now_ms() -> float:
            return 1000 * (time.perf_counter() - began)

        async def work() -> None:
            for number in numbers:
                at = now_ms()
                if at > 1000 * order.seconds:
                    return
                try:
                    made.extend(await _request(session, order, number))
                except (aiohttp.ClientError, TimeoutError, InfrastructureError) as err:
                    tally.failures.append(str(err)[:_WORDS_MOST])
                    continue
                tally.began_ms.append(at)
                tally.ended_ms.append(now_ms())

        async with asyncio.TaskGroup() as group:
            for _ in range(order.clients):
                group.create_task(work())
        for id in made:
            async with session.delete(f"/v1/sandboxes/{id}"):
                pass
    return tally


async def _connected(session: aiohttp.ClientSession, clients: int) -> None:
    """Open all connections first: they are kept open by whoever has much to ask."""

    async def once() -> None:
        async with session.get("/healthz") as response:
            await response.read()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(once())


async def _request(session: aiohttp.ClientSession, order: Order, number: int) -> list[str]:
    """Send one request; return the ids of sandboxes that are to be killed.

    Raises:
        InfrastructureError: It was refused, or answered wrongly.
    """
    path, body = _path_and_body(order, number)
    async with session.post(path, json=body) as response:
        said = await response.read()
    if response.status >= 300:
        raise InfrastructureError(f"{response.status}: {said[:_WORDS_MOST]!r}")
    if order.what is What.CREATE:
        return [msgspec.json.decode(said)["id"]]
    if b"42\\n" not in said:
        raise InfrastructureError(f"the answer is wrong: {said[:_WORDS_MOST]!r}")
    return []


def _path_and_body(order: Order, number: int) -> tuple[str, dict[str, str]]:
    match order.what:
        case What.RUN:
            return "/v1/run", {"template": order.template, "code": LINE}
        case What.EXECUTE:
            sandbox = order.sandboxes[number % len(order.sandboxes)]
            return f"/v1/sandboxes/{sandbox}/exec", {"code": LINE}
        case What.CREATE:
            return "/v1/sandboxes", {"template": order.template}


def main() -> None:
    """Carry out the order on the standard input."""
    order = msgspec.json.decode(sys.stdin.buffer.read(_TALLY_BYTES), type=Order)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_carried_out(order))))


if __name__ == "__main__":
    main()
