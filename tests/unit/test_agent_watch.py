"""What happens in a guest's directory is told, through the real agent and the real kernel."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.connected_agent import connected, run
from vmpool.agent.watches import ChangeKind, FileChange, Watch
from vmpool.errors import ConflictError, GuestError, GuestFileError
from vmpool.model import Command, Exited
from vmpool_agent import inotify, wire
from vmpool_agent.session import OperationError
from vmpool_agent.watch import Change, Tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def watched(guest: Path, directory: Path, *, recursive: bool = False) -> AsyncIterator[Watch]:
    async with (
        asyncio.timeout(30),
        connected(guest) as agent,
        agent.watch(str(directory), user="user", recursive=recursive) as watch,
    ):
        yield watch


def told(changes: list[FileChange]) -> list[str]:
    """Return changes as words, one for those that repeat the one before."""
    words = [
        f"{change.kind.value} {change.path}{'/' * change.directory}"
        + (f" -> {change.destination}" if change.destination is not None else "")
        for change in changes
    ]
    return [word for word, _ in itertools.groupby(words)]


async def test_each_kind_of_change_is_told_by_its_name(guest: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    async with watched(guest, tmp_path) as watch:
        file.write_bytes(b"")
        assert told(await watch.flush()) == ["created file"]
        file.write_bytes(b"content")
        assert told(await watch.flush()) == ["modified file"]
        file.chmod(0o600)
        assert told(await watch.flush()) == ["attributes file"]
        file.rename(tmp_path / "other")
        assert told(await watch.flush()) == ["moved file -> other"]
        (tmp_path / "other").unlink()
        (tmp_path / "made").mkdir()
        (tmp_path / "made").rmdir()
        assert told(await watch.flush()) == ["removed other", "created made/", "removed made/"]
        assert await watch.flush() == []


async def test_changes_come_while_nobody_asks(guest: Path, tmp_path: Path) -> None:
    async with watched(guest, tmp_path) as watch:
        (tmp_path / "file").touch()
        first = await anext(watch)
    assert first == FileChange(kind=ChangeKind.CREATED, path="file")


async def test_the_agents_own_writing_is_told_as_three_changes(guest: Path, tmp_path: Path) -> None:
    async with connected(guest) as agent, agent.watch(str(tmp_path), user="user") as watch:

        async def content() -> AsyncIterator[bytes]:
            yield b"content"

        await agent.write_file(str(tmp_path / "file"), content(), user="user")
        assert told(await watch.flush()) == ["created file", "attributes file", "modified file"]


async def test_below_a_directory_only_a_recursive_watch_looks(guest: Path, tmp_path: Path) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    async with (
        connected(guest) as agent,
        agent.watch(str(tmp_path), user="user") as flat,
        agent.watch(str(tmp_path), user="user", recursive=True) as deep,
    ):
        (below / "file").touch()
        assert told(await flat.flush()) == []
        assert told(await deep.flush()) == ["created a/b/file"]


async def test_no_file_of_a_new_directory_is_lost_and_none_is_told_twice(
    guest: Path, tmp_path: Path
) -> None:
    async with watched(guest, tmp_path, recursive=True) as watch:
        wanted = set()
        for number in range(150):
            directory = tmp_path / f"d{number}" / "deep" / "deeper"
            directory.mkdir(parents=True)
            (directory / "file").write_bytes(b"x")
            path = f"d{number}"
            for part in ("deep", "deeper", "file"):
                wanted.add(path)
                path = f"{path}/{part}"
            wanted.add(path)
        changes = await watch.flush()
    created = [change.path for change in changes if change.kind is ChangeKind.CREATED]
    assert sorted(created) == sorted(wanted)
    written = {change.path for change in changes if change.kind is ChangeKind.MODIFIED}
    assert written == {path for path in wanted if path.endswith("file")}


async def test_a_directory_is_followed_where_it_is_moved(guest: Path, tmp_path: Path) -> None:
    outside, top = tmp_path / "outside", tmp_path / "top"
    (outside / "came" / "deep").mkdir(parents=True)
    (top / "old" / "deep").mkdir(parents=True)
    async with watched(guest, top, recursive=True) as watch:
        (top / "old").rename(top / "new")
        assert told(await watch.flush()) == ["moved old/ -> new"]
        (top / "new" / "deep" / "file").write_bytes(b"")
        assert told(await watch.flush()) == ["created new/deep/file"]
        (top / "new").rename(outside / "gone")
        assert told(await watch.flush()) == ["moved new/"]
        (outside / "gone" / "deep" / "unseen").touch()
        (outside / "came").rename(top / "came")
        assert told(await watch.flush()) == ["created came/", "created came/deep/"]
        (top / "came" / "deep" / "seen").write_bytes(b"")
        assert told(await watch.flush()) == ["created came/deep/seen"]


async def test_a_name_that_is_not_utf8_is_told_as_it_can_be_asked_for(
    guest: Path, tmp_path: Path
) -> None:
    name = os.fsdecode(b"odd-\xff\n")
    async with watched(guest, tmp_path) as watch:
        (tmp_path / name).write_bytes(b"")
        assert [change.path for change in await watch.flush()] == [name]


@pytest.mark.parametrize("end", ["removed", "moved"])
async def test_a_directory_that_disappears_ends_its_watch(
    guest: Path, tmp_path: Path, end: str
) -> None:
    directory = tmp_path / "top"
    (directory / "below").mkdir(parents=True)
    async with watched(guest, directory, recursive=True) as watch:
        if end == "moved":
            directory.rename(tmp_path / "elsewhere")
        else:
            (directory / "below").rmdir()
            directory.rmdir()
        changes = [change async for change in watch]
        with pytest.raises(ConflictError) as raised:
            await watch.flush()
    assert raised.value.error_code == "watch_ended"
    assert changes[-1] == FileChange(kind=ChangeKind.GONE, path="")
    assert told(changes[:-1]) == ([] if end == "moved" else ["removed below/"])


@pytest.mark.parametrize(
    ("path", "code"),
    [("nowhere", "file_not_found"), ("/etc/passwd", "not_a_directory")],
)
async def test_what_cannot_be_watched_is_refused(guest: Path, path: str, code: str) -> None:
    async with connected(guest) as agent:
        with pytest.raises(GuestFileError) as raised:
            async with agent.watch(path, user="user"):
                pass
    assert raised.value.error_code == code


async def test_who_does_not_read_is_told_that_changes_were_lost_and_then_of_new_ones(
    guest: Path, tmp_path: Path
) -> None:
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    names = [tmp_path / (letter * 240) for letter in "ab"]
    for name in names:
        name.touch()
    # The channel's window, two pipes, what was read and the kernel's queue have to be full.
    script = f"""
