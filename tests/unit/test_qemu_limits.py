"""What a QEMU process may use at most, as the kernel shows it. Any program stands in for QEMU."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

from tests.stand_ins import isolated
from vmpool.engine.qemu import process
from vmpool.engine.qemu.jail.limits import SMALL


async def test_what_a_process_may_use_is_limited_from_its_start() -> None:
    walled = await asyncio.to_thread(isolated)
    with tempfile.TemporaryFile() as log, walled.for_one() as jail:
        child = await process.spawn(("/usr/bin/sleep", "60"), slots={}, log=log.fileno(), jail=jail)
    try:
        lines = Path(f"/proc/{child.pid}/limits").read_text().splitlines()[1:]
        score = Path(f"/proc/{child.pid}/oom_score_adj").read_text()
    finally:
        await child.kill()
    # Name, soft limit, hard limit, unit; columns of proc_pid_limits(5).
    limits = {line[:26].strip(): tuple(line[26:68].split()) for line in lines}
    wanted = {
        "Max core file size": 0,
        "Max file size": SMALL.file_bytes,
        "Max locked memory": 0,
        "Max msgqueue size": 0,
        "Max open files": 1024,
    }
    if os.geteuid() == 0:
        wanted["Max processes"] = SMALL.tasks
    assert {name: limits[name] for name in wanted} == {
        name: (str(most), str(most)) for name, most in wanted.items()
    }
    assert int(score) == 500  # of 1000: it goes before the server does
