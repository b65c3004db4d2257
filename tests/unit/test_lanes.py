"""Lanes are shared by turns, and none is lost when somebody leaves while waiting for one."""

from __future__ import annotations

import asyncio

from vmpool.lanes import Lanes

MOST = 4


class Crowd:
    """Those who hold lanes, or want them."""

    def __init__(self) -> None:
        self.lanes = Lanes(MOST)
        self.served: list[str] = []
        self.leave: list[asyncio.Event] = []

    async def hold(self, party: str) -> None:
        leave = asyncio.Event()
        async with self.lanes.one(party):
            self.served.append(party)
            self.leave.append(leave)
            await leave.wait()


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_whoever_has_all_lanes_gives_up_the_next_to_another() -> None:
    crowd = Crowd()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(crowd.hold("greedy")) for _ in range(10 * MOST)]
        await settle()
        tasks += [group.create_task(crowd.hold("modest")) for _ in range(2)]
        await settle()
        assert crowd.served == ["greedy"] * MOST
        for each in crowd.leave[:4]:
            each.set()
            await settle()
        assert crowd.served[MOST:] == ["greedy", "modest", "greedy", "modest"]
        for task in tasks:
            task.cancel()


async def test_a_lane_is_not_lost_with_whom_it_was_just_given_to() -> None:
    crowd = Crowd()
    holders = [asyncio.create_task(crowd.hold("one")) for _ in range(MOST - 1)]
    await settle()
    async with crowd.lanes.one("test"):
        waiting = asyncio.create_task(crowd.hold("two"))
        await settle()
    waiting.cancel()  # which was given a lane as the block ended, and does not know it yet
    last = asyncio.create_task(crowd.hold("three"))
    await settle()
    assert crowd.served == [*["one"] * (MOST - 1), "three"]
    for task in (*holders, last):
        task.cancel()
    await asyncio.gather(*holders, waiting, last, return_exceptions=True)
