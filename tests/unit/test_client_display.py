"""What a notebook is shown of what a guest showed: nothing that acts."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vmpool.client.display import SHOWN_CHARACTERS, Display, mimebundle
from vmpool.client.events import Event, Exited, Output, Raised, Started, read_event
from vmpool.client.result import Gathering, Result
from vmpool.errors import TaskMemoryError, VmpoolError
from vmpool.model import Stream

PNG = b"\x89PNG\r\n\x1a\n and so on"
FIGURE = Display({"image/png": base64.b64encode(PNG).decode() + "\n", "text/plain": "<Figure>"})
EVIL = "<script>alert(1)</script>"
END = Exited(exit_code=0, signal=None, timed_out=False, out_of_memory=False, duration_ms=1.0)


class Elements(HTMLParser):
    """Collects what a browser would make of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def gathered(*events: Event) -> Result:
    """Return the result of some events and an end."""
    gathering = Gathering()
    for event in events:
        gathering.add(event)
    return gathering.result(END)


def test_a_result_with_a_figure_shows_the_figure() -> None:
    result = gathered(Output(Stream.STDOUT, b"a < b\n"), FIGURE)
    shown = result._repr_mimebundle_(include=None, exclude=None)
    picture = base64.b64encode(PNG).decode()
    assert f'src="data:image/png;base64,{picture}"' in shown["text/html"]
    assert "a &lt; b" in shown["text/html"]
    assert shown["text/plain"] == "a < b\n<Figure>"
    assert FIGURE.png == PNG


def test_text_is_shown_as_text() -> None:
    shown = gathered(Output(Stream.STDOUT, b"one\n"), Display({"text/plain": "42"}))
    assert shown._repr_mimebundle_() == {"text/plain": "one\n42"}


def test_all_figures_are_shown() -> None:
    assert mimebundle([FIGURE, FIGURE])["text/html"].count("<img") == 2


def test_an_exception_is_shown_with_its_traceback() -> None:
    shown = gathered(Raised("ValueError", "no", "Traceback …\nValueError: no\n"))
    assert shown._repr_mimebundle_() == {"text/plain": "Traceback …\nValueError: no"}


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "text/latex", "application/javascript", "text/markdown"]
)
def test_what_a_notebook_would_run_is_not_shown(kind: str) -> None:
    for form in (EVIL, base64.b64encode(EVIL.encode()).decode()):
        shown = Display({kind: form, "text/plain": "plain"})._repr_mimebundle_()
        assert shown == {"text/plain": "plain"}
    shown = mimebundle([FIGURE, Display({kind: EVIL, "text/plain": EVIL})])
    assert set(shown) == {"text/plain", "text/html"}
    assert [tag for tag, _ in Elements(shown["text/html"]).found] == ["img", "pre"]


def test_a_picture_that_is_none_does_not_leave_its_attribute() -> None:
    escape = '"><script>alert(12)</script>'  # 20 letters of base64, were the others passed over
    assert Display({"image/png": escape})._repr_mimebundle_() == {"text/plain": ""}
    assert Display({"image/png": escape}).png is None


def test_what_would_steer_a_terminal_is_escaped() -> None:
    shown = gathered(Output(Stream.STDOUT, b"\x1b]0;title\x07\xc2\x9b1m\ttab\n"))
    assert shown._repr_mimebundle_() == {"text/plain": "\\x1b]0;title\\x07\\x9b1m\ttab"}


def test_of_much_text_the_end_is_shown() -> None:
    shown = mimebundle(["a" * 100 + "b" * SHOWN_CHARACTERS])["text/plain"]
    assert shown == "…" + "b" * SHOWN_CHARACTERS


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["text/plain", "text/html", "image/png", "image/jpeg", "x"]),
            st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()),
        )
        | st.text()
    )
)
def test_html_that_is_shown_is_ours_whatever_the_guest_showed(
    parts: list[dict[str, str] | str],
) -> None:
    shown = mimebundle(part if isinstance(part, str) else Display(part) for part in parts)
    assert set(shown) <= {"text/plain", "text/html"}
    for tag, attributes in Elements(shown.get("text/html", "")).found:
        assert (tag, set(attributes)) in [("pre", {"style"}), ("img", {"alt", "src"})]


def test_a_result_is_of_bounded_size_and_says_that_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmpool.client.result.GATHERED_BYTES", 1000)
    result = gathered(
        Output(Stream.STDOUT, b"x" * 700),
        Output(Stream.STDERR, b"y" * 700),
        Display({"text/plain": "z" * 400}),
        Display({}),
        Started(1),
    )
    assert (result.stdout_bytes, result.stderr_bytes) == (b"x" * 700, b"y" * 300)
    assert len(result.displays) == 1
    assert result.truncated
    assert not gathered(Output(Stream.STDOUT, b"x" * 700)).truncated


def test_one_line_of_a_prompt_is_short_whatever_was_said() -> None:
    result = gathered(Output(Stream.STDOUT, b"\x1b" + b"x" * 10_000_000), FIGURE)
    assert repr(result).startswith(r"<Result ok, stdout '\x1bxxx")
    assert repr(result).endswith("xx' and 9999941 bytes more, displays 1>")
    assert len(repr(result)) < 200
    assert repr(FIGURE) == "<Display ['image/png', 'text/plain']>"


def test_memory_that_is_used_up_is_an_error_of_its_own_when_checked() -> None:
    end = Exited(exit_code=None, signal=9, timed_out=False, out_of_memory=True, duration_ms=1.0)
    with pytest.raises(TaskMemoryError):
        Gathering().result(end).check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
TYPES = st.sampled_from(["started", "stdout", "stderr", "error", "exit", "problem", "weather"])
MEMBERS = st.sampled_from(["pid", "data", "data_base64", "name", "value", "problem", "exit_code"])


@given(
    st.binary()
    | st.text()
    | st.builds(
        lambda kind, members: json.dumps({"type": kind} | members),
        TYPES,
        st.dictionaries(MEMBERS, JSON),
    )
)
def test_a_line_is_an_event_or_an_error_of_ours(line: bytes | str) -> None:
    code = "not_vmpool"
    try:
        event = read_event(line)
    except VmpoolError as err:
        code = err.error_code
    else:
        assert event is None or isinstance(event, Event)
    assert code == "not_vmpool"
