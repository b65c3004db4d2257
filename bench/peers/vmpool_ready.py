"""Peer: vmpool itself, as it is used: a request over HTTP, and a clone that is ready."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import aiohttp

from bench.line import FIRST_OUTPUT, LINE, OUTPUT
from bench.peer import Clock, Peer
from bench.resting import emptied, settle
from bench.stand import EMPTY
from vmpool.errors import InfrastructureError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start

NAME = "vmpool, ready clone"
ONE = Limits(ready=1, total=1)


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    subject = arena.subject

    async def start() -> Phases:
        await settle(subject.pool, ONE)
        clock = Clock()
        body = {"template": subject.template.name, "code": LINE}
        try:
            async with subject.stand.client.post("/v1/run", json=body) as response:
                answer = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError) as err:
            raise InfrastructureError(f"the request failed: {err!r}") from err
        clock.reached(FIRST_OUTPUT)
        if response.status != 200 or answer["stdout"].encode() != OUTPUT:
            raise InfrastructureError(f"the answer is wrong: {str(answer)[:500]}")
        await settle(subject.pool, EMPTY)  # nothing is restored beside the others
        return clock.phases

    async with emptied(subject.pool):
        await start()  # connects
        yield start


PEER = Peer(
    name=NAME,
    summary="POST /v1/run with a clone ready, to the whole answer at the client: a virtual machine"
    " of its own, identified and killed afterwards",
    open=_open,
)
