"""`vmpool serve` and `vmpool up` over an engine without hypervisors, as a process of its own.

    python -m tests.api.fake_server serve|drain|up|stop

Settings come from the environment; with `VMPOOL_TEST_STEM` guests are forked, not started.
"""

from __future__ import annotations

import asyncio
import os
import sys

from tests.fake_stem import Stem
from tests.fakes import FakeEngine
from vmpool import config
from vmpool.cli.serve import serve, take_over
from vmpool.cli.up import Afterwards, Plan, bring_up
from vmpool.host import HostFacts
from vmpool.model import Accelerator, Transport
from vmpool.opening import Base


def main() -> None:
    """Serve, bring up and serve, or bring up and stop."""
    facts = HostFacts(
        accelerator=Accelerator.TCG,
        accelerator_reason="nothing is accelerated here",
        transport=Transport.SERIAL,
        qemu_version=FakeEngine().version,
    )
    stem = Stem() if os.environ.get("VMPOOL_TEST_STEM") else None
    base = Base(engine=FakeEngine(stem=stem), facts=facts)
    settings = config.load()
    if sys.argv[1] == "drain":
        asyncio.run(take_over(settings))
    if sys.argv[1] in {"serve", "drain"}:
        asyncio.run(serve(settings, base=base))
        return
    plan = Plan(
        settings=settings,
        templates=("toy",),
        ready=0,
        afterwards=Afterwards.SERVE if sys.argv[1] == "up" else Afterwards.STOP,
    )
    asyncio.run(bring_up(plan, base=base))


if __name__ == "__main__":
    main()
