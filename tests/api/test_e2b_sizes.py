"""Builds in machines of another size than their base's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.api import template_builds
from tests.api.conftest import IMAGE
from tests.api.template_builds import BASE, Builds
from vmpool.api.e2b.templates import sizing
from vmpool.model import MIB

if TYPE_CHECKING:
    import pytest

builds = template_builds.builds


def size_of(builds: Builds, name: str) -> tuple[int, int]:
    spec = builds.server.host.catalogue.status(f"{builds.server.owner}/{name}").spec
    return spec.vcpus, spec.memory_bytes // MIB


async def of_image(builds: Builds, name: str, **size: int) -> str:
    """Build from the image's template; return how it ended, and its log."""
    ended = await builds.build(name, promised=size, fromTemplate=IMAGE)
    return f"{ended['status']} {ended['messages']}"


def sized(builds: Builds) -> set[str]:
    """Return the bases that were booted in other sizes."""
    names = {each.name.rpartition("/")[2] for each in builds.server.host.catalogue.statuses}
    return {name.rpartition(".")[2] for name in names if name.startswith(sizing.SIZED)}


async def test_a_build_has_the_size_that_it_asks_for(builds: Builds) -> None:
    catalogue = builds.server.host.catalogue
    said = await of_image(builds, "large", cpuCount=2, memoryMB=768)
    assert said.startswith("ready"), said
    assert "a machine of 2 processors and 768 MiB" in said
    assert size_of(builds, "large") == (2, 768)
    status, made = await builds.ask("POST", "/v2/sandboxes", templateID="large")
    assert status == 201
    _, detail = await builds.ask("GET", f"/sandboxes/{made['sandboxID']}")
    assert (detail["cpuCount"], detail["memoryMB"]) == (2, 768)
    await builds.ask("DELETE", f"/sandboxes/{made['sandboxID']}")
    (base,) = (each for each in catalogue.statuses if sizing.SIZED in each.name)
    assert (await of_image(builds, "again", cpuCount=2, memoryMB=768)).startswith("ready")
    assert catalogue.status(base.name).created_ns == base.created_ns, "it was booted twice"
    usual = catalogue.status(IMAGE).spec
    same = {"cpuCount": usual.vcpus, "memoryMB": usual.memory_bytes // MIB}
    assert (await of_image(builds, "same", **same)).startswith("ready")
    assert sized(builds) == {"2x768"}


async def test_a_base_that_was_made_of_a_sandbox_keeps_its_size(builds: Builds) -> None:
    ended = await builds.build("of-a-snapshot", promised={"cpuCount": 3}, fromTemplate=BASE)
    assert ended["status"] == "ready"
    assert any("keeps its size" in said for said in ended["messages"]), ended
    again = await builds.build("of-a-build", promised={"cpuCount": 3}, fromTemplate="of-a-snapshot")
    assert any("keeps its size" in said for said in again["messages"]), again
    assert sized(builds) == set()


async def test_a_size_that_nobody_may_have_is_not_booted(builds: Builds) -> None:
    host, owner = builds.server.host, builds.server.owner
    await host.store.tenants.change(owner, name=None, quota={"vcpus": 2})
    host.quotas._asked_at = float("-inf")  # it learns of changes every now and then
    said = await of_image(builds, "huge", cpuCount=3)
    assert said.startswith("error")
    assert "3 more of vcpus" in said
    assert sized(builds) == set()


async def test_the_oldest_sizes_make_room(builds: Builds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "SIZED_MOST", 2)
    for memory in (300, 400, 500):
        assert (await of_image(builds, f"m{memory}", memoryMB=memory)).startswith("ready")
    assert sized(builds) == {"1x400", "1x500"}
    assert size_of(builds, "m300")[1] == 300
