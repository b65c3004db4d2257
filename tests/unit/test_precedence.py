"""The server goes before its guests while it serves, and nobody else does, nor for longer."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vmpool.precedence import LEAST, STEP, USUAL, before_guests, give_up

SESSION = Path("/proc/self/autogroup")
FIRST = max(USUAL - STEP, LEAST)
SHOW = (sys.executable, "-c", "import os; print(os.nice(0))")


def nices() -> set[int]:
    """Return how nice the threads of this process are."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # another test's, that has ended meanwhile
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    return found


def of_a_program() -> int:
    """Return how nice a program is that is started here."""
    return int(subprocess.run(SHOW, check=True, capture_output=True).stdout)


@pytest.fixture
def may() -> None:
    """Skip where this process may not go before others."""
    with ThreadPoolExecutor(1) as scratch:
        try:
            scratch.submit(os.setpriority, os.PRIO_PROCESS, 0, -1).result()
        except PermissionError:
            pytest.skip("this process may not go before others")


@pytest.mark.usefixtures("may")
def test_all_threads_go_first_and_only_for_the_block() -> None:
    over = threading.Event()
    waiting = threading.Thread(target=over.wait, daemon=True)  # ends with a run that fails, too
    waiting.start()
    before, session = nices(), SESSION.read_text() if SESSION.exists() else ""
    with before_guests():
        assert nices() == {FIRST}
        if session:
            was = int(session.split()[-1])
            assert SESSION.read_text().endswith(f"nice {max(was - STEP, LEAST)}\n")
    assert nices() == before
    if session:
        assert SESSION.read_text() == session
    over.set()
    waiting.join()


@pytest.mark.usefixtures("may")
def test_a_thread_that_gives_up_starts_programs_as_usual() -> None:
    with before_guests(), ThreadPoolExecutor(1) as other:
        other.submit(give_up).result()
        assert other.submit(of_a_program).result() == USUAL
        assert of_a_program() == FIRST


STARTED_NICE = """
import os, sys
from concurrent.futures import ThreadPoolExecutor

os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
from vmpool.precedence import before_guests, give_up

def nice():
    return os.getpriority(os.PRIO_PROCESS, 0)

with before_guests(), ThreadPoolExecutor(1) as other:
    first = nice()
    other.submit(give_up).result()
    print(first, other.submit(nice).result())
give_up()
print(nice())
"""


@pytest.mark.usefixtures("may")
@pytest.mark.parametrize(("usual", "first"), [(19, 14), (7, 2), (0, -5), (-18, -20)], ids=str)
def test_how_nice_it_was_started_holds_for_the_server_and_its_guests(
    usual: int, first: int
) -> None:
    own_session = (sys.executable, "-c", STARTED_NICE, str(usual))
    done = subprocess.run(own_session, check=True, capture_output=True, start_new_session=True)
    assert [int(word) for word in done.stdout.split()] == [first, usual, usual]


def test_who_may_not_goes_on_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    before = nices()
    monkeypatch.setattr(os, "setpriority", refuse)
    with before_guests():
        assert nices() == before
