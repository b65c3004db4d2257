"""What whoever waits at a terminal, or reads a log later, is told."""

from __future__ import annotations

import io
import threading

import pytest

from vmpool.cli import progress
from vmpool.cli.progress import Progress, elapsed


class Terminal(io.StringIO):
    """A terminal that tells when something was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = ""
        self.seen = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.wanted and self.wanted in self.getvalue():
            self.seen.set()
        return written


class Log(Terminal):
    def isatty(self) -> bool:
        return False


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW", 0.001)
    monkeypatch.setattr(progress, "WORTH_TELLING", 0.0)


def test_short_steps_are_one_plain_line_each_in_a_log() -> None:
    log = io.StringIO()
    with Progress(log) as steps:
        steps("booting")
        steps("saving")
    assert log.getvalue() == "booting ...\nsaving ...\n"


def test_a_long_step_says_in_a_log_that_it_ended_and_after_how_long(quick: None) -> None:
    log = io.StringIO()
    with Progress(log) as steps:
        steps("booting")
    assert log.getvalue() == "booting ...\nbooting done (0 s)\n"


def test_a_very_long_step_gives_signs_of_life_with_its_detail_in_a_log(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SIGN_OF_LIFE", 0.0)
    log = Log()
    log.wanted = "installing ... 0 s  Unpacking\n"
    with Progress(log) as steps:
        steps("installing")
        steps.note("Unpacking")
        assert log.seen.wait(20)


def test_a_terminal_is_redrawn_while_a_step_lasts(quick: None) -> None:
    terminal = Terminal()
    terminal.wanted = "\r\x1b[K..  booting ... 0 s  kernel"
    with Progress(terminal) as steps:
        steps("booting")
        steps.note("kernel\n")
        assert terminal.seen.wait(20)
    assert terminal.getvalue().endswith("\r\x1b[Kok  booting (0 s)\n")


def test_a_redrawn_line_never_wraps(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    terminal.wanted = "\x1b[K..  x"
    with Progress(terminal) as steps:
        steps("x" * 100)
        assert terminal.seen.wait(20)
        drawn = terminal.getvalue().rsplit("\x1b[K", 1)[1]
    assert drawn == "..  " + "x" * 15


def _boot_in_vain(steps: Progress) -> None:
    steps("booting")
    raise ValueError("no")


@pytest.mark.parametrize("kind", [Log, Terminal])
def test_a_step_that_failed_is_not_called_done(kind: type[Terminal]) -> None:
    shown = kind()
    steps = Progress(shown)
    with pytest.raises(ValueError, match="no"), steps:
        _boot_in_vain(steps)
    assert shown.getvalue().endswith("booting failed\n")


def test_durations_are_said_as_a_person_says_them() -> None:
    assert [elapsed(s) for s in (0.4, 59.9, 60, 3725)] == ["0 s", "59 s", "1 min 0 s", "62 min 5 s"]


def test_what_goes_on_after_the_block_is_told_in_plain_lines() -> None:
    terminal = Terminal()
    with Progress(terminal) as steps:
        pass
    steps("still booting the other one")
    assert terminal.getvalue() == "still booting the other one\n"
