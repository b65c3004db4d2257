"""Scripted clones: what a pool keeps and gives out, living and dying as a test tells them to.

A clone records what is done to it; its maker is the `restore` of a pool. Nothing of it takes time
but the loop's, so it runs under `virtual_time`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.virtual_time import pass_time
from vmpool.errors import GuestError, VmpoolError
from vmpool.policy import Limits
from vmpool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SOON = 5.0
ONE = Limits(ready=0, total=1, queue=10)


class Clone:
    """A clone that records what is done to it and fails when it is told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.activations = 0
        self.activation_error: VmpoolError | None = None
        self.activation_gate = asyncio.Event()
        self.activation_gate.set()
        self.kill_error: Exception | None = None
        self.kill_gate = asyncio.Event()
        self.kill_gate.set()
        self.dead = asyncio.Event()

    def __repr__(self) -> str:
        return f"<clone {self.number}>"

    async def activate(self) -> None:
        self.activations += 1
        if self.dead.is_set():
            raise GuestError("the clone is dead")
        await self.activation_gate.wait()
        if self.activation_error is not None:
            raise self.activation_error

    async def kill(self) -> None:
        if self.kill_error is not None:
            raise self.kill_error
        await self.kill_gate.wait()
        self.dead.set()

    async def wait_dead(self) -> None:
        await self.dead.wait()

    def die(self) -> None:
        self.dead.set()


class Maker:
    """Makes clones, at once or when told to, and knows all that it made."""

    def __init__(self) -> None:
        self.made: list[Clone] = []
        self.running = 0
        self.most_running = 0
        self.attempts: list[float] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.prepare: Callable[[Clone], None] = lambda _: None
        self.seconds = 0.0

    async def __call__(self) -> Clone:
        self.attempts.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            await pass_time(self.seconds)
            if self.error is not None:
                raise self.error
            clone = Clone(len(self.made))
            self.prepare(clone)
            self.made.append(clone)
            return clone
        finally:
            self.running -= 1

    @property
    def alive(self) -> list[Clone]:
        return [clone for clone in self.made if not clone.dead.is_set()]


def pool_of(maker: Callable[[], Awaitable[Clone]], limits: Limits) -> Pool[Clone]:
    return Pool("python", restore=maker, limits=limits, jitter=lambda: 1.0)


def soon(seconds: float = SOON) -> float:
    return asyncio.get_running_loop().time() + seconds


def acquiring(pool: Pool[Clone], seconds: float = SOON) -> asyncio.Task[Clone]:
    return asyncio.create_task(pool.acquire(deadline=soon(seconds)))


async def end(pool: Pool[Clone], clone: Clone) -> None:
    """Do what a holder does in the end."""
    await clone.kill()
    pool.release(clone)


async def cancelled(task: asyncio.Task[Clone]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def offer(maker: Maker) -> None:
    """Let one clone arrive; return when it is offered and its caller has not woken yet.

    Who is woken first runs first: this function, by the maker, and then the caller, by the pool.
    """
    arrived = asyncio.get_running_loop().create_future()
    maker.prepare = lambda _: arrived.set_result(None)
    maker.gate.set()
    await arrived
    maker.prepare = lambda _: None
