"""Checkpoints leave a server and come in as files: over HTTP, by both clients and by command."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import vmpool
from tests.api.test_cli_branches import Terminal, terminal
from tests.api.test_client_branches import client
from tests.parcels import said_otherwise
from vmpool.errors import ConflictError, ForbiddenError, InvalidRequestError
from vmpool.trust import HostKey, Purpose

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Serve, Server

__all__ = ["client", "terminal"]  # fixtures

IMPORT = "/v1/checkpoints/import"


async def keep(server: Server, name: str = "here") -> str:
    """Make a checkpoint; return its id."""
    sandbox = (await server.make_sandbox())["id"]
    path = f"/v1/sandboxes/{sandbox}/checkpoints"
    status, kept = await server.call("POST", path, json={"name": name})
    assert status == 201
    return str(kept["id"])


async def test_what_is_exported_is_imported_under_an_id_of_its_own(server: Server) -> None:
    kept = await keep(server)
    status, parcel = await server.call("GET", "/v1/checkpoints/here/export")
    assert (status, parcel[:4]) == (200, b"\x28\xb5\x2f\xfd")  # RFC 8878, 3.1.1
    status, there = await server.call("POST", f"{IMPORT}?name=there", data=parcel)
    assert status == 201
    _, before = await server.call("GET", f"/v1/checkpoints/{kept}")
    assert there == before | {"id": there["id"], "name": "there"}
    made = await server.make_sandbox(checkpoint="there")
    assert made["checkpoint"] == there["id"]
    status, larger = await server.call("GET", "/v1/checkpoints/here/export?cargo=with_base")
    assert status == 200
    assert len(larger) > len(parcel)


async def test_nobody_slips_a_build_what_it_believes_to_be_its_own(server: Server) -> None:
    refused = (400, "checkpoint_name_invalid")

    async def answered(path: str, **request: Any) -> tuple[int, str]:
        status, answer = await server.call("POST", path, **request)
        return status, answer.get("code", "")

    sandbox = (await server.make_sandbox())["id"]
    path = f"/v1/sandboxes/{sandbox}/checkpoints"
    assert await answered(path, json={"name": "step.0"}) == refused
    await server.host.checkpoint(sandbox, owner=server.owner, name="step.0")  # as a build does
    _, parcel = await server.call("GET", "/v1/checkpoints/step.0/export")
    assert (await server.call("DELETE", "/v1/checkpoints/step.0"))[0] == 204
    assert await answered(IMPORT, data=parcel) == refused
    assert await answered(f"{IMPORT}?name=step.1", data=parcel) == refused
    assert await answered(f"{IMPORT}?name=there", data=parcel) == (201, "")


@pytest.mark.parametrize(
    ("request_of", "found"),
    [
        ({"path": "/v1/checkpoints/none/export"}, (404, "checkpoint_not_found")),
        ({"path": f"{IMPORT}?name=there", "data": b"none"}, (400, "parcel_damaged")),
        ({"path": f"{IMPORT}?name=there", "data": b""}, (400, "parcel_damaged")),
        ({"path": f"{IMPORT}?name=..%2fthere", "data": b"none"}, (400, "invalid_request")),
        ({"path": "/v1/checkpoints/here/export?cargo=all"}, (400, "invalid_request")),
    ],
)
async def test_what_cannot_be_is_refused(
    server: Server, request_of: dict[str, Any], found: tuple[int, str]
) -> None:
    method = "POST" if "data" in request_of else "GET"
    status, problem = await server.call(method, **request_of)
    assert (status, problem["code"]) == found


async def test_importing_takes_an_admin_and_exporting_the_owner(server: Server) -> None:
    await keep(server)
    _, parcel = await server.call("GET", "/v1/checkpoints/here/export")
    other = server.as_other()
    status, problem = await server.call("POST", IMPORT, data=parcel, headers=other)
    assert (status, problem["code"]) == (403, "scope_missing")
    status, _ = await server.call("GET", "/v1/checkpoints/here/export", headers=other)
    assert status == 404


async def test_a_server_without_the_base_names_it(server: Server, serving: Serve) -> None:
    await keep(server)
    _, parcel = await server.call("GET", "/v1/checkpoints/here/export")
    async with serving() as other:
        shutil.rmtree(other.host.settings.state / "snapshots")
        (other.host.settings.state / "snapshots").mkdir()
        status, problem = await other.call("POST", IMPORT, data=parcel)
        assert (status, problem["code"]) == (409, "base_missing")
        assert "--with-base" in problem["remedy"]


async def test_a_parcel_of_a_stranger_is_refused_unless_its_key_is_given(server: Server) -> None:
    await keep(server)
    _, parcel = await server.call("GET", "/v1/checkpoints/here/export")
    stranger = HostKey.fresh()
    sign = partial(stranger.sign, Purpose.PARCEL)
    theirs = said_otherwise(parcel, lambda _: None, sign=sign)
    status, problem = await server.call("POST", f"{IMPORT}?name=there", data=theirs)
    assert (status, problem["code"]) == (409, "snapshot_untrusted")
    assert str(stranger.public) in problem["remedy"]
    path = f"{IMPORT}?name=there&trust={stranger.public}"
    status, there = await server.call("POST", path, data=theirs)
    assert (status, there["name"]) == (201, "there")


async def test_both_clients_take_a_checkpoint_to_a_file_and_back(
    client: Any, server: Server, tmp_path: Path
) -> None:
    kept = await keep(server)
    file = tmp_path / "here.vmpool"
    await client.checkpoints.export_to(kept, file, cargo="with_base")
    there = await client.checkpoints.import_from(file, name="there")
    assert (there.name, there.id == kept) == ("there", False)
    with pytest.raises(ConflictError) as refused:
        await client.checkpoints.import_from(file)
    assert refused.value.error_code == "checkpoint_exists"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InvalidRequestError, match="breaks off"):
        await client.checkpoints.import_from(file, name="half")
    assert [path.name for path in tmp_path.iterdir()] == ["here.vmpool"]


async def test_a_client_that_may_not_import_is_told_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"none")
    async with vmpool.AsyncClient(server.url, token=server.other_token) as other:
        with pytest.raises(ForbiddenError):
            await other.checkpoints.import_from(tmp_path / "file")


async def test_a_command_takes_a_checkpoint_to_a_file_and_back(
    terminal: Terminal, server: Server, tmp_path: Path
) -> None:
    await keep(server)
    file = str(tmp_path / "here.vmpool")
    await terminal.run("checkpoint", "export", "here", file, "--with-base")
    id = (await terminal.run("checkpoint", "import", file, "--name", "there")).strip()
    listed = await terminal.read("checkpoint", "list")
    assert {one["id"]: one["name"] for one in listed}[id] == "there"


async def test_what_is_kept_of_a_template_that_is_gone_is_listed(
    terminal: Terminal, server: Server
) -> None:
    kept = await keep(server)
    assert "gone" not in await terminal.run("template", "list")
    await terminal.run("template", "remove", "python")
    assert "1 snapshot of a template that is gone" in await terminal.run("template", "list")
    _, listed = await server.call("GET", "/v1/templates")
    _, shown = await server.call("GET", f"/v1/checkpoints/{kept}")
    assert [base["id"] for base in listed["bases"]] == [shown["base"]]


async def test_an_image_that_a_checkpoint_needs_is_not_removed(server: Server) -> None:
    here = Terminal({"VMPOOL_STATE": str(server.host.settings.state)})
    kept = await keep(server)
    for sandbox in server.host.sandboxes(owner=server.owner):
        await server.call("DELETE", f"/v1/sandboxes/{sandbox.id}")
    await server.call("DELETE", "/v1/templates/python")
    with pytest.raises(ConflictError, match=f"in use by checkpoint {kept} ") as refused:
        await here.run("image", "remove", "python")
    assert refused.value.error_code == "image_in_use"
    await server.call("DELETE", f"/v1/checkpoints/{kept}")
    await here.run("image", "remove", "python")
