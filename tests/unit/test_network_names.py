"""A rule's domain covers the names that it says, however they are written, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import InvalidRequestError
from vmpool.network import names

LABELS = st.from_regex(rb"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=6).filter(lambda labels: not labels[-1].isdigit())


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("pypi.org", "pypi.org"),
        ("PyPI.org.", "pypi.org"),
        ("*.Bücher.example", "*.xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("_http._tcp.deb.example", "_http._tcp.deb.example"),
        ("localhost", "localhost"),
    ],
)
def test_a_domain_has_one_form(text: str, pattern: str) -> None:
    assert names.pattern(text) == pattern
    assert names.pattern(pattern) == pattern


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "*", "*.", "*.*.org", "a*.org", "a..org", "-a.org", "10.0.0.1", "*.10", "[::1]"),
        *("x" * 64 + ".org", ".".join(["abcdefg"] * 33), "\u202e.org", "a b.org", "ö" * 100_000),
    ],
)
def test_what_is_no_domain_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        names.pattern(text)
    assert refused.value.error_code == "invalid_domain"
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("pypi.org", "pypi.org", True),
        ("pypi.org", "files.pypi.org", False),
        ("*.pypi.org", "files.pypi.org", True),
        ("*.pypi.org", "a.b.pypi.org", True),
        ("*.pypi.org", "pypi.org", False),
        ("*.pypi.org", "evilpypi.org", False),
        ("pypi.org", "pypi.org.evil.example", False),
    ],
)
def test_a_star_covers_what_is_below_it_alone(pattern: str, name: str, covered: bool) -> None:
    assert names.covers(pattern, name) is covered


@given(NAMES)
def test_a_name_covers_itself_in_any_case(labels: list[bytes]) -> None:
    name = names.canonical([label.upper() for label in labels])
    assert name == b".".join(labels).decode()
    assert names.covers(names.pattern(name.upper()), name)
    assert names.covers("*." + name, "below." + name)


@pytest.mark.parametrize("label", [b"", b"a.b", b"a b", b"\0", b"\xff", b"-a", b"a-", b"x" * 64])
def test_a_label_that_no_host_has_makes_no_name(label: bytes) -> None:
    assert names.canonical([label, b"example"]) is None


@given(st.lists(st.binary(max_size=63), max_size=8))
def test_any_labels_are_judged(labels: list[bytes]) -> None:
    name = names.canonical(labels)
    assert name is None or name == b".".join(labels).decode().lower()
