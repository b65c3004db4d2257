"""A session on a real guest: build state, keep it, branch, diverge, go back, pause, come back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving import Api
from tests.tcg.conftest import UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(300)]

COUNT = """
n=0
while :; do
  n=$((n+1)); echo $n >/dev/shm/next; mv /dev/shm/next /dev/shm/n  # never seen half
  sleep 0.05
done
"""
PROBE = """
import json, os
print(json.dumps({
    "state": open("/home/user/state").read(),
    "asked": os.path.exists("/home/user/asked") and open("/home/user/asked").read(),
    "n": int(open("/dev/shm/n").read() or 0) if os.path.exists("/dev/shm/n") else 0,
    "env": [os.environ.get(name) for name in ("A", "B")],
    "hostname": os.uname().nodename,
    "machine_id": open("/etc/machine-id").read().strip(),
    "urandom": os.urandom(16).hex(),
}))
"""


async def probe(api: Api, sandbox: str) -> dict[str, Any]:
    """Return what a guest says of itself."""
    out = await api.execute(sandbox, code=PROBE)
    assert out["exit_code"] == 0, out
    return dict(json.loads(out["stdout"]))


async def post(api: Api, path: str, status: int, **body: Any) -> dict[str, Any]:
    """Ask for something that must succeed."""
    found, answer = await api.call("POST", f"/v1/sandboxes/{path}", json=body)
    assert found == status, answer
    return dict(answer)


async def write(api: Api, sandbox: str, text: str) -> None:
    """Have a guest's state say something else."""
    out = await api.execute(sandbox, code=f"open('/home/user/state', 'w').write({text!r})")
    assert out["exit_code"] == 0, out


async def sleep_and_wake(api: Api, server: UpServer, sandbox: str) -> None:
    """Pause a sandbox and resume it; it is who and what it was."""
    before, machines = await probe(api, sandbox), len(server.ground.hypervisors())
    asleep = await post(api, f"{sandbox}/pause", 200)
    assert asleep["state"] == "paused"
    assert len(server.ground.hypervisors()) <= machines  # one may wait for it to come back
    status, problem = await api.call("GET", f"/v1/sandboxes/{sandbox}/files?path=/home")
    assert (status, problem["code"]) == (409, "sandbox_paused")
    await post(api, f"{sandbox}/resume", 200)
    after = await probe(api, sandbox)
    assert after["n"] >= before["n"]
    for same in ("state", "env", "hostname", "machine_id"):
        assert after[same] == before[same], same


async def test_a_session_branches_goes_back_and_sleeps(api: Api, server: UpServer) -> None:
    async with api.sandbox(env={"A": "1"}, timeout=600) as parent:
        await write(api, parent, "built")
        process = await post(api, f"{parent}/processes", 201, argv=["/bin/sh", "-c", COUNT])
        built = await probe(api, parent)
        kept = await post(api, f"{parent}/checkpoints", 201, name="built")
        assert kept["dirty_bytes"] > 0

        fork = await post(
            api,
            f"{parent}/fork",
            201,
            count=3,
            env={"B": "2"},
            files={"/home/user/asked": {"content": "for children"}},
        )
        children = [child["sandbox"]["id"] for child in fork["children"]]
        for child in children:
            await write(api, child, child)
        found = [await probe(api, each) for each in (parent, *children)]
        assert [each["state"] for each in found] == ["built", *children]
        assert [each["asked"] for each in found] == [False, *["for children"] * 3]
        assert [each["env"] for each in found] == [["1", None], *[["1", "2"]] * 3]
        assert min(each["n"] for each in found) > built["n"]  # the process lives on in all
        for each in (parent, *children):
            _, listed = await api.call("GET", f"/v1/sandboxes/{each}/processes")
            assert [(one["pid"], one["ended"]) for one in listed["processes"]] == [
                (process["pid"], None)
            ]
        for source in ("hostname", "machine_id", "urandom"):
            assert len({each[source] for each in found}) == 4, source

        await write(api, parent, "regretted")
        await post(api, f"{parent}/rollback", 200, checkpoint="built")
        back = await probe(api, parent)
        assert (back["state"], back["machine_id"]) == ("built", built["machine_id"])

        await sleep_and_wake(api, server, parent)
        assert (await probe(api, parent))["n"] > back["n"]
        for child in children:
            status, _ = await api.call("DELETE", f"/v1/sandboxes/{child}")
            assert status == 204
        status, _ = await api.call("DELETE", "/v1/checkpoints/built")
        assert status == 204
    assert not list((server.ground.state / "checkpoints").iterdir())
