"""A server that is killed leaves machines on KVM, which the next one finds and ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kvm.conftest import TEMPLATE, serve, settled
from tests.serving import Ground, client
from vmpool.engine.qemu import vsock

pytestmark = [pytest.mark.kvm, pytest.mark.shares_host]


@pytest.fixture
def other(ground: Ground) -> Iterator[Ground]:
    """A state directory like the ring's own, template included."""
    state = Path(f"{ground.state}-r")
    state.mkdir()
    for name in ("images", "snapshots"):
        (state / name).symlink_to((ground.state / name).resolve())
    shutil.copy(ground.state / "vmpool.toml", state)
    yield Ground(state)
    shutil.rmtree(state)


async def test_after_kill_9_the_next_start_ends_every_machine_and_frees_its_cid(
    other: Ground,
) -> None:
    image = (other.state / "images/names" / TEMPLATE).read_text()
    template = {"name": TEMPLATE, "image": image, "limits": {"ready": 1}}
    with serve(other) as first, first.process:
        async with client(first) as api:
            assert (await api.call("POST", "/v1/templates", json=template))[0] == 201
            status, made = await api.call("POST", "/v1/sandboxes", json={"template": TEMPLATE})
            assert status == 201, made
        orphans = set(other.hypervisors())
        cids = {json.loads((at / "machine.json").read_text())["cid"] for at in other.clones}
        left = {at.name for at in other.clones}
        assert orphans
        assert None not in cids
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        assert orphans <= set(other.hypervisors())

    with serve(other) as second:
        assert orphans.isdisjoint(other.hypervisors())
        assert left.isdisjoint(at.name for at in other.clones)
        for cid in cids:
            os.close(vsock.claim(cid).descriptor)
        async with client(second) as api:
            await settled(api)
            status, problem = await api.call("GET", f"/v1/sandboxes/{made['id']}")
            assert (status, problem["code"]) == (410, "sandbox_ended")
            assert (await api.run(code="print(7)"))["stdout"] == "7\n"
        assert second.stop(signal.SIGTERM) == 0
    assert other.clones == []
