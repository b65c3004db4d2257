"""A build signs what it packed or compared, and nothing that its cache merely names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.mirror import World, mirrored
from vmpool.errors import ImageError
from vmpool.image import Library, Step, signature
from vmpool.trust import HostKey, Keyring, Purpose

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.image import Image


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return mirrored(tmp_path, monkeypatch)


async def lay(world: World, *, name: str, like: Image) -> Path:
    """Lay an image beside those of a world, unsigned, and have its cache name that one."""
    other = Library(world.state.parent / "elsewhere")
    laid = await other.build(replace(world.recipe, name=name), agent=b"another")
    (laid.directory / signature.FILE).unlink()
    directory = world.state / "images" / laid.digest
    laid.directory.rename(directory)
    (kept,) = (world.state / "images/cache/images").iterdir()
    assert kept.read_text() == like.digest
    kept.write_text(laid.digest)
    return directory


async def test_what_the_cache_names_and_nobody_vouches_for_is_not_signed(world: World) -> None:
    sound = await world.library.build(world.recipe, agent=b"agent")
    laid = await lay(world, name="laid", like=sound)
    assert await world.library.build(world.recipe, agent=b"agent") == sound
    assert not (laid / signature.FILE).exists()
    assert world.library.load("mine") == sound


@pytest.mark.parametrize("named", ["../../elsewhere", "", "names"])
async def test_a_cache_that_names_no_image_is_built_without(world: World, named: str) -> None:
    sound = await world.library.build(world.recipe, agent=b"agent")
    (kept,) = (world.state / "images/cache/images").iterdir()
    kept.write_text(named)
    assert await world.library.build(world.recipe, agent=b"agent") == sound
    assert kept.read_text() == sound.digest


async def test_an_image_whose_key_is_trusted_is_kept_with_its_signature(world: World) -> None:
    steps: list[Step] = []
    built = await world.library.build(world.recipe, agent=b"agent")
    other, proof = HostKey.fresh(), built.directory / signature.FILE
    proof.unlink()
    said = other.sign(Purpose.IMAGE, (built.directory / "manifest.json").read_bytes())
    proof.write_bytes(said)
    Keyring.open(world.state).trust(other.public, "build-server")
    await world.library.build(world.recipe, agent=b"agent", progress=steps.append)
    assert not steps
    assert proof.read_bytes() == said
    Keyring.open(world.state).distrust(other.public)
    await world.library.build(world.recipe, agent=b"agent", progress=steps.append)
    assert steps[0].text == "packing mine"
    signature.require(built, Keyring.open(world.state))


@pytest.mark.parametrize("name", ["root.erofs", "kernel", "initrd", "manifest.json"])
async def test_what_lies_where_an_image_is_published_is_compared_first(
    world: World, name: str
) -> None:
    built = await world.library.build(world.recipe, agent=b"agent")
    (built.directory / signature.FILE).unlink()
    path = built.directory / name
    sound = path.read_bytes()
    path.unlink()
    path.write_bytes(sound.replace(b'"mine"', b'"fine"') if name.endswith("json") else sound[::-1])
    with pytest.raises(ImageError) as caught:
        await world.library.build(world.recipe, agent=b"agent")
    assert caught.value.error_code == "image_damaged"
    assert not (built.directory / signature.FILE).exists()
