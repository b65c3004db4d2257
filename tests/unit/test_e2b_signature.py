"""A signed URL opens one file, one way, in one sandbox, and only until it ends."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import pytest

from vmpool.api.e2b import signature
from vmpool.errors import InvalidRequestError, UnauthorizedError

if TYPE_CHECKING:
    from vmpool.api.e2b.signature import Signed

TOKEN = "token-of-the-sandbox"
NOW = 1_800_000_000.0
QUERY: Final = {"path": "~/a b.txt", "username": "user"}


def signed(method: str = "GET", *, until: str | None = None, **changed: str) -> Signed:
    """Return a request for `QUERY`, read, as whoever signed that would; then changed."""
    query = dict(QUERY)
    made = signature.sign(query["path"], "read", query["username"], TOKEN, expiration=until)
    query["signature"] = made
    if until is not None:
        query["signature_expiration"] = until
    found = signature.read(method, "/files", query | changed)
    assert found is not None
    return found


def refusal(request: Signed, token: str = TOKEN) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        request.require(token, now=NOW)
    return caught.value.error_code


def test_a_signature_is_made_as_the_clients_make_it() -> None:
    # printf %s '/home/user/x:read:user:secret:1700000000' | sha256sum, in base64
    assert (
        signature.sign("/home/user/x", "read", "user", "secret", expiration="1700000000")
        == "v1_mLTFiju3he/opb3dj2FXluEgbbxd9DCxS12gl/qxJFM"
    )


def test_what_was_signed_is_let_in_until_it_ends() -> None:
    signed().require(TOKEN, now=NOW)
    signed(until=str(int(NOW))).require(TOKEN, now=NOW)
    assert refusal(signed(until=str(int(NOW) - 1))) == "signature_expired"


@pytest.mark.parametrize(
    "changed",
    [
        {"path": "~/another"},
        {"path": "~/a b.txt:read"},
        {"username": "root"},
        {"username": ""},
        {"signature_expiration": "99999999999"},
        {"signature": "v1_"},
        {"signature": "v1_" + "A" * 10_000},
        {"signature": "\udcff"},
    ],
)
def test_nothing_else_is(changed: dict[str, str]) -> None:
    assert refusal(signed(**changed)) == "signature_invalid"


def test_nor_another_direction_or_sandbox() -> None:
    assert refusal(signed("POST")) == "signature_invalid"
    assert refusal(signed(), token="token-of-another") == "signature_invalid"


def test_a_sandbox_whose_token_is_not_known_takes_no_signature() -> None:
    query = QUERY | {"signature": signature.sign(QUERY["path"], "read", "user", "")}
    request = signature.read("GET", "/files", query)
    assert request is not None
    assert refusal(request, token="") == "signature_invalid"


def test_an_end_that_was_moved_or_left_out_is_not_what_was_signed() -> None:
    made = signed(until=str(int(NOW) - 1)).signature
    for query in (QUERY, QUERY | {"signature_expiration": "1900000000"}):
        request = signature.read("GET", "/files", query | {"signature": made})
        assert request is not None
        assert refusal(request) == "signature_invalid"


@pytest.mark.parametrize(
    "query",
    [
        {"signature": "v1_x"},
        {"signature": "v1_x", "path": ""},
        {"signature": "v1_x", "path": "a", "signature_expiration": "soon"},
        {"signature": "v1_x", "path": "a", "signature_expiration": "-1"},
        {"signature": "v1_x", "path": "a", "signature_expiration": "9" * 40},
    ],
)
def test_a_signature_for_no_file_or_no_time_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        signature.read("POST", "/files", query)
    assert caught.value.error_code == "signature_malformed"


def test_no_file_has_a_name_that_is_longer_than_a_path() -> None:
    longest = signature.read("GET", "/files", {"signature": "v1_x", "path": "é" * 2047})
    assert longest is not None
    with pytest.raises(InvalidRequestError) as caught:
        signature.read("GET", "/files", {"signature": "v1_x", "path": "é" * 2048})
    assert caught.value.error_code == "invalid_path"


class Digest:
    """A digest that counts the bytes which go through any of them."""

    counted = 0

    def __init__(self, data: bytes = b"") -> None:
        self.data = b""
        self.update(data)

    def update(self, data: bytes) -> None:
        Digest.counted += len(data)
        self.data += data

    def copy(self) -> Digest:
        twin = Digest()
        twin.data = self.data
        return twin

    def digest(self) -> bytes:
        return self.data[:32]


def test_a_path_is_digested_once_however_many_sandboxes_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hashlib, "sha256", Digest)
    request = signature.read("GET", "/files", {"signature": "v1_x", "path": "x" * 4000})
    assert request is not None
    for number in range(100):
        assert not request.made_with(f"token-{number}")
    assert Digest.counted < 4000 + 100 * 10


def test_other_requests_are_not_signed() -> None:
    query = QUERY | {"signature": "v1_x"}
    assert signature.read("GET", "/files", QUERY) is None
    assert signature.read("GET", "/health", query) is None
    assert signature.read("DELETE", "/files", query) is None