import os
for number in range({queue * 5 // 2}):
    os.utime("{names[0]}" if number % 2 else "{names[1]}")
os.mkdir("{tmp_path}/unseen")
"""
    async with (
        connected(guest) as agent,
        agent.watch(str(tmp_path), user="user", recursive=True) as watch,
    ):
        events = await run(agent, Command(argv=("python3", "-c", script)))
        assert events[-1] == Exited(exit_code=0)
        kinds = [change.kind for change in await watch.flush()]
        assert kinds[-1] is ChangeKind.OVERFLOW
        (tmp_path / "unseen" / "file").write_bytes(b"")
        assert told(await watch.flush()) == ["created unseen/file"]


class Scripted:
    """A channel on which a guest says what it wants, again and again."""

    def __init__(self, *messages: dict[str, object]) -> None:
        self._messages = itertools.cycle(messages)

    async def send_data(self, *_: object) -> bool:
        return True

    async def receive(self) -> wire.Message:
        return wire.Message(1, json.dumps(next(self._messages)).encode(), 0)


CHANGE = {"event": "modified", "path": "x" * 4000, "directory": False}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "changes", "changes": [CHANGE] * 200},
        {"type": "changes", "changes": [CHANGE | {"path": "x" * 4097}]},
        {"type": "changes", "changes": [CHANGE | {"event": "melted"}]},
        {"type": "changes"},
        {"type": "flushed", "count": 2},
        {"type": "flushed", "count": -1},
        {"type": "flushed"},
    ],
    ids=["endless", "long", "unknown", "none", "too many", "negative", "no count"],
)
async def test_a_guest_that_breaks_its_word_is_given_up(message: dict[str, object]) -> None:
    watch = Watch(Scripted(message))  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        with pytest.raises(GuestError) as raised:
            await watch.flush()
    assert raised.value.error_code == "guest_protocol"


async def test_a_client_that_leaves_takes_the_watch_with_it(guest: Path, tmp_path: Path) -> None:
    async with connected(guest) as agent:
        async with agent.watch(str(tmp_path), user="user"):
            await _come_to(guest, watchers=1)  # those of earlier tests end when they like
        await _come_to(guest, watchers=0)
        assert (await agent.stat(str(tmp_path), user="user")).path == str(tmp_path)


async def _come_to(guest: Path, *, watchers: int) -> None:
    async with asyncio.timeout(20):
        while len(_watchers(guest)) != watchers:  # noqa: ASYNC110 - they are the agent's grandchildren
            await asyncio.sleep(0.01)


def _watchers(guest: Path) -> list[str]:
    """Return the descriptors of a fake guest's processes that are queues of inotify."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            about = (link.parent.parent / "cmdline").read_bytes()
            if os.fsencode(guest) in about and str(link.readlink()) == "anon_inode:inotify":
                found.append(str(link))
        except OSError:
            continue
    return found


def test_what_was_written_in_a_directory_before_it_was_seen_is_told(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path), recursive=True)
    tree.begin()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "empty").touch()
    (tmp_path / "d" / "full").write_bytes(b"x")
    (tmp_path / "d" / "link").symlink_to("full")
    assert list(tree.changes()) == [
        Change("created", "d", True),
        Change("created", "d/empty"),
        Change("created", "d/full"),
        Change("modified", "d/full"),
        Change("created", "d/link"),
    ]
    tree.close()


