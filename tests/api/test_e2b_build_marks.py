"""What a server that was killed has left of builds is found by marks that no caller can give."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.api.conftest import IMAGE, Server
from vmpool.api.e2b.templates import workshop
from vmpool.api.e2b.templates.builder import BUILD, PASSING
from vmpool.host import CreateRequest

if TYPE_CHECKING:
    from tests.api.conftest import Serve


async def test_a_server_that_comes_after_ends_what_a_build_has_left(serving: Serve) -> None:
    async with serving() as server:
        left = await made_by_a_build(server)
        own = await server.make_sandbox(metadata={"k": "v"})
        path = f"/v1/sandboxes/{own['id']}"
        await server.host.checkpoint(own["id"], owner=server.owner, name=f"{PASSING}0")
        await server.host.checkpoint(own["id"], owner=server.owner, name="own")
        status, answer = await server.call("POST", f"{path}/fork", json={"metadata": {BUILD: "0"}})
        assert (status, answer["code"]) == (400, "metadata_reserved")
        _, (forked,) = await server.call("POST", f"/sandboxes/{left}/fork", json={})
        following = workshop.Workshop(server.host)
        await following.open()
        assert (await server.call("GET", f"/v1/sandboxes/{left}"))[0] == 410
        assert (await server.call("GET", path))[0] == 200
        child = forked["sandbox"]["sandboxID"]
        assert (await server.call("GET", f"/v1/sandboxes/{child}"))[0] == 200
        kept = await server.host.checkpoints(owner=server.owner, sandbox=None)
        assert [each.name for each in kept] == ["own"]


async def made_by_a_build(server: Server) -> str:
    """Return a sandbox with a mark that no caller may give one, by any of the ways there are."""
    marked = {"template": IMAGE, "metadata": {BUILD: "0"}}
    status, answer = await server.call("POST", "/v1/sandboxes", json=marked)
    assert (status, answer["code"]) == (400, "metadata_reserved")
    asked = {"templateID": IMAGE, "metadata": {BUILD: "0"}}
    status, answer = await server.call("POST", "/sandboxes", json=asked)
    assert (status, answer["error_code"]) == (400, "metadata_reserved")
    request = CreateRequest(template=IMAGE, timeout=60, wait=10, metadata={BUILD: "0"})
    made = await server.host.create(request, owner=server.owner)
    return str(made.id)
