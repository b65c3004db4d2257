"""A signed URL is good for what it was signed for, until it ends."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api import file_signature
from vmpool.api.file_signature import Opened
from vmpool.errors import UnauthorizedError

SIGNED = Opened(method="GET", path="/home/user/x", user="user", expires=1000)


def query(opened: Opened, signature: str) -> dict[str, str]:
    return {
        "path": opened.path,
        "user": opened.user,
        "expires": str(opened.expires),
        "mode": opened.mode,
        "signature": signature,
    }


def refusal(method: str, asked: dict[str, str], token: str = "token", now: float = 0.0) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        file_signature.require(method, asked, token, user="user", now=now)
    return caught.value.error_code


def test_what_was_signed_is_let_in_until_it_ends() -> None:
    asked = query(SIGNED, SIGNED.sign("token"))
    file_signature.require("GET", asked, "token", user="user", now=1000.0)
    assert refusal("GET", asked, now=1000.5) == "signature_expired"
    del asked["user"]
    file_signature.require("GET", asked, "token", user="user", now=0.0)


@pytest.mark.parametrize(
    "other",
    [
        {"path": "/home/user/y"},
        {"user": "root"},
        {"expires": 2000},
        {"method": "PUT"},
        {"mode": "511"},
    ],
)
def test_nothing_else_is(other: dict[str, Any]) -> None:
    wanted = dataclasses.replace(SIGNED, **other)
    asked = query(wanted, SIGNED.sign("token"))
    assert refusal(wanted.method, asked) == "signature_invalid"


def test_nor_with_another_token_or_none() -> None:
    assert refusal("GET", query(SIGNED, SIGNED.sign("token")), "other") == "signature_invalid"
    assert refusal("GET", query(SIGNED, SIGNED.sign("")), "") == "signature_invalid"


@given(expires=st.text(), signature=st.text())
def test_what_is_no_signature_is_refused(expires: str, signature: str) -> None:
    asked = query(SIGNED, signature) | {"expires": expires}
    assert refusal("GET", asked) == "signature_invalid"