def test_too_many_directories_are_refused_at_the_start_and_later(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    tree = Tree(str(tmp_path), recursive=True, most=3)
    with pytest.raises(OperationError) as raised:
        tree.begin()
    assert raised.value.code == "watch_limit"
    tree.close()
    tree = Tree(str(tmp_path), recursive=True, most=4)
    tree.begin()
    (tmp_path / "d").mkdir()
    changes = tree.changes()
    assert next(changes) == Change("created", "d", True)
    with pytest.raises(OperationError) as raised:
        next(changes)
    assert raised.value.code == "watch_limit"
    tree.close()


LIMITED = """
import sys
from vmpool_agent.session import OperationError
from vmpool_agent.watch import Tree
try:
    Tree(sys.argv[1], recursive=True).begin()
except OperationError as err:
    print(err.code)
"""


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_the_kernels_own_limits_have_the_same_code(tmp_path: Path, limit: str) -> None:
    command = f'echo 0 > /proc/sys/user/{limit} && exec "$@"'
    child = [sys.executable, "-c", LIMITED, str(tmp_path)]
    answer = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", command, "sh", *child],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "guest-agent")},
    )
    assert answer.stdout == "watch_limit\n"


def test_a_move_whose_halves_come_apart_is_one_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half may come after other events, or only with the next look."""
    (tmp_path / "from").mkdir()
    tree = Tree(str(tmp_path), recursive=True)
    tree.begin()
    (tmp_path / "from").rename(tmp_path / "to")
    assert tree._kernel is not None
    first, second, _ = tree._kernel.read()
    between = inotify.Event(first.watch, inotify.DELETE, 0, "gone")
    batches = [[first], [between, second]]
    monkeypatch.setattr(inotify.Inotify, "read", lambda _: batches.pop(0))
    changes = list(tree.changes())
    assert changes == [Change("moved", "from", True, "to"), Change("removed", "gone")]
    tree.close()


def test_a_directory_that_its_scan_found_before_the_kernel_told_is_told_once(
    tmp_path: Path,
) -> None:
    tree = Tree(str(tmp_path), recursive=True)
    tree.begin()
    (tmp_path / "new").mkdir()
    changes = tree.changes()
    assert next(changes).path == "new"
    # Watched from the next step on; what comes now is found by looking and told by the kernel.
    descend = tree._descend

    def race(top: str) -> object:
        found = descend(top)
        tree._watch(top)
        del tree._paths[max(tree._paths)]
        (tmp_path / "new" / "file").touch()
        return found

    tree._descend = race  # type: ignore[assignment,method-assign]
    assert [change.path for change in changes] == ["new/file"]
    assert list(tree.changes()) == []
    tree.close()
