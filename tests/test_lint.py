"""The linters are tests: what they find is a failure like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "argv",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("mypy", "tests", "bench"),
        ("lint-imports", "--no-cache"),
    ],
    ids=" ".join,
)
def test_linter_is_content(argv: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [PROGRAMS / argv[0], *argv[1:]],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert ended.returncode == 0, ended.stdout[-8000:]
