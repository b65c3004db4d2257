"""Contexts of a connected agent, and what is told of runs in them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.agent.contexts import Cell, ContextSpec, Language
from vmpool.model import Output, Result

if TYPE_CHECKING:
    from vmpool.agent import Agent, Execution
    from vmpool.model import ExecutionEvent


async def create(agent: Agent, language: str = "python", **options: object) -> str:
    """Make a context; return its id."""
    spec = ContextSpec(language=Language(language), **options)  # type: ignore[arg-type]
    return (await agent.contexts.create(spec, outer={})).id


async def run(
    agent: Agent, context: str, source: str, *, outer: dict[str, str] | None = None, **more: object
) -> list[ExecutionEvent]:
    """Run a cell to its end; return all that was told."""
    cell = Cell(context=context, source=source, **more)  # type: ignore[arg-type]
    async with asyncio.timeout(60), agent.contexts.run(cell, outer=outer or {}) as execution:
        return [event async for event in execution]


async def value(agent: Agent, context: str, source: str) -> str:
    """Return the text of a cell's value."""
    events = await run(agent, context, source)
    return next(event.mime["text/plain"] for event in events if isinstance(event, Result))


async def until_output(execution: Execution, text: bytes) -> None:
    """Return when so much has been written."""
    seen = b""
    async for event in execution:
        seen += event.data if isinstance(event, Output) else b""
        if text in seen:
            return
    raise AssertionError(f"{text!r} never came, but {seen!r}")
