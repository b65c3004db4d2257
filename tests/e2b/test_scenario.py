"""One scenario through every promised release of E2B's SDKs: from the first command to the last."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs
from tests.e2b.sdks import ALL, Sdk

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

COMMANDS = ("command", "exit code", "environment", "stream", "list", "attach", "signal", "gone")
FILES = ("write", "bytes", "files", "rename", "remove", "watch")
SLEEP = ("paused", "paused once", "state", "resume", "same token", "same processes")
CHILDREN = ("fork", "apart", "snapshot", "forgotten")
END = ("running", "metadata", "timeout", "kill")


def test_a_program_written_for_e2b_runs_unchanged(programs: Programs) -> None:
    assert programs.run("first") == "hi\nuser\nTrue False\n"


@pytest.mark.parametrize("sdk", ALL, ids=lambda sdk: sdk.name)
def test_every_release_finds_what_it_is_documented_to_find(programs: Programs, sdk: Sdk) -> None:
    code = ("code", "figure") if sdk.has_code else ()
    said = programs.run("scenario", *code[:1], sdk=sdk)
    assert said.splitlines() == [*COMMANDS, *FILES, "terminal", *SLEEP, *CHILDREN, *code, *END]
