"""What holds for every test: it leaves nothing behind.

Async tests need no mark; each runs on an event loop of its own.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import tempfile
from typing import TYPE_CHECKING

import hypothesis
import pytest
import pytest_asyncio

from tests import leftovers, seclusion

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

hypothesis.settings.register_profile("vmpool", deadline=None)  # neighbours make any deadline flaky
hypothesis.settings.load_profile("vmpool")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what boots machines last: what fails in a second is known in a second.

    Where workers share the run (`-n 2`), put it first instead, as it takes longest; each directory
    of such tests stays with one worker, whose server they share, and any other module does.
    """
    workers = config.pluginmanager.hasplugin("dsession") or hasattr(config, "workerinput")
    items.sort(key=lambda item: _boots(item) != workers)
    for item in items:
        together = item.path.parent if _boots(item) else item.path
        item.add_marker(pytest.mark.xdist_group(os.fspath(together.relative_to(config.rootpath))))


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
