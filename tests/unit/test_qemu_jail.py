"""Whoever has broken out of QEMU meets walls, and each of them is seen to fall when taken away."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import secrets
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import hostile
from tests.stand_ins import PYTHON, isolated
from vmpool.engine.qemu import process
from vmpool.engine.qemu.isolation import Isolation
from vmpool.engine.qemu.jail import calls, landlock
from vmpool.engine.qemu.jail.contents import Contents
from vmpool.engine.qemu.jail.limits import SMALL
from vmpool.engine.qemu.jail.root import Root
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make every wall")

ACCOUNT, NAMESPACES, ROOT, LANDLOCK = Wall.ACCOUNT, Wall.NAMESPACES, Wall.ROOT, Wall.LANDLOCK

STOPPED_BY = {
    # Each of the walls named is enough; without any of them it gets through.
    "read": {ROOT, LANDLOCK},
    "dial_path": {ROOT},
    "dial_name": {NAMESPACES, LANDLOCK},
    "dial_loopback": {NAMESPACES, LANDLOCK},
    "see_others": {ROOT, LANDLOCK},
    "see_kernel": {ROOT},
    "write": {ROOT, LANDLOCK},
    # An account of its own with no rights stops these by itself, and the others stop them, too.
    "read_key": {ACCOUNT},
    "end_other": {ACCOUNT},
    "trace": {ACCOUNT},
    "open_memory": {ACCOUNT},
    "mount": {ACCOUNT},
    "leave_root": {ACCOUNT},
    "become_root": {ACCOUNT},
    "load_module": {ACCOUNT},
    "load_kernel": {ACCOUNT},
    "fill_disk": {ACCOUNT},
    "raise_limits": {ACCOUNT},
    "fork_on": {ACCOUNT},
}

MOST = replace(SMALL, tasks=16, file_bytes=1 << 20)


@pytest.fixture
def targets() -> Iterator[dict[str, Any]]:
    """What any account of the host may reach: a file, sockets, a keyring; and a process of ours."""
    with contextlib.ExitStack() as made:
        directory = Path(made.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        directory.chmod(0o777)
        file = directory / "file"
        file.write_text("secret")
        by_path, by_name, by_port = (
            made.enter_context(socket.socket(family))
            for family in (socket.AF_UNIX, socket.AF_UNIX, socket.AF_INET)
        )
        name = f"vmpool-test-{secrets.token_hex(8)}"
        by_path.bind(os.fspath(directory / "socket"))
        (directory / "socket").chmod(0o777)
        by_name.bind("\0" + name)
        by_port.bind(("127.0.0.1", 0))
        for listener in (by_path, by_name, by_port):
            listener.listen(8)
        yield {
            "file": os.fspath(file),
            "socket": os.fspath(directory / "socket"),
            "name": name,
            "port": by_port.getsockname()[1],
            "pid": os.getpid(),
            "keyring": ctypes.CDLL(None).syscall(
                hostile.SYS_KEYCTL, hostile.GET_KEYRING, hostile.SESSION_KEYRING, 1
            ),
            "forks": 32,
            "handed": 9,
            "beyond": 1 << 20,
        }


async def attacked(walled: Isolation, targets: dict[str, Any]) -> dict[str, str]:
    """Run the hostile program; return why each attempt failed, nothing when it did not."""
    source = await asyncio.to_thread(Path(hostile.__file__).read_text)
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile() as handed:
        with walled.for_one(MOST) as jail:
            child = await process.spawn(
                (PYTHON, "-c", source, json.dumps(targets)),
                slots={9: handed.fileno()},
                log=log.fileno(),
                jail=jail,
            )
        async with asyncio.timeout(60):
            code = await child.wait()
        log.seek(0)
        said = log.read()
    assert code == 0, said
    found: dict[str, str] = json.loads(said.splitlines()[-1])
    return found


def test_every_attempt_is_judged() -> None:
    assert {attempt.__name__ for attempt in hostile.ATTEMPTS} == set(STOPPED_BY)


async def test_nothing_gets_through_all_walls(targets: dict[str, Any]) -> None:
    found = await attacked(isolated(), targets)
    assert [name for name, why in found.items() if not why] == []


_SOME = [
    set(some)
    for count in range(3)
    for some in itertools.combinations((NAMESPACES, ROOT, LANDLOCK), count)
]


@pytest.mark.parametrize("standing", _SOME, ids=lambda some: "+".join(sorted(some)) or "account")
async def test_each_wall_holds_what_it_is_there_for_and_nothing_else_does(
    standing: set[Wall], targets: dict[str, Any]
) -> None:
    if landlock.version() < 6:
        pytest.skip("an older Landlock stops fewer of these")
    walled = isolated().without(*(set(Wall) - {ACCOUNT, *standing}))
    found = await attacked(walled, targets)
    through = {name for name, why in found.items() if not why}
    assert through == {
        name for name, walls in STOPPED_BY.items() if not walls & {ACCOUNT, *standing}
    }


_SHARED = 1 << 20  # linux/mount.h: MS_SHARED


@pytest.mark.parametrize("missing", ["unshare", "mount"])
def test_nothing_is_mounted_where_the_host_would_see_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two calls that keep mounts from the host, one does nothing, and says that it did."""
    mounted = []

    def note(source: str | None, target: str, *_: object) -> None:
        if source is not None:
            mounted.append(target)

    unshare, mount = calls.unshare, calls.mount

    def unshare_and_pass_on(kinds: int) -> None:
        unshare(kinds)
        mount(None, "/", None, calls.RECURSIVE | _SHARED)  # as systemd has it on the host

    # Whatever the protection does, this test changes no mounts but those of a thread that ends.
    monkeypatch.setattr(calls, "mount", note)
    monkeypatch.setattr(calls, "change_root", lambda: None)
    without = (lambda _: None) if missing == "unshare" else unshare_and_pass_on
    monkeypatch.setattr(calls, "unshare", without)
    with pytest.raises(HostError) as caught:
        Root.of(Contents(code=()))
    assert caught.value.error_code == "isolation_failed"
    assert mounted == []


def test_a_proc_is_mounted_over_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted: list[object] = []
    monkeypatch.setattr(calls, "mount", lambda *arguments: mounted.append(arguments))
    with pytest.raises(HostError) as caught:
        Root.mount_proc()
    assert caught.value.error_code == "isolation_failed"
    assert mounted == []
