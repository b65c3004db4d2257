"""A manager that restores a clone, has something run in it, and is killed then.

    python -m tests.left_clone TEMPLATE RUN

It prints the clone's id and those of two processes in it: one that is kept and counts, and one
that runs over its link.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vmpool import clone, snapshot
from vmpool.clone import RestoreDeadlines
from vmpool.engine.qemu import QemuEngine
from vmpool.model import Command

DEADLINES = RestoreDeadlines(hello=60.0, identify=60.0, warm=60.0, activate=60.0)
COUNT = Command(argv=("/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done"))
PASSING = Command(argv=("/bin/sleep", "600"))


async def main(template: Path, run: Path) -> None:
    """Hold a clone until somebody kills us."""
    made = await clone.restore(
        await QemuEngine.detect(), snapshot.load(template), run=run, deadlines=DEADLINES
    )
    await made.activate()
    pid = await made.agent.processes.start(COUNT, tag="counts")
    async with made.agent.execute(PASSING) as passing:
        print(made.id, pid, passing.pid, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
