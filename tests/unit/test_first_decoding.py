"""What threads read of a dead server's machines is decoded by types that were made ready before."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vmpool.clone import papers, plug
from vmpool.engine.qemu import record

# Types that msgspec first meets in two threads at once end the process: about one time in five.
TOGETHER = """
import os, sys, threading
from pathlib import Path
from vmpool import snapshot
from vmpool.clone import papers, plug
from vmpool.engine.qemu import record
from vmpool.image import recipe
from vmpool.parcel import envelope

sys.setswitchinterval(1e-6)
directory, go = Path(sys.argv[1]), threading.Event()

def read():
    go.wait()
    for one in (lambda: papers.read(directory, None), lambda: plug.read(directory),
                lambda: record.read(directory),
                lambda: snapshot._decode(directory, b'{"format": %d}' % snapshot.FORMAT),
                lambda: envelope.decode(b'{"format": %d}' % envelope.FORMAT),
                lambda: recipe._decode(directory / "recipe.toml")):
        try:
            one()
        except Exception:
            pass

threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
go.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("turn", range(12))
def test_threads_may_be_the_first_to_read(
    turn: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("clone")
    for name in (papers.FILE, plug.FILE, record.RECORD):
        (directory / name).write_text("{}")
    (directory / "recipe.toml").touch()
    assert subprocess.run([sys.executable, "-c", TOGETHER, directory], check=False).returncode == 0
