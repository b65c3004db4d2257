"""Worlds: where a soak takes place, over the fake engine or QEMU; servers are processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests import fake_host, internet
from tests.api.conftest import IMAGE
from tests.dns_server import Zone
from tests.serving import Ground, Server, opened_ground
from tests.soak import World

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SETTINGS = """\
insecure_no_tokens = true
on_stop = "keep"
[checkpoints]
waiting = 0
"""


@contextlib.contextmanager
def fake_world(made: Path | None = None) -> Iterator[World]:
    """Yield a state directory for servers whose machines are local processes.

    Args:
        made: Where `fake_host.keep` keeps things, to begin with what is there.
    """
    # Short: the paths of sockets in it have to fit into a socket's address.
    state = Path(tempfile.mkdtemp(prefix="vmpool-", dir="/tmp"))
    try:
        fake_host.furnish(state, made or state / "none")
        (state / "vmpool.toml").write_text(SETTINGS)
        environment = {
            "VMPOOL_CONFIG": os.fspath(state / "vmpool.toml"),
            "VMPOOL_STATE": os.fspath(state),
            "VMPOOL_LISTEN": "127.0.0.1:0",
            "VMPOOL_TEST_STEM": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'guest-agent'}",
        }
        program = (sys.executable, "-m", "tests.api.fake_server")
        ground = Ground(state)
        yield World(
            ground=ground,
            template={"name": IMAGE, "image": IMAGE, "limits": {"ready": 1}},
            serve=lambda: Server(ground, IMAGE, "serve", environment=environment, program=program),
            remembers=False,
        )
    finally:
        shutil.rmtree(state)


@contextlib.contextmanager
def qemu_world(image: str = "base") -> Iterator[World]:
    """Yield a state directory for servers of real machines, which have a network.

    They live in a namespace that is made for them, and change nothing of the machine's own.
    """
    with opened_ground("images", "snapshots") as ground, internet.namespaces() as (home, world):
        (ground.state / "vmpool.toml").write_text(SETTINGS)
        net = internet.Internet(home, world, Zone())
        program = (*net.program(), os.fspath(Path(sys.executable).with_name("vmpool")))
        environment = {"VMPOOL_CONFIG": os.fspath(ground.state / "vmpool.toml")}
        digest = (ground.state / "images/names" / image).read_text()
        yield World(
            ground=ground,
            template={"name": image, "image": digest, "limits": {"ready": 2}},
            serve=lambda: Server(ground, image, "serve", environment=environment, program=program),
            remembers=True,
            client=net.client,
            home=home,
            network={"mode": "restricted"},
        )
