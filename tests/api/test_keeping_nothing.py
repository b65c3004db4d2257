"""A server keeps nothing of the sandboxes that are gone, however many there were."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from typing import TYPE_CHECKING

from tests.api.conftest import IMAGE

if TYPE_CHECKING:
    from tests.api.conftest import Server

OURS = ("vmpool.", "asyncio", "_asyncio", "_contextvars")
"""Modules whose objects are counted; what libraries keep in caches of theirs comes and goes."""

RUNNING = frozenset({"builtins.coroutine", "builtins.frame", "builtins.traceback"})

AROUND = 5
"""By how many the objects of a kind may differ, for what goes on beside."""


def alive() -> Counter[str]:
    """Return how many objects there are of each kind that a sandbox has some of."""
    gc.collect()
    kinds = (f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return Counter(kind for kind in kinds if kind.startswith(OURS) or kind in RUNNING)


async def come_and_go(server: Server, count: int) -> None:
    """Make sandboxes, ask something of each, and kill them."""
    for _ in range(count):
        id = (await server.make_sandbox(template=IMAGE))["id"]
        argv = {"argv": ["/bin/true"]}
        assert (await server.call("POST", f"/v1/sandboxes/{id}/exec", json=argv))[0] == 200
        assert (await server.call("DELETE", f"/v1/sandboxes/{id}"))[0] == 204


async def test_nothing_is_kept_of_a_sandbox_that_is_gone(server: Server) -> None:
    await come_and_go(server, AROUND)
    before = alive()
    await come_and_go(server, 3 * AROUND)

    def kept() -> dict[str, int]:
        return {kind: more for kind, more in (alive() - before).items() if more > AROUND}

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while kept():  # what ends behind an answer has no event to wait on
                await server.call("GET", "/healthz")
    assert not kept()
