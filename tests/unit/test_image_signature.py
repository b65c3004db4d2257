"""Images are signed by who built them; templates are made of those that somebody vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, wanted
from vmpool.cli.images import command
from vmpool.derivation import DeriveRequest
from vmpool.entry import TemplateState
from vmpool.errors import ConflictError, ImageError
from vmpool.image import Library, signature
from vmpool.trust import HostKey, Keyring, Purpose

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import FakeEngine
    from vmpool.image import Image


@pytest.fixture
def image(state: Path) -> Image:
    """An image that the host of `state` has signed."""
    return Library(state).load(IMAGE)


def refusal(image: Image, state: Path) -> ImageError:
    with pytest.raises(ImageError) as raised:
        signature.require(image, Keyring.open(state))
    return raised.value


def test_an_image_is_refused_unless_it_is_signed_as_it_is(image: Image, state: Path) -> None:
    proof = image.directory / signature.FILE
    document = (image.directory / "manifest.json").read_bytes()
    own = Keyring.open(state).own
    signature.require(image, Keyring.open(state))
    proof.unlink()
    unsigned = refusal(image, state)
    assert unsigned.error_code == "image_untrusted"
    assert f"vmpool image sign {image.digest[:12]}" in unsigned.remedy
    for wrong in (own.sign(Purpose.SNAPSHOT, document), own.sign(Purpose.IMAGE, b"another"), b"{"):
        proof.write_bytes(wrong)
        assert refusal(image, state).error_code == "image_untrusted"
    proof.write_bytes(own.sign(Purpose.IMAGE, document))
    signature.require(image, Keyring.open(state))


def test_an_image_of_another_host_is_refused_until_its_key_is_trusted(
    image: Image, state: Path
) -> None:
    other = HostKey.fresh()
    document = (image.directory / "manifest.json").read_bytes()
    proof = image.directory / signature.FILE
    proof.unlink()
    proof.write_bytes(other.sign(Purpose.IMAGE, document))
    assert f"vmpool key trust {other.public}" in refusal(image, state).remedy
    Keyring.open(state).trust(other.public, "build-server")
    signature.require(image, Keyring.open(state))
    Keyring.open(state).distrust(other.public)
    assert refusal(image, state).error_code == "image_untrusted"


def test_a_signature_is_of_the_manifest_that_names_the_image(image: Image, state: Path) -> None:
    path = image.directory / "manifest.json"
    document = path.read_bytes().replace(b"for tests", b"for tears")
    path.write_bytes(document)
    proof = image.directory / signature.FILE
    proof.unlink()
    proof.write_bytes(Keyring.open(state).own.sign(Purpose.IMAGE, document))
    assert refusal(image, state).error_code == "image_damaged"


def test_an_operator_vouches_for_an_image_that_is_what_it_says(image: Image, state: Path) -> None:
    (image.directory / signature.FILE).unlink()
    argv = ["sign", IMAGE, "--state", str(state)]
    assert CliRunner().invoke(command, argv).exit_code == 0
    signature.require(image, Keyring.open(state))
    (image.directory / signature.FILE).unlink()
    image.root.write_bytes(b"bootable by nobodY")
    ended = CliRunner().invoke(command, argv)
    assert isinstance(ended.exception, ImageError)
    assert ended.exception.error_code == "image_damaged"
    assert not (image.directory / signature.FILE).exists()


def test_an_image_that_was_removed_is_not_half_there_for_being_signed(
    image: Image, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (image.directory / "manifest.json").read_bytes()
    monkeypatch.setattr(signature, "_document", lambda _: document)  # it was there when read
    Library(state).remove(image.digest)
    with pytest.raises(ImageError) as raised:
        signature.sign(image, Keyring.open(state), at=state)
    assert raised.value.error_code == "image_missing"
    assert not image.directory.exists()


async def test_no_template_is_made_of_an_image_that_nobody_vouches_for(
    image: Image, state: Path, engine: FakeEngine
) -> None:
    proof = image.directory / signature.FILE
    said = proof.read_bytes()
    async with opened(state, engine) as host:
        await add_template(host)
        proof.unlink()
        with pytest.raises(ImageError) as raised:
            await add_template(host, name="another")
        assert raised.value.error_code == "image_untrusted"
    async with opened(state, engine) as host:  # what the journal names was chosen before
        await host.catalogue.settled(IMAGE)
        await host.kill((await host.create(wanted(), owner=OWNER)).id, owner=OWNER)
        proof.write_bytes(said)
        await add_template(host, name="another")


async def test_templates_of_a_key_that_is_trusted_no_more_are_refused_at_the_next_start(
    image: Image, state: Path, engine: FakeEngine
) -> None:
    other, proof = HostKey.fresh(), image.directory / signature.FILE
    proof.unlink()
    proof.write_bytes(other.sign(Purpose.IMAGE, (image.directory / "manifest.json").read_bytes()))
    Keyring.open(state).trust(other.public, "build-server")
    async with opened(state, engine) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)
        checkpoint = await host.checkpoint(made.id, owner=OWNER, name=None)
        request = DeriveRequest(checkpoint=checkpoint.id, keys=("derived",))
        await host.derivation.derive(request, owner=OWNER)
        await host.pause(made.id, owner=OWNER)
    Keyring.open(state).distrust(other.public)
    boots = engine.boots
    async with opened(state, engine) as host:
        for name in (IMAGE, "derived"):
            status = await host.catalogue.settled(name)
            assert status.state is TemplateState.FAILED
            assert str(other.public) in status.error
            with pytest.raises(ConflictError, match="does not trust") as refused:
                await host.create(wanted(template=name), owner=OWNER)
            assert f"vmpool key trust {other.public}" in refused.value.remedy
        request = DeriveRequest(checkpoint=checkpoint.id, keys=("again",))
        with pytest.raises(ImageError) as raised:
            await host.derivation.derive(request, owner=OWNER)
        assert raised.value.error_code == "image_untrusted"
        await host.resume(made.id, owner=OWNER, timeout=None)  # it is its owner's
        await host.images.sign(image)
        await add_template(host)
    async with opened(state, engine) as host:
        for name in (IMAGE, "derived"):
            assert (await host.catalogue.settled(name)).state is TemplateState.READY
    assert engine.boots == boots  # the same snapshot
