"""A server over the fake engine that dies at one place of its code, in the verb that it is in.

    python -m tests.faulty_server STATE PLACE

It says a line for each thing that it has promised before it dies; a place that it never comes by
makes it exit with 3.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.crashes import verb_of
from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine
from tests.standing import STANDS, THAWS
from vmpool import faults, stillness
from vmpool.host import ForkRequest, Host
from vmpool.lifecycle import Keep
from vmpool.model import MIB

NEVER = 3


async def do(verb: str, host: Host, first: str, asleep: str) -> None:
    """Do the verb of which a place is: what stands before the dot in its name."""
    match verb:
        case "create":
            await host.create(wanted(), owner=OWNER)
        case "checkpoint" | "capture":
            await host.checkpoint(first, owner=OWNER, name="new")
        case "fork":
            await host.fork(first, ForkRequest(count=2, timeout=600.0), owner=OWNER)
        case "rollback":
            await host.rollback(first, owner=OWNER, checkpoint="kept")
        case "halt":
            await host.pause(first, owner=OWNER, keep=Keep.DISK)
        case "pause":
            await host.pause(first, owner=OWNER)
        case "resume":
            await host.resume(asleep, owner=OWNER, timeout=None)
        case "remove":
            await host.remove_checkpoint("spare", owner=OWNER)
        case "kill":
            await host.kill(first, owner=OWNER)
        case _:
            raise ValueError(f"{verb!r} is no verb that a place is in")


async def main(state: Path, place: str) -> None:
    """Make one of everything, then do the verb that comes by the place."""
    async with opened(state, FakeEngine()) as host:
        verb = verb_of(place)
        await add_template(host, disk_bytes=8 * MIB if verb == "halt" else 0)
        stillness._COMMAND = STANDS
        stillness._THAW = THAWS
        first = (await host.create(wanted(), owner=OWNER)).id
        print("running", first, flush=True)
        await host.checkpoint(first, owner=OWNER, name="kept")
        await host.checkpoint(first, owner=OWNER, name="spare")
        asleep = (await host.create(wanted(checkpoint="kept", template=""), owner=OWNER)).id
        await host.pause(asleep, owner=OWNER)
        print("paused", asleep, flush=True)
        faults._armed = place
        await do(verb, host, first, asleep)
        sys.exit(NEVER)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
