"""What a guest says of a result, turned into a value that is bounded and honest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.agent import answers, listing
from vmpool.errors import GuestError
from vmpool.model import Result

MOST = 64
kinds = st.sampled_from([f"x/{number}" for number in range(200)])


def shown(mime: dict[str, str]) -> dict[str, str]:
    event = answers.execution_event({"type": "result", "mime": mime})
    assert isinstance(event, Result)
    return event.mime


@given(st.dictionaries(kinds, st.text(), max_size=MOST - 1), st.text())
def test_a_result_with_few_forms_is_as_the_guest_said(mime: dict[str, str], plain: str) -> None:
    mime = {**mime, "text/plain": plain}
    assert shown(mime) == mime
    assert list(shown(mime)) == list(mime)


@given(st.dictionaries(kinds, st.text(), min_size=MOST + 1, max_size=150), st.none() | st.text())
def test_of_too_many_forms_the_first_are_kept_and_say_so(
    mime: dict[str, str], plain: str | None
) -> None:
    said = mime if plain is None else {**mime, "text/plain": plain}
    kept = shown(said)
    assert len(kept) == MOST
    first = list(mime)[: MOST - 1]
    assert {kind: kept[kind] for kind in first} == {kind: mime[kind] for kind in first}
    left_out = len(mime) - len(first)
    assert kept["text/plain"] == f"{plain or ''}\n[{left_out} more forms left out]"


@pytest.mark.parametrize("mode", [-1, 0o10000, 2**63])
def test_permission_bits_are_such(mode: int) -> None:
    entry = {"path": "/x", "kind": "file", "size_bytes": 0, "mode": 0o7777}
    entry |= {"owner": "root", "group": "root", "modified_ns": 0}
    assert listing.file_info(entry).mode == 0o7777
    with pytest.raises(GuestError, match="'mode'"):
        listing.file_info(entry | {"mode": mode})


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": ["a"]},
        {"metadata": {"key": 1}},
        {"metadata": {"key": "line\nbreak"}},
        {"metadata": {"key": "ö"}},
        {"metadata": {"key": "v" * 4094}},
        {"resolved": "/x"},
        {"resolved": {"path": "/x", "kind": "link", "mode": 0}},
        {"resolved": {"path": "/x" * 4096, "kind": "file", "mode": 0}},
    ],
)
def test_what_a_guest_says_of_a_file_is_bounded(wrong: dict[str, object]) -> None:
    entry: dict[str, object] = {"path": "/x", "kind": "file", "size_bytes": 0, "mode": 0o644}
    entry |= {"owner": "root", "group": "root", "modified_ns": 0}
    with pytest.raises(GuestError) as caught:
        listing.file_info(entry | wrong)
    assert caught.value.error_code == "guest_protocol"
