"""Who may reach which ports: what is said of one and of all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import CapacityError, NotFoundError
from vmpool.exposure import MOST_PORTS, MOST_TOKENS, Exposure, TrafficToken, digest_of

PORTS = st.integers(1, 65535)
WORDS = st.lists(st.tuples(st.none() | PORTS, st.booleans()), max_size=20)


def token(port: int | None, secret: str, id: str = "t") -> TrafficToken:
    return TrafficToken(id=id, port=port, digest=digest_of(secret), created_ns=1)


@given(words=WORDS, port=PORTS)
def test_the_last_word_about_a_port_or_all_holds(
    words: list[tuple[int | None, bool]], port: int
) -> None:
    exposure, expected = Exposure(), False
    for of, public in words:
        exposure = exposure.publishing(of, public=public)
        expected = public if of in (None, port) else expected
    assert exposure.is_public(port) is expected
    assert Exposure.parse(exposure.text) == exposure


def test_a_token_opens_its_port_or_all() -> None:
    exposure = Exposure().adding(token(80, "one", "a")).adding(token(None, "all", "b"))
    assert [exposure.admits(secret, 80) for secret in ("one", "all", "none", "")] == [
        True,
        True,
        False,
        False,
    ]
    assert [exposure.admits(secret, 81) for secret in ("one", "all")] == [False, True]
    assert not exposure.without("a", standing="").admits("one", 80)
    assert not exposure.is_public(80)
    assert Exposure.parse(exposure.text) == exposure
    with pytest.raises(NotFoundError):
        exposure.without("c", standing="")


def test_of_those_that_are_revoked_the_servers_own_are_counted() -> None:
    exposure = Exposure().adding(token(80, "one", "a")).adding(token(None, "own", "b"))
    own = digest_of("own")
    assert exposure.without("a", standing=own).revoked == 0
    revoked = exposure.without("b", standing=own)
    assert (revoked.revoked, revoked.holds(own)) == (1, False)
    assert Exposure.parse(revoked.text) == revoked


def test_what_was_written_before_any_were_counted_is_read() -> None:
    assert Exposure.parse('{"public": true, "ports": [], "tokens": []}') == Exposure(public=True)


def test_there_are_not_more_than_a_row_should_hold() -> None:
    exposure = Exposure()
    for number in range(MOST_PORTS):
        exposure = exposure.publishing(number + 1, public=True)
    exposure.publishing(1, public=False)
    with pytest.raises(CapacityError):
        exposure.publishing(MOST_PORTS + 1, public=True)
    assert exposure.publishing(None, public=False).ports == ()
    for number in range(MOST_TOKENS):
        exposure = exposure.adding(token(None, str(number), str(number)))
    with pytest.raises(CapacityError):
        exposure.adding(token(None, "more"))


def test_a_token_that_is_no_text_opens_nothing() -> None:
    assert not Exposure().adding(token(None, "x")).admits("\udcff", 80)
