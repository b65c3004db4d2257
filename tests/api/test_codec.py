"""Codec: whatever bytes come, the answer is a body or one clear error."""

from __future__ import annotations

import contextlib
import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmpool.api import bodies, codec, views
from vmpool.errors import InvalidRequestError


@given(st.lists(st.binary(max_size=12) | st.text(max_size=4).map(str.encode)))
def test_characters_put_together_are_what_went_in(chunks: list[bytes]) -> None:
    characters = codec.Characters()
    pieces = [piece for chunk in chunks for piece in characters.feed(chunk)]
    pieces += characters.finish()
    joined = b"".join(piece.encode() if isinstance(piece, str) else piece for piece in pieces)
    assert joined == b"".join(chunks)


@given(st.text(), st.lists(st.integers(min_value=0, max_value=60)))
def test_text_is_never_taken_for_bytes_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    data = text.encode()
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    characters = codec.Characters()
    pieces = [
        piece
        for start, end in itertools.pairwise(places)
        for piece in characters.feed(data[start:end])
    ]
    assert not list(characters.finish())
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == text


@given(st.binary())
def test_bytes_that_are_no_body_are_the_callers_fault(data: bytes) -> None:
    with contextlib.suppress(InvalidRequestError):
        codec.decode(data, bodies.Run)


@given(st.text(), st.integers(min_value=1, max_value=8))
def test_text_cut_short_loses_at_most_its_last_character(text: str, short: int) -> None:
    data = text.encode()[:-short]
    shown, exact = codec.text(data, cut=True)
    assert exact
    assert text.startswith(shown)
    assert len(data) - len(shown.encode()) < 4


@given(st.text(st.characters()) | st.text(st.characters(categories=["Cs"])))
def test_what_a_guest_says_can_always_be_sent(text: str) -> None:
    codec.encode(bodies.FileFailure(code="x", detail=views.printable(text)))


@given(st.integers(min_value=-(2**63), max_value=2**64))
def test_any_number_of_a_guest_is_a_time(unix_ns: int) -> None:
    assert views.rfc3339(unix_ns).endswith("Z")
