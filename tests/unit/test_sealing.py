"""What is sealed opens with the key that it was sealed with, for what it was sealed for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import HostError
from vmpool.trust.sealing import Sealing

if TYPE_CHECKING:
    from pathlib import Path

VALUES = st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=5)


@pytest.fixture(scope="module")
def sealing(tmp_path_factory: pytest.TempPathFactory) -> Sealing:
    made = Sealing(tmp_path_factory.mktemp("seal") / "key")
    made.open()
    return made


@given(VALUES, st.text(max_size=30))
def test_what_was_sealed_opens_for_the_same(
    sealing: Sealing, values: dict[str, str], of: str
) -> None:
    sealed = sealing.seal(values, of=of)
    assert sealing.unseal(sealed, of=of) == values
    if values:
        assert sealing.unseal(sealed, of=of + "x") is None
        assert sealing.seal(values, of=of) != sealed


@given(st.data())
def test_what_was_changed_opens_not(sealing: Sealing, data: st.DataObject) -> None:
    sealed = bytearray(sealing.seal({"A": "b"}, of="it"))
    at = data.draw(st.integers(min_value=0, max_value=len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(min_value=1, max_value=255))
    assert sealing.unseal(bytes(sealed), of="it") is None
    assert sealing.unseal(bytes(sealed[:at]), of="it") in ({}, None)


@given(st.binary(max_size=100))
def test_what_never_was_sealed_opens_not(sealing: Sealing, data: bytes) -> None:
    assert sealing.unseal(data, of="it") == ({} if not data else None)


def test_none_take_no_room(sealing: Sealing) -> None:
    assert sealing.seal({}, of="it") == b""


async def test_two_that_open_at_once_have_one_key(tmp_path: Path) -> None:
    sealings = [Sealing(tmp_path / "key") for _ in range(8)]
    await asyncio.gather(*(asyncio.to_thread(each.open) for each in sealings))
    assert sealings[0].unseal(sealings[1].seal({"A": "b"}, of="it"), of="it") == {"A": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(HostError) as refused:
        Sealing(tmp_path / "key").open()
    assert refused.value.error_code == "seal_key_unusable"
    with pytest.raises(HostError):
        Sealing(tmp_path / "none" / "key").open()


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_seal_key_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    Sealing(tmp_path / "key").open()
    (tmp_path / "key").chmod(mode)
    with pytest.raises(HostError) as refused:
        Sealing(tmp_path / "key").open()
    assert refused.value.error_code == "seal_key_unusable"
    assert "chmod 600" in refused.value.remedy


def test_a_seal_key_is_not_followed_to_another_place(tmp_path: Path) -> None:
    Sealing(tmp_path / "elsewhere").open()
    (tmp_path / "key").symlink_to("elsewhere")
    with pytest.raises(HostError) as refused:
        Sealing(tmp_path / "key").open()
    assert refused.value.error_code == "seal_key_unusable"


def test_a_token_is_told_again_to_whoever_has_the_key(sealing: Sealing, tmp_path: Path) -> None:
    again, other = Sealing(sealing._path), Sealing(tmp_path / "key")
    again.open()
    other.open()
    token = sealing.token(of="it")
    assert again.token(of="it") == token
    assert len({token, sealing.token(of="other"), other.token(of="it")}) == 3
