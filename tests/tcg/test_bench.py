"""The benchmark measures real clones, beside other things that run the line, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record
from bench.line import FIRST_OUTPUT
from bench.peers import python, vmpool_ready
from tests.serving import opened_ground

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(600)]

PROGRAM = """
from bench.command import main
from bench.measurements import peers
from bench.peers import python, vmpool_ready
peers.PEERS = (python.PEER, vmpool_ready.PEER)  # the others boot, and are not in every place
main()
"""
MEASURED = ("floors", "create", "outputs", "peers")


def test_a_quick_run_measures_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with opened_ground("images", "snapshots") as ground:
        words = ["--state", os.fspath(ground.state), "--quick", "--json", os.fspath(file)]
        only = [word for name in MEASURED for word in ("--only", name)]
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words, *only],
            cwd=Path(record.__file__).parent.parent,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout
        assert not ground.hypervisors()
        assert not ground.clones
        assert not (ground.state / "bench").exists()
    held = record.load(file)
    assert held.complete
    found = {one.measurement: one for one in held.findings}
    assert set(found) == set(MEASURED)
    created = found["create"].named("create, a clone ready")
    assert created is not None
    floor = held.floor(found["create"], created)
    assert floor is not None
    assert floor > 1
    for peer in (python.NAME, vmpool_ready.NAME):
        assert found["peers"].named(f"{peer}: {FIRST_OUTPUT}") is not None
