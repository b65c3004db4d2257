"""What the runner of the kvm ring makes of what it is told: success, failure, or another start."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kvm.nested import message, report, verdict
from tests.kvm.nested.console import Console
from tests.kvm.nested.machine import Ending, Record
from tests.kvm.nested.report import Outcome

PASSED = '<testcase classname="tests.kvm.test_a" name="test_passes"/>'
FAILED = '<testcase classname="tests.kvm.test_a" name="test_fails"><failure/></testcase>'
BROKEN = '<testcase classname="tests.kvm.test_a" name="test_passes"><error/></testcase>'
SKIPPED = (
    '<testcase classname="tests.kvm.test_a" name="test_skips"><skipped message="no wings"/>'
    "</testcase>"
)


def junit(*cases: str) -> str:
    """Return a report as pytest writes it."""
    return f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"


def record_of(*told: message.Any) -> Record:
    """Return the record of a run that told this."""
    record = Record()
    for one in told:
        record.hear(one)
    return record


def ended(code: int, *cases: str) -> Record:
    """Return the record of a run that came to its end."""
    return record_of(
        message.Up(kernel="6.12"),
        message.Began(),
        message.Report(code=code, junit=junit(*cases)),
        message.Halted(code=code),
    )


def test_a_ring_that_passed_is_a_success() -> None:
    assert verdict.objections(Ending.HALTED, ended(0, PASSED, SKIPPED)) == []


@pytest.mark.parametrize(
    ("code", "cases", "objection"),
    [
        (1, (PASSED, FAILED), "1 failed"),
        (0, (PASSED, FAILED), "1 failed"),
        (0, (PASSED, BROKEN), "1 failed"),
        (0, (), "no test ran"),
        (5, (), "no test ran"),
        (0, (SKIPPED,), "no test ran"),
        (3, (PASSED,), "pytest ended with 3"),
    ],
)
def test_a_ring_fails_that_failed_or_ran_nothing(
    code: int, cases: tuple[str, ...], objection: str
) -> None:
    assert verdict.objections(Ending.HALTED, ended(code, *cases)) == [objection]


@pytest.mark.parametrize("text", ["", "no xml", "<testsuites>", "<other/>"])
def test_a_report_that_is_none_counts_no_test(text: str) -> None:
    assert report.objections(0, report.read(text)) == ["no test ran"]


def test_a_test_that_passed_and_whose_teardown_failed_has_failed() -> None:
    tally = report.read(junit(PASSED, BROKEN))
    assert tally.outcomes == {"tests.kvm.test_a::test_passes": Outcome.FAILED}


def test_the_tally_names_failures_and_the_reason_of_each_skip() -> None:
    assert report.read(junit(PASSED, FAILED, SKIPPED)).lines == [
        "1 passed, 1 skipped, 1 failed",
        "  failed: tests.kvm.test_a::test_fails",
        "  skipped 1: no wings",
    ]


def test_a_host_that_lacks_what_the_ring_is_about_says_what() -> None:
    record = record_of(
        message.Up(kernel="6.12"),
        message.Lacking(what=("no working /dev/kvm: it is not there",)),
        message.Halted(code=70),
    )
    assert verdict.objections(Ending.HALTED, record) == [
        "the host has no working /dev/kvm: it is not there"
    ]
    assert not verdict.has_died(Ending.HALTED, record)


def test_a_ring_that_hangs_fails_though_it_sent_its_report() -> None:
    (objection,) = verdict.objections(Ending.STUCK_IN_RING, ended(0, PASSED))
    assert "did not end the ring in time" in objection


def test_a_ring_whose_process_dies_fails_and_is_not_repeated() -> None:
    record = record_of(message.Up(kernel="6.12"), message.Halted(code=1))
    (objection,) = verdict.objections(Ending.HALTED, record)
    assert "ended with 1" in objection
    assert not verdict.has_died(Ending.HALTED, record)


def test_what_is_no_message_is_a_failure() -> None:
    record = ended(0, PASSED)
    record.malformed = 2
    assert verdict.objections(Ending.HALTED, record)


@pytest.mark.parametrize(
    ("ending", "told", "again"),
    [
        (Ending.DIED, (), True),
        (Ending.DIED, (message.Up(kernel="6.12"),), True),
        (Ending.DIED, (message.Began(),), True),
        (Ending.STUCK_AT_BOOT, (), True),
        (Ending.STUCK_IN_RING, (message.Began(),), False),
        (Ending.DIED, (message.Began(), message.Failed(test="a")), False),
        (Ending.DIED, (message.Began(), message.Report(code=0, junit="")), False),
        (Ending.DIED, (message.Lacking(what=("no working /dev/kvm",)),), False),
        (Ending.HALTED, (message.Halted(code=0),), False),
    ],
)
def test_only_a_dead_kernel_is_a_reason_to_start_again(
    ending: Ending, told: tuple[message.Any, ...], again: bool
) -> None:
    record = record_of(*told)
    assert verdict.has_died(ending, record) is again
    assert record.report is not None or verdict.objections(ending, record)


@given(
    st.one_of(
        st.builds(message.Up, kernel=st.text()),
        st.builds(message.Lacking, what=st.lists(st.text()).map(tuple)),
        st.just(message.Began()),
        st.builds(message.Failed, test=st.text()),
        st.builds(message.Report, code=st.integers(0, 255), junit=st.text()),
        st.builds(message.Halted, code=st.integers(-64, 255)),
    )
)
def test_a_message_is_one_line_and_survives_it(told: message.Any) -> None:
    line = message.encode(told)
    assert line.count(b"\n") == 1
    assert message.decode(line) == told


@given(st.binary())
def test_any_line_is_a_message_or_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a message"):
        message.decode(b"?" + line)


@given(st.lists(st.binary()))
def test_the_console_shows_text_and_steers_no_terminal(pieces: list[bytes]) -> None:
    console = Console()
    text = "".join(console.feed(piece) for piece in pieces)
    assert all(one.isprintable() or one in "\n\t" for one in text)


def test_the_console_joins_a_character_that_came_in_halves() -> None:
    console = Console()
    assert console.feed("é".encode()[:1]) + console.feed("é".encode()[1:]) == "é"
    assert console.feed(b"\x1b[31mred\r\n") == "[31mred\n"
