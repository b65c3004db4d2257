"""How failures and values read at a terminal that nobody else may command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmpool.cli import report, table
from vmpool.errors import EngineError

if TYPE_CHECKING:
    import pytest

EVIL = "\x1b]52;c;aGk=\x07\x9b6n\x7f é 雪"
TAME = "�]52;c;aGk=��6n� é 雪"


def test_an_error_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = EngineError(EVIL, remedy=f"do this\n{EVIL}", log_tail=f"one\n{EVIL}")
    report.show(error, as_json=False)
    said = capsys.readouterr().err
    assert said.count(TAME) == 3
    assert said.count("\n") == 6


def test_an_error_in_json_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    report.show(EngineError(EVIL), as_json=True)
    said = capsys.readouterr().err
    assert json.loads(said)["message"] == EVIL
    assert said.rstrip("\n").isprintable()


def test_json_is_readable_and_inert(capsys: pytest.CaptureFixture[str]) -> None:
    table.print_json({"path": EVIL})
    said = capsys.readouterr().out
    assert json.loads(said) == {"path": EVIL}
    assert said.replace("\n", "").isprintable()
    assert "é 雪" in said
