"""Templates built by E2B's newest clients, in real guests."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs
from tests.e2b.sdks import JAVASCRIPT

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]


def test_what_is_built_step_by_step_is_what_sandboxes_begin_with(programs: Programs) -> None:
    said = programs.run("template").splitlines()
    assert said == ["log", "started 1", "cached", "tags", "refused", "removed True"]


def test_the_same_is_built_in_javascript(programs: Programs) -> None:
    said = programs.run("template", sdk=JAVASCRIPT).splitlines()
    assert said == ["log", "started", "refused", "removed true"]
