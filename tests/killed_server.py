"""A server over the fake engine that makes, runs and kills until somebody kills it.

    python -m tests.killed_server STATE

It says `ready` once it has a template, and a line for each thing that it begins.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from tests.fake_host import OWNER, add_template, opened, run_request, wanted
from tests.fakes import FakeEngine
from vmpool.model import Code
from vmpool.policy import Limits


async def main(state: Path) -> None:
    """Serve nobody, without end."""
    async with opened(state, FakeEngine()) as host:
        if not host.catalogue.statuses:
            await add_template(host, limits=Limits(ready=1))
        await host.catalogue.settled("python")
        print("ready", flush=True)
        for turn in itertools.count():
            made, _ = await asyncio.gather(
                host.create(wanted(), owner=OWNER),
                host.run(run_request(Code(source="pass")), owner=OWNER),
            )
            if turn % 2:
                await host.kill(made.id, owner=OWNER)
            print(turn, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
