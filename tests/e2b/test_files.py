"""Files through E2B's newest SDK, in a real guest."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

PARTS = (
    "round_trips",
    "several",
    "names",
    "refusals",
    "metadata",
    "changes",
    "streamed",
    "signed",
)


def test_files_are_as_the_documentation_has_them(programs: Programs) -> None:
    assert programs.run("files").splitlines() == [*PARTS]
