"""How many open files a server gives itself, tried in a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_host
from tests.fakes import FakeEngine
from vmpool import descriptors

_HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
_RAISED = """
import resource
import sys
from vmpool import descriptors
from vmpool.errors import HostError
descriptors.MOST = int(sys.argv[1])
try:
    descriptors.raise_limit()
except HostError as err:
    print(err.error_code)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def raised_from(soft: int, hard: int, most: int = descriptors.MOST) -> list[str]:
    """Return what a process says that raises its own limit."""
    limited = subprocess.run(
        [sys.executable, "-c", _RAISED, str(most)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    return limited.stdout.split()


@pytest.mark.parametrize("hard", [descriptors.NEEDED, min(_HARD, 2 * descriptors.NEEDED)])
def test_a_process_has_all_that_it_may(hard: int) -> None:
    assert raised_from(64, hard) == [str(hard), str(hard)]


def test_a_process_that_may_have_any_number_has_no_more_than_can_be_closed() -> None:
    hard = min(_HARD, 4 * descriptors.NEEDED)
    assert raised_from(64, hard, most=hard - 1) == [str(hard - 1), str(hard)]


def test_too_few_are_refused_in_words() -> None:
    hard = descriptors.NEEDED - 1
    assert raised_from(64, hard) == ["descriptors_few", "64", str(hard)]


async def test_a_host_that_opens_has_all_that_it_may(
    tmp_path_factory: pytest.TempPathFactory, engine: FakeEngine, state: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors.NEEDED // 2, before[1]))
    try:
        async with fake_host.opened(state, engine):
            raised = min(before[1], descriptors.MOST)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (raised, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
