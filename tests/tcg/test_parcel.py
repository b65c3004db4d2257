"""A real guest goes on on another host, from one file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.parcels import pieces
from tests.serving import Api
from tests.tcg.conftest import UpServer
from vmpool.config import Settings
from vmpool.host import CreateRequest
from vmpool.model import Command, Output
from vmpool.opening import open_host
from vmpool.trust import Keyring

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(300)]

OWNER = "local"
BUILD = """
import subprocess
apart = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
counting = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; sleep 0.05; done"
subprocess.Popen(["/bin/sh", "-c", counting], start_new_session=True, **apart)
open("/home/user/state", "w").write("built")
"""
LOOK = 'cat state; a=$(cat /dev/shm/n); sleep 1; b=$(cat /dev/shm/n); test "$b" -gt "$a"'


@pytest.fixture
def elsewhere(server: UpServer) -> Iterator[Path]:
    """A state directory with the images of the server, and none of its snapshots."""
    state = Path(tempfile.mkdtemp(prefix="vmpool-", dir="/tmp"))  # short, as the server's
    (state / "images").symlink_to(server.ground.state / "images")
    yield state
    shutil.rmtree(state)


async def kept(api: Api) -> tuple[str, bytes]:
    """Return the name of a checkpoint of a sandbox that is gone, and it exported with its base."""
    async with api.sandbox(timeout=600) as sandbox:
        assert (await api.execute(sandbox, code=BUILD))["exit_code"] == 0
        path = f"/v1/sandboxes/{sandbox}/checkpoints"
        status, made = await api.call("POST", path, json={"name": "travels"})
        assert status == 201, made
    status, parcel = await api.call("GET", "/v1/checkpoints/travels/export?cargo=with_base")
    assert status == 200, parcel
    return made["id"], parcel


async def test_a_guest_goes_on_on_a_host_that_has_its_image_alone(
    api: Api, server: UpServer, elsewhere: Path
) -> None:
    id, parcel = await kept(api)
    try:
        home = str(Keyring.open(server.ground.state).own.public)
        settings = Settings(state=elsewhere, run=elsewhere / "run")
        async with open_host(settings, progress=lambda _: None) as host:
            there = await host.import_checkpoint(
                pieces(parcel, 1 << 16), owner=OWNER, name=None, believing=home
            )
            request = CreateRequest(checkpoint=there.id, timeout=600, wait=60)
            made = await host.create(request, owner=OWNER)
            async with made.execute(Command(argv=("/bin/sh", "-c", LOOK))) as execution:
                events: list[Any] = [event async for event in execution]
            said = b"".join(event.data for event in events if isinstance(event, Output))
            assert (said, events[-1].exit_code) == (b"built", 0)
            again = await host.checkpoint(made.id, owner=OWNER, name="further")
            assert again.base_id == there.base_id
            await host.kill(made.id, owner=OWNER)
            for checkpoint in (there.id, again.id):
                await host.remove_checkpoint(checkpoint, owner=OWNER)
            assert not list((elsewhere / "snapshots").iterdir())
        path = "/v1/checkpoints/import?name=back"
        status, back = await api.call("POST", path, data=pieces(parcel, 1 << 16))
        assert status == 201, json.dumps(back)
        await api.call("DELETE", "/v1/checkpoints/back")
    finally:
        await api.call("DELETE", f"/v1/checkpoints/{id}")
