"""Commands and terminals through E2B's newest client, in real guests."""

from __future__ import annotations

import pytest

from tests.e2b.conftest import Programs

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

STEPS = ("commands", "background", "stdin", "terminal", "time is up", "flood", "killed")


def test_commands_and_terminals_do_what_e2b_says_of_them(programs: Programs) -> None:
    assert tuple(programs.run("processes").splitlines()) == STEPS


def test_many_commands_and_conversations_at_once(programs: Programs) -> None:
    steps = ("together", "conversation", "terminal", "killed")
    assert tuple(programs.run("processes_async").splitlines()) == steps
