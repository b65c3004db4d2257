"""What changes a sandbox's machine, cut off at every step: it is as before, or as after."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests import stepping
from tests.fake_host import OWNER
from tests.turns import TURNS, consistent, gone, prepared
from vmpool.errors import VmpoolError
from vmpool.lifecycle import EndReason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from vmpool.holding import Holding
    from vmpool.host import Host


async def stepped(
    host: Host, it: Holding, turn: str, each: Callable[[stepping.Place], object]
) -> Any:
    """Take a turn, and be told of every step of it, and of births in it, before it is taken."""
    birth = type(host._forking)._birth

    def stepwise(*given: Any, **state: Any) -> Any:
        return stepping._stepped(birth(host._forking, *given, **state), each)

    host._forking._birth = stepwise  # type: ignore[method-assign]
    return await host._household.finish(it, lambda: stepping._stepped(TURNS[turn](host, it), each))


async def steps(host: Host, turn: str) -> list[stepping.Place]:
    """Return the places that a turn comes by."""
    it = await prepared(host, turn)
    found: dict[stepping.Place, None] = {}
    await stepped(host, it, turn, found.setdefault)
    await gone(host)
    assert len(found) > 3, found
    return list(found)


def at(place: stepping.Place, act: Callable[[], object]) -> Callable[[stepping.Place], None]:
    """Return what acts at a place."""

    def each(where: stepping.Place) -> None:
        if where == place:
            act()

    return each


async def outcome(work: Coroutine[Any, Any, Any]) -> BaseException | None:
    """Return what a turn raised."""
    try:
        await work
    except (VmpoolError, asyncio.CancelledError) as err:
        return err
    return None


@pytest.mark.parametrize("turn", TURNS)
async def test_a_turn_cut_off_at_any_step_leaves_what_was_or_what_was_to_be(
    roomy: Host, turn: str
) -> None:
    it = await prepared(roomy, turn)
    state = it.sandbox.state

    def cut() -> None:
        if it.operation is not None:
            it.operation.cancel()

    for place in await steps(roomy, turn):
        if it.sandbox.state is not state or it.ending is not None:
            await gone(roomy)
            it = await prepared(roomy, turn)
        await outcome(stepped(roomy, it, turn, at(place, cut)))
        await consistent(roomy)
        await gone(roomy, but=it.sandbox)


@pytest.mark.parametrize("turn", TURNS)
async def test_a_sandbox_killed_at_any_step_of_a_turn_is_gone_with_all_of_it(
    roomy: Host, turn: str
) -> None:
    for place in await steps(roomy, turn):
        it = await prepared(roomy, turn)
        kill = partial(roomy._household.begin_end, it, EndReason.KILLED)
        error = await outcome(stepped(roomy, it, turn, at(place, kill)))
        assert error is None or "has ended: killed" in str(error), place
        assert it.ending is not None
        await it.ending
        assert it.sandbox not in roomy.sandboxes(owner=OWNER)
        assert (await roomy.store.sandbox(it.sandbox.id)).end_reason is EndReason.KILLED
        await consistent(roomy)
        kept = await roomy.checkpoints(owner=OWNER, sandbox=it.sandbox.id)
        assert turn != "keep" or not kept or error is None, place
        await gone(roomy)
