"""A server that is killed leaves machines on KVM, and the next one takes them over.

Pause, resume and fork over vsock are asked of it on the way.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import estate
from tests.kvm.conftest import TEMPLATE, serve, settled
from tests.serving import Ground, client, until
from vmpool.engine.qemu import vsock

pytestmark = [pytest.mark.kvm, pytest.mark.shares_host, pytest.mark.timeout(900)]


@pytest.fixture
def other(ground: Ground) -> Iterator[Ground]:
    """A state directory like the ring's own, template included."""
    with ground.beside("r") as beside:
        shutil.copy2(ground.state / "vmpool.toml", beside.state)
        yield beside


async def test_after_kill_9_the_next_server_goes_on_over_vsock(other: Ground) -> None:
    image = (other.state / "images/names" / TEMPLATE).read_text()
    template = {"name": TEMPLATE, "image": image, "limits": {"ready": 1}}
    with serve(other) as first, first.process:
        async with client(first) as api:
            await estate.asked(api, "POST", "/v1/templates", 201, **template)
            mine = await estate.build(api, "bash")
            await until(lambda: estate.has_spare(api), 240)
        before = {at.name: cid_of(at) for at in other.clones}
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    kept = estate.clone_of(other, mine.id)
    orphans = before.keys() - {kept}
    assert orphans

    with serve(other) as second:
        assert orphans.isdisjoint(at.name for at in other.clones)
        async with client(second) as api:
            await settled(api)
            await mine.require_going_on(api)
            assert cid_of(other.state / "run/clones" / kept) == before[kept]
            await mine.require_use(api)
        cids = {cid_of(at) for at in other.clones}
        assert second.stop(signal.SIGTERM) == 0
    for cid in cids | set(before.values()):
        os.close(vsock.claim(cid).descriptor)


def cid_of(machine: Path) -> int:
    """Return what a machine's guest is reached at."""
    return int(json.loads((machine / "machine.json").read_text())["cid"])
