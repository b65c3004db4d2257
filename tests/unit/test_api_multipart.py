"""Multipart bodies are taken apart, however they are cut, and bad ones are refused."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.api.multipart import ASIDE_BYTES, HEADERS_BYTES, Parts
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TYPE = "multipart/form-data; boundary=XyZ"


async def pieces(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    at = 0
    for cut in [*sorted(cuts), len(body)]:
        if at < cut:
            yield body[at:cut]
            at = cut


def taken_apart(
    body: bytes, cuts: list[int] | None = None, content_type: str = TYPE
) -> list[tuple[str | None, bytes]]:
    """Return each part's name and content."""

    async def take() -> list[tuple[str | None, bytes]]:
        parts = Parts(content_type, pieces(body, cuts or []))
        found = []
        while part := await parts.next():
            found.append((part.filename, b"".join([piece async for piece in parts.content()])))
        return found

    return asyncio.run(take())


def made(*parts: tuple[str, bytes]) -> bytes:
    return b"".join(
        b"--XyZ\r\nContent-Disposition: form-data; " + name.encode() + b"\r\n\r\n" + data + b"\r\n"
        for name, data in parts
    ) + b"--XyZ--\r\n"  # fmt: skip


content = st.binary(max_size=40) | st.sampled_from(
    [b"\r\n", b"\r\n--", b"\r\n--Xy", b"\r\n--XyQ", b"--XyZ", b"\n--XyZ--", b"\r\r\n--Xy\r\n"]
)


@given(
    contents=st.lists(content, max_size=4),
    cuts=st.lists(st.integers(0, 400), max_size=20),
    before=st.sampled_from([b"", b"preamble\r\n", b"\r\n"]),
    after=st.binary(max_size=20),
)
def test_parts_come_out_as_they_went_in_however_the_body_is_cut(
    contents: list[bytes], cuts: list[int], before: bytes, after: bytes
) -> None:
    body = made(*((f'name="file"; filename="{n}"', data) for n, data in enumerate(contents)))
    found = taken_apart(before + body + after, [cut for cut in cuts if cut < len(body)])
    assert found == [(str(n), data) for n, data in enumerate(contents)]


@given(body=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_whatever_comes_is_taken_apart_or_refused(body: bytes, cuts: list[int]) -> None:
    for whole in (body, b"--XyZ\r\n" + body, made(("filename=a", body))):
        with contextlib.suppress(InvalidRequestError):
            taken_apart(whole, cuts)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('name="file"; filename="/home/user/a b;c.txt"', "/home/user/a b;c.txt"),
        ("name=file; filename=/plain", "/plain"),
        ('filename="/ö/\\back"; name=x', "/ö/\\back"),
        ('filename="say %22hi%22%0d"', 'say "hi"\r'),
        ('filename="say \\"hi\\""', 'say "hi"'),
        ('filename="100%25"', "100%25"),
        ("filename=\"x\"; filename*=UTF-8''%2Fhome%2f%C3%B6%25", "/home/ö%"),
        ('name="field"', None),
        ('FileName = "loud"', "loud"),
    ],
)
def test_a_name_is_understood_as_browsers_curl_and_clients_write_it(
    parameters: str, name: str | None
) -> None:
    assert taken_apart(made((parameters, b"x"))) == [(name, b"x")]


def test_a_part_without_headers_has_no_name() -> None:
    assert taken_apart(b"--XyZ\r\n\r\ncontent\r\n--XyZ--") == [(None, b"content")]


def test_what_is_left_of_a_part_is_skipped() -> None:
    async def take() -> list[str | None]:
        parts = Parts(TYPE, pieces(made(("filename=a", bytes(100)), ("filename=b", b"")), [150]))
        first = await parts.next()
        await anext(parts.content())
        second = await parts.next()
        assert first is not None
        assert second is not None
        return [first.filename, second.filename, await parts.next()]  # type: ignore[list-item]

    assert asyncio.run(take()) == ["a", "b", None]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--XyZ",
        made(("filename=a", b"x"))[:-4],
        b"--XyZ\r\nno colon\r\n\r\n\r\n--XyZ--",
        b"--XyZ\r\nA: \xff\r\n\r\n\r\n--XyZ--",
        b"--XyZmore\r\n\r\n\r\n--XyZ--",
        b"--XyZ\r\nA: " + b"a" * HEADERS_BYTES + b"\r\n\r\n\r\n--XyZ--",
        b"--XyZ\r\nA: " + b"a" * 2 * HEADERS_BYTES,
        made(("filename*=latin-1''a", b"x")),
        made(("filename*=UTF-8''%FF", b"x")),
    ],
)
def test_a_broken_body_is_refused(body: bytes) -> None:
    for cuts in ([], list(range(len(body)))):
        with pytest.raises(InvalidRequestError) as raised:
            taken_apart(body, cuts)
        assert raised.value.error_code == "invalid_body"


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/mixed; boundary=XyZ",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 71}",
    ],
)
def test_a_body_of_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        taken_apart(made(), content_type=content_type)
    assert raised.value.error_code == "unsupported_media_type"


@pytest.mark.parametrize(
    "content_type",
    [
        'Multipart/Form-Data; boundary="XyZ"',
        "multipart/form-data; charset=utf-8; boundary=XyZ",
        "multipart/form-data;boundary=XyZ; charset=utf-8",
    ],
)
def test_a_boundary_is_found_among_other_parameters(content_type: str) -> None:
    assert taken_apart(made(("filename=a", b"")), content_type=content_type) == [("a", b"")]


@pytest.mark.parametrize("cuts", [[], [100, ASIDE_BYTES], list(range(ASIDE_BYTES))])
def test_what_belongs_to_no_part_has_a_limit(cuts: list[int]) -> None:
    body = made(("filename=a", b"1"))
    allowed, refused = b"-" * (ASIDE_BYTES - 100), b"-" * (ASIDE_BYTES + 1)
    for bulk in (allowed + b"\r\n" + body, body + allowed):
        assert taken_apart(bulk, cuts) == [("a", b"1")]
    for bulk in (refused + b"\r\n" + body, body + refused):
        with pytest.raises(InvalidRequestError, match="belong to no part"):
            taken_apart(bulk, cuts)
