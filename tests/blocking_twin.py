"""Blocking twin: the blocking client seen through the asynchronous one's interface.

So that one suite holds for both. Whatever it does, it does in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from vmpool.client import (
    blocking,
    blocking_files,
    blocking_network,
    blocking_ports,
    blocking_processes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

BLOCKS = {
    "sandbox",
    "exec",
    "interact",
    "stream",
    "watch",
    "archive",
    "follow",
    "capture",
    "forward",
}
ITERATORS = {"sandboxes"}
AT_ONCE = {"attach", "detach", "find"}

_TWINS = (
    blocking.Client,
    blocking.Sandbox,
    blocking.Checkpoints,
    blocking.Contexts,
    blocking.Context,
    blocking.Execution,
    blocking.Interaction,
    blocking_files.Files,
    blocking_network.Network,
    blocking_ports.Port,
    blocking_ports.Ports,
    blocking_processes.Processes,
    blocking_processes.Process,
    blocking_processes.Attachment,
)


class Twin:
    """One of the blocking client's objects."""

    def __init__(self, behind: Any) -> None:
        self.behind = behind

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.behind, name)
        if name in BLOCKS:
            return lambda *words, **options: _entered(value, *words, **options)
        if name in ITERATORS:
            return lambda *words, **options: _iterated(value(*words, **options))
        if name == "attach" and isinstance(self.behind, blocking_processes.Process):
            return lambda *words, **options: _entered(value, *words, **options)
        if name in AT_ONCE:
            return lambda *words, **options: _twin(value(*words, **options))
        if callable(value):
            return lambda *words, **options: _called(value, *words, **options)
        return _twin(value)

    def __getitem__(self, key: Any) -> Any:
        return _twin(self.behind[key])

    def __repr__(self) -> str:
        return repr(self.behind)

    def __aiter__(self) -> AsyncIterator[Any]:
        return _iterated(iter(self.behind))

    async def __aenter__(self) -> Twin:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.behind.close)


def _twin(value: Any) -> Any:
    if isinstance(value, list):
        return [_twin(one) for one in value]
    return Twin(value) if isinstance(value, _TWINS) else value


async def _called(method: Callable[..., Any], /, *words: Any, **options: Any) -> Any:
    return _twin(await asyncio.to_thread(method, *words, **options))


@contextlib.asynccontextmanager
async def _entered(method: Callable[..., Any], *words: Any, **options: Any) -> AsyncIterator[Any]:
    block = method(*words, **options)
    entered = await asyncio.to_thread(block.__enter__)
    try:
        yield _iterated(entered) if hasattr(entered, "__next__") else _twin(entered)
    except BaseException as err:
        await asyncio.to_thread(block.__exit__, type(err), err, err.__traceback__)
        raise
    await asyncio.to_thread(block.__exit__, None, None, None)


async def _iterated(items: Iterator[Any]) -> AsyncIterator[Any]:
    over = object()
    while (item := await asyncio.to_thread(next, items, over)) is not over:
        yield item
