"""What holds for every test: it leaves nothing behind.

Async tests need no mark; each runs on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import pytest_asyncio

from tests import leftovers, seclusion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

hypothesis.settings.register_profile("vmpool", deadline=None)  # neighbours make any deadline flaky
hypothesis.settings.load_profile("vmpool")

BOOTING = {"tests/tcg", "tests/e2b"}
"""Directories of tests that boot real images."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what boots machines last: what fails in a second is known in a second.

    Where workers share the run (`-n 2`), put it first instead, as it takes longest.
    """
    workers = hasattr(config, "workerinput")
    items.sort(key=lambda item: _boots(item) != workers)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share the run between workers by module; tests of real images stay with one by directory.

    They have a server and a cache of images in common.
    """
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - not in every ring's machine

    class Sharing(LoadScopeScheduling):  # type: ignore[misc]  # xdist tells no types
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            directory = path.rpartition("/")[0]
            return directory if directory in BOOTING else path

    return Sharing(config, log)


def _boots(item: pytest.Item) -> bool:
    return any(map(item.get_closest_marker, ("tcg", "kvm")))


@pytest.fixture(scope="session", autouse=True)
def _marked_and_confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Mark every process that the run starts, and give what is stray one place to show."""
    seclusion.seclude()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(leftovers.MARK_NAME, leftovers.MARK)
        patch.setenv("TMPDIR", os.fspath(tmp_path_factory.mktemp("stray")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_nothing() -> Iterator[None]:
    """Fail when a module's tests, with the fixtures they share, leave something on the host."""
    before = leftovers.Census.take()
    yield
    assert not leftovers.since(before)


@pytest.fixture(autouse=True)
def _test_leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail when a test leaves a task or something on the host.

    Tests marked `shares_host` use machines that outlive them and come and go on their own; for them
    the module's fixture looks at the end.
    """
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("_test_leaves_no_task")
    if request.node.get_closest_marker("shares_host"):
        yield
        return
    before = leftovers.Census.take()
    yield
    assert not leftovers.since(before)


@pytest_asyncio.fixture
async def _test_leaves_no_task() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left
