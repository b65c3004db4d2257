"""The loop behind the blocking client: it starts late, is interrupted and ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

import vmpool
from vmpool.client.portal import Portal
from vmpool.errors import InvalidRequestError


async def nothing() -> None:
    """Say no farewell."""


async def add(one: int, other: int) -> int:
    return one + other


def test_work_is_done_in_one_loop_until_it_is_closed() -> None:
    portal = Portal(nothing)
    before = threading.active_count()
    portal.close()  # it never ran
    portal = Portal(nothing)
    assert portal.call(add(1, 2)) == 3
    assert portal.call(add(3, 4)) == 7
    assert threading.active_count() == before + 1
    portal.close()
    portal.close()
    assert threading.active_count() == before
    with pytest.raises(InvalidRequestError, match="closed"):
        portal.call(add(1, 2))


def test_an_error_of_the_work_is_the_callers() -> None:
    async def fail() -> None:
        raise LookupError

    portal = Portal(nothing)
    with pytest.raises(LookupError):
        portal.call(fail())
    portal.close()


def test_an_interrupted_wait_cancels_the_work() -> None:
    cancelled = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    async def wait() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    portal = Portal(nothing)
    with pytest.raises(KeyboardInterrupt):
        portal.call(wait())
    assert cancelled.wait(20)
    assert portal.call(add(1, 2)) == 3
    portal.close()


def test_closing_ends_what_other_threads_wait_for() -> None:
    begun = threading.Event()
    told: list[BaseException] = []
    portal = Portal(nothing)

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            portal.call(wait())
        except BaseException as err:  # noqa: BLE001 -- whatever it is
            told.append(err)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(20)
    portal.close()
    thread.join(20)
    assert len(told) == 1


def test_work_that_comes_as_it_closes_is_told_of_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    portal = Portal(nothing)
    portal.call(add(1, 2))
    closing = threading.Thread(target=portal.close)
    submit = asyncio.run_coroutine_threadsafe

    def submit_late(work: Any, loop: asyncio.AbstractEventLoop) -> Any:
        closing.start()
        closing.join(0.2)  # it ends the loop, unless it waits for us
        return submit(work, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", submit_late)
    with contextlib.suppress(CancelledError):
        assert portal.call(add(3, 4)) == 7
    closing.join(20)
    assert not closing.is_alive()


def test_it_works_where_another_loop_runs() -> None:
    async def inside() -> int:
        portal = Portal(nothing)
        try:
            return portal.call(add(1, 2))  # blocks this loop, as a notebook's cell does
        finally:
            portal.close()

    assert asyncio.run(inside()) == 3


def test_after_a_fork_it_says_so() -> None:
    portal = Portal(nothing)
    portal.call(add(1, 2))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            portal.call(add(1, 2))
        except InvalidRequestError as err:
            portal.close()
            code = 0 if err.error_code == "client_forked" else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    portal.close()


def test_a_portal_that_is_forgotten_says_farewell_and_ends() -> None:
    said = threading.Event()

    async def farewell() -> None:
        said.set()

    before = threading.active_count()
    portal = Portal(farewell)
    portal.call(add(1, 2))
    del portal
    gc.collect()
    assert said.is_set()
    assert threading.active_count() == before


def test_a_client_that_is_forgotten_ends_with_the_interpreter() -> None:
    program = (
        "import vmpool\n"
        "c = vmpool.Client('127.0.0.1:1')\n"
        "try: c.health()\n"
        "except vmpool.VmpoolError as err: print(err.error_code)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], check=False, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, b"no_server\n")
    assert ended.stderr == b""


def test_importing_vmpool_imports_no_library() -> None:
    program = (
        "import sys, vmpool; assert not {'aiohttp', 'asyncio', 'msgspec'} & set(sys.modules)\n"
        "vmpool.Client; assert 'aiohttp' in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_public_name_is_there_and_no_other() -> None:
    for name in vmpool.__all__:
        assert getattr(vmpool, name).__name__ == name
    assert set(vmpool.__all__) <= set(dir(vmpool))
    with pytest.raises(AttributeError):
        vmpool.Nothing  # noqa: B018
