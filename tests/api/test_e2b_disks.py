"""Files that are kept alone, as E2B's clients ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.conftest import IMAGE
from tests.standing import stand
from vmpool.catalogue import TemplateRequest
from vmpool.model import MIB
from vmpool.policy import Limits

if TYPE_CHECKING:
    from tests.api.conftest import Server

DISKED = "disked"


@pytest.fixture
async def disked(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with a template that has a disk."""
    stand(monkeypatch)
    request = TemplateRequest(name=DISKED, image=IMAGE, disk_bytes=8 * MIB, limits=Limits(ready=0))
    await server.host.catalogue.add(request, progress=lambda _: None)
    return server


async def ask(server: Server, path: str, **body: Any) -> tuple[int, Any]:
    key = {"X-API-KEY": server.token, "Authorization": ""}
    return await server.call("POST", path, json=body, headers=key)


async def created(server: Server, template: str) -> str:
    status, made = await ask(server, "/v2/sandboxes", templateID=template, timeout=300)
    assert status == 201, made
    return str(made["sandboxID"])


async def test_a_snapshot_of_the_files_is_what_sandboxes_boot_with(disked: Server) -> None:
    path = f"/sandboxes/{await created(disked, DISKED)}"
    status, kept = await ask(disked, f"{path}/snapshots", name="files", memory=False)
    assert (status, kept["names"]) == (201, ["files"])
    _, found = await disked.call("GET", f"/v1/checkpoints/{kept['snapshotID']}")
    assert found["keep"] == "disk"
    again = await created(disked, "files")
    booted, parent = disked.host.sandboxes(owner=disked.owner)
    assert booted.id == again
    assert booted.clone.key != parent.clone.key  # that of one with memory is in there
    for memory in ({}, {"memory": True}):
        status, whole = await ask(disked, f"/sandboxes/{again}/snapshots", **memory)
        assert status == 201, whole
        _, found = await disked.call("GET", f"/v1/checkpoints/{whole['snapshotID']}")
        assert found["keep"] == "memory"


async def test_files_that_are_memory_are_not_kept_alone(server: Server) -> None:
    path = f"/sandboxes/{await created(server, IMAGE)}"
    status, error = await ask(server, f"{path}/snapshots", memory=False)
    assert (status, error["error_code"]) == (400, "disk_missing")
