"""One scenario through every promised release of E2B's SDKs: from the first command to the last."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]


def test_a_program_written_for_e2b_runs_unchanged(programs: Programs) -> None:
    assert programs.run("first") == "hi\nuser\nTrue False\n"
