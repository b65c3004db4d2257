"""The code interpreter, through E2B's newest clients, in real guests."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs
from tests.e2b.sdks import JAVASCRIPT, NEWEST, Sdk

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]


@pytest.mark.parametrize("sdk", [NEWEST, JAVASCRIPT], ids=lambda sdk: sdk.name)
def test_a_program_runs_code_and_sees_what_it_shows(programs: Programs, sdk: Sdk) -> None:
    said = programs.run("interpreter", sdk=sdk).splitlines()
    assert said[0] == "a value"
    assert said[-1] == ("a clone" if sdk is NEWEST else "a beginning")
