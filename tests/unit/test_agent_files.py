"""Files in the guest, through the real agent."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import fake_guest
from tests.connected_agent import connected
from vmpool.agent import Agent
from vmpool.errors import GuestFileError, InvalidRequestError, TooLargeError
from vmpool.model import Command, FileKind, LinkEnd
from vmpool_agent import wire
from vmpool_agent.message import decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def content(agent: Agent, path: str, **part: int) -> bytes:
    async with aclosing(agent.read_file(path, user="user", **part)) as stream:
        return b"".join([piece async for piece in stream])


async def test_megabytes_go_in_and_come_out_again(guest: Path) -> None:
    data = os.urandom(20 << 20)
    async with connected(guest) as agent:
        info = await agent.write_file("big/one.bin", pieces(data), user="user")
        assert await content(agent, "big/one.bin") == data
        assert (
            await content(agent, "big/one.bin", offset=5 << 20, length=70_000)
            == (data[5 << 20 :][:70_000])
        )
        assert await content(agent, "big/one.bin", offset=len(data)) == b""
    assert info.size_bytes == len(data)
    assert info.path == str(guest.parent / "home" / "big" / "one.bin")
    assert (info.kind, info.mode) == (FileKind.FILE, 0o644)
    parent = guest.parent / "home" / "big"
    assert stat.S_IMODE(parent.stat().st_mode) == 0o755


async def test_writing_truncates_in_place_and_keeps_or_sets_the_mode(guest: Path) -> None:
    async with connected(guest) as agent:
        first = await agent.write_file("f", pieces(b"long content"), user="user", mode=0o600)
        inode = (guest.parent / "home" / "f").stat().st_ino
        second = await agent.write_file("~/f", pieces(b"short"), user="user")
        third = await agent.write_file("f", pieces(b""), user="user", mode=0o755)
    assert (first.mode, second.mode, third.mode) == (0o600, 0o600, 0o755)
    assert (second.size_bytes, third.size_bytes) == (5, 0)
    assert (guest.parent / "home" / "f").stat().st_ino == inode


async def test_a_reader_that_leaves_early_leaves_the_agent_well(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.write_file("long", pieces(bytes(8 << 20)), user="user")
        async with aclosing(agent.read_file("long", user="user")) as stream:
            await anext(stream)
        assert (await agent.stat("long", user="user")).size_bytes == 8 << 20


async def test_a_name_that_is_not_utf8_makes_the_round_trip(guest: Path) -> None:
    name = os.fsdecode(b"odd-\xff\n")
    async with connected(guest) as agent:
        await agent.write_file(f"names/{name}", pieces(b"x"), user="user")
        (entry,) = await agent.list_directory("names", user="user")
        assert entry.path.endswith(name)
        assert await content(agent, entry.path) == b"x"


async def test_a_listing_is_lexical_parents_first_to_the_depth_asked(guest: Path) -> None:
    async with connected(guest) as agent:
        for name in ("tree/b/c/d", "tree/a", "tree/b.txt"):
            await agent.write_file(name, pieces(b""), user="user")
        (guest.parent / "home" / "tree" / "link").symlink_to("nowhere")
        deep = await agent.list_directory("tree", user="user", depth=9)
        shallow = await agent.list_directory("tree", user="user")
    root = str(guest.parent / "home" / "tree") + "/"
    assert [entry.path.removeprefix(root) for entry in deep] == [
        "a", "b", "b/c", "b/c/d", "b.txt", "link",
    ]  # fmt: skip
    assert [entry.path.removeprefix(root) for entry in shallow] == ["a", "b", "b.txt", "link"]
    assert (shallow[-1].kind, shallow[-1].target) == (FileKind.SYMLINK, "nowhere")


async def test_of_a_link_it_is_told_what_it_leads_to(guest: Path) -> None:
    home = guest.parent / "home"
    (home / "directory").mkdir(mode=0o750)
    (home / "first").symlink_to("second")
    (home / "second").symlink_to(home / "directory")
    (home / "dangling").symlink_to("nowhere")
    async with connected(guest) as agent:
        first = await agent.stat("first", user="user")
        dangling = await agent.stat("dangling", user="user")
        plain = await agent.stat("directory", user="user")
    assert (first.kind, first.target) == (FileKind.SYMLINK, "second")
    end = LinkEnd(path=str(home.resolve() / "directory"), kind=FileKind.DIRECTORY, mode=0o750)
    assert first.resolved == end
    assert (dangling.kind, dangling.resolved, plain.resolved) == (FileKind.SYMLINK, None, None)


async def test_metadata_is_kept_with_a_file_until_it_is_replaced(guest: Path) -> None:
    file = guest.parent / "home" / "kept" / "f"
    words = {"author": 'A "B" C', "k" * 246: "", "purpose": "v" * 3000}
    async with connected(guest) as agent:
        made = await agent.write_file("kept/f", pieces(b"1"), user="user", metadata=words)
        left = await agent.write_file("kept/f", pieces(b"2"), user="user")
        assert made.metadata == left.metadata == words
        assert os.getxattr(file, "user.e2b.author") == b'A "B" C'
        os.setxattr(file, "user.other", b"of a program's own")
        fewer = await agent.write_file(
            "kept/f", pieces(b"3"), user="user", metadata={"author": "D"}
        )
        assert fewer.metadata == {"author": "D"}
        (listed,) = await agent.list_directory("kept", user="user")
        assert listed.metadata == {"author": "D"}
        none = await agent.write_file("kept/f", pieces(b"4"), user="user", metadata={})
        assert none.metadata == {}
    assert os.listxattr(file) == ["user.other"]


@pytest.mark.parametrize(
    "words",
    [{"": "no key"}, {"k" * 247: ""}, {"k": "v" * 4096}, {"k": "ö"}, {"k": "two\nlines"}],
)
async def test_metadata_that_does_not_fit_is_refused(guest: Path, words: dict[str, str]) -> None:
    async with connected(guest) as agent:
        with pytest.raises(InvalidRequestError) as raised:
            await agent.write_file("unfit", pieces(b"1"), user="user", metadata=words)
    assert raised.value.error_code == "bad_request"
    assert not (guest.parent / "home" / "unfit").exists()


async def test_a_file_whose_metadata_cannot_be_kept_stays_as_it_was(guest: Path) -> None:
    home = guest.parent / "home"
    words = {"new": "v" * 1000}

    async def refusal(agent: Agent, path: str) -> str:
        with pytest.raises(GuestFileError) as raised:
            await agent.write_file(path, pieces(b"new"), user="user", mode=0o640, metadata=words)
        return raised.value.error_code

    async with connected(guest) as agent:
        await agent.write_file("old", pieces(b"content"), user="user", metadata={"a": "1"})
        # The kernel holds a file's attributes to so many bytes, those of programs too.
        crowd = fill_attributes(home / "old")
        assert await refusal(agent, "old") in {"disk_full", "io_error"}
        assert await content(agent, "old") == b"content"
        left = await agent.stat("old", user="user")
        assert (left.metadata, left.mode) == ({"a": "1"}, 0o644)
        assert len(os.listxattr(home / "old")) == crowd + 1


def fill_attributes(file: Path) -> int:
    """Give a file as many attributes as go on it; return how many.

    Skips where the file system takes any number.
    """
    for number in range(1000):
        try:
            os.setxattr(file, f"user.{number}", bytes(500))
        except OSError:
            return number
    pytest.skip("this file system keeps any number of attributes")


async def test_an_agent_that_keeps_no_metadata_loses_none_in_silence(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path, "--lie", "metadata") as guest:
        async with connected(guest) as agent:
            with pytest.raises(GuestFileError, match="was written") as raised:
                await agent.write_file("f", pieces(b"1"), user="user", metadata={"a": "b"})
            assert raised.value.error_code == "metadata_unsupported"
            assert await content(agent, "f") == b"1"
            await agent.write_file("f", pieces(b"2"), user="user", metadata={})


async def test_attributes_that_a_guest_made_itself_are_told_only_if_they_fit(guest: Path) -> None:
    file = guest.parent / "home" / "own"
    file.touch()
    os.setxattr(file, "user.e2b.binary", b"\xff\x00")
    os.setxattr(file, "user.e2b.good", b"word")
    async with connected(guest) as agent:
        assert (await agent.stat("own", user="user")).metadata == {"good": "word"}


async def test_a_directory_beyond_the_limit_is_refused(guest: Path) -> None:
    crowd = guest.parent / "home" / "crowd"
    crowd.mkdir()
    for number in range(10_001):
        (crowd / str(number)).touch()
    async with connected(guest) as agent:
        with pytest.raises(TooLargeError) as raised:
            await agent.list_directory("crowd", user="user")
        assert raised.value.error_code == "too_many_entries"
        await agent.remove("crowd/0", user="user")
        assert len(await agent.list_directory("crowd", user="user")) == 10_000
        await agent.remove("crowd", user="user")
    assert not crowd.exists()


async def answers_to(agent: Agent, request: dict[str, object]) -> list[dict[str, Any]]:
    """Return what the guest itself says, past what the host makes of it."""
    said = []
    async with asyncio.timeout(60), agent._link.open() as channel:
        await channel.send_message(request)
        while message := await channel.receive():
            assert isinstance(message, wire.Message)
            said.append(decode(message.document))
    return said


async def test_a_guest_ends_a_listing_of_too_many_entries_itself(guest: Path) -> None:
    crowd = guest.parent / "home" / "many-entries"
    crowd.mkdir()
    for number in range(10_001):
        (crowd / str(number)).touch()
    async with connected(guest) as agent:
        said = await answers_to(
            agent, {"op": "list", "path": "many-entries", "user": "user", "depth": 1}
        )
    shutil.rmtree(crowd)
    assert (said[-1]["type"], said[-1].get("code")) == ("error", "too_many_entries")


async def test_a_guest_ends_a_listing_of_long_paths_itself(guest: Path) -> None:
    top = guest.parent / "home" / "lengthy"
    deep = top.joinpath(*["d" * 250] * 14)
    deep.mkdir(parents=True)
    for number in range(2_400):
        (deep / f"{number:0250}").touch()
    async with connected(guest) as agent:
        said = await answers_to(
            agent, {"op": "list", "path": str(deep), "user": "user", "depth": 1}
        )
    shutil.rmtree(top)
    assert (said[-1]["type"], said[-1].get("code")) == ("error", "too_many_entries")


async def test_moving_makes_parents_and_replaces(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.write_file("from", pieces(b"1"), user="user")
        info = await agent.move("from", "x/y/to", user="user")
        await agent.write_file("again", pieces(b"2"), user="user")
        await agent.move("again", "x/y/to", user="user")
        assert await content(agent, info.path) == b"2"


async def test_making_a_directory_makes_its_parents(guest: Path) -> None:
    async with connected(guest) as agent:
        info = await agent.make_directory("m/n/o", user="user")
    assert (info.kind, info.mode) == (FileKind.DIRECTORY, 0o755)


async def test_a_link_is_made_as_it_is_written_and_read_again(guest: Path) -> None:
    async with connected(guest) as agent:
        info = await agent.link("links/here", "../some where/else", user="user")
        assert (info.kind, info.target) == (FileKind.SYMLINK, "../some where/else")
        assert (await agent.stat("links/here", user="user")).target == "../some where/else"
        with pytest.raises(GuestFileError) as raised:
            await agent.link("links/here", "elsewhere", user="user")
        assert raised.value.error_code == "file_exists"
        for target in ("", "a\0b"):
            with pytest.raises(InvalidRequestError):
                await agent.link("links/other", target, user="user")


async def test_permission_bits_are_changed_behind_a_link(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.write_file("changed/file", pieces(b""), user="user")
        await agent.link("changed/link", "file", user="user")
        info = await agent.change("changed/link", user="user", mode=0o4751)
        assert (info.path[-12:], info.kind, info.mode) == ("changed/file", FileKind.FILE, 0o4751)
        assert (await agent.change("changed/file", user="user")).mode == 0o4751


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file away")
async def test_owners_are_changed_by_name_and_by_number(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.write_file("owned", pieces(b""), user="root", mode=0o755)
        info = await agent.change("owned", user="root", owner="daemon", group="4321")
        assert (info.owner, info.group, info.mode) == ("daemon", "4321", 0o755)
        info = await agent.change("owned", user="root", owner="0", mode=0o4755)
        assert (info.owner, info.group, info.mode) == ("root", "4321", 0o4755)
        for owner in ("nobody2", "-1", "4294967295", "\u0663", "1" * 5000, "a\0b"):
            with pytest.raises(InvalidRequestError) as raised:
                await agent.change("owned", user="root", owner=owner)
            assert raised.value.error_code == "unknown_user"
        with pytest.raises(InvalidRequestError) as raised:
            await agent.change("owned", user="root", group="nogroup2")
        assert raised.value.error_code == "unknown_group"


async def test_a_directory_comes_as_a_tar_archive_of_all_in_it(guest: Path) -> None:
    odd = os.fsdecode(b"odd-\xff")
    large = os.urandom(1 << 20)
    async with connected(guest) as agent:
        await agent.write_file("packed/a/large", pieces(large), user="user", mode=0o640)
        await agent.write_file(f"packed/{odd}", pieces(b"x"), user="user")
        await agent.link("packed/link", "/nowhere", user="user")
        await agent.make_directory("packed/empty", user="user")
        async with aclosing(agent.archive("packed", user="user")) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        with pytest.raises(GuestFileError) as raised:
            await anext(agent.archive("packed/a/large", user="user"))
        assert raised.value.error_code == "not_a_directory"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = [member.name for member in archive]
        assert names == [".", "./a", "./a/large", "./empty", "./link", f"./{odd}"]
        packed = archive.extractfile("./a/large")
        assert packed is not None
        assert packed.read() == large
        assert archive.getmember("./a/large").mode == 0o640
        assert archive.getmember("./link").linkname == "/nowhere"


REFUSALS: list[tuple[str, Callable[[Agent], Awaitable[object]]]] = [
    ("file_not_found", lambda a: a.stat("nowhere", user="user")),
    ("file_not_found", lambda a: content(a, "nowhere")),
    ("file_not_found", lambda a: a.remove("nowhere", user="user")),
    ("file_not_found", lambda a: a.move("nowhere", "there", user="user")),
    ("file_not_found", lambda a: a.list_directory("nowhere", user="user")),
    ("not_a_directory", lambda a: a.list_directory("/etc/passwd", user="user")),
    ("not_a_directory", lambda a: a.write_file("/etc/passwd/x", pieces(b""), user="user")),
    ("is_a_directory", lambda a: a.write_file("/", pieces(b""), user="user")),
    ("is_a_directory", lambda a: content(a, "/")),
    ("not_a_regular_file", lambda a: content(a, "/dev/zero")),
    ("file_exists", lambda a: a.make_directory("/etc", user="user")),
    ("name_too_long", lambda a: a.stat("n" * 300, user="user")),
]


@pytest.mark.parametrize(("code", "act"), REFUSALS)
async def test_a_refusal_says_why(
    guest: Path, code: str, act: Callable[[Agent], Awaitable[object]]
) -> None:
    async with connected(guest) as agent:
        with pytest.raises(GuestFileError) as raised:
            await act(agent)
    assert raised.value.error_code == code


async def test_a_pipe_without_a_writer_is_refused_and_not_waited_for(guest: Path) -> None:
    os.mkfifo(guest.parent / "home" / "pipe")
    async with connected(guest) as agent:
        for act in (content(agent, "pipe"), agent.write_file("pipe", pieces(b"x"), user="user")):
            with pytest.raises(GuestFileError):
                await act


@pytest.fixture
def small_disk(guest: Path) -> Iterator[Path]:
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    small = guest.parent / "home" / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], check=True)
    yield small
    subprocess.run(["umount", small], check=True)


async def test_a_full_disk_has_its_own_error_and_is_noticed_while_sending(
    guest: Path, small_disk: Path
) -> None:
    async with connected(guest) as agent:
        with pytest.raises(GuestFileError) as raised:
            await agent.write_file("small/f", pieces(bytes(30 << 20)), user="user")
    assert raised.value.error_code == "disk_full"
    assert not os.listdir(small_disk)  # noqa: PTH208 blocks for no time


async def test_bad_paths_and_users_are_the_callers_fault(guest: Path) -> None:
    async with connected(guest) as agent:
        for path, user in (("a\0b", "user"), ("\ud800", "user"), ("x", "nobody2")):
            with pytest.raises(InvalidRequestError):
                await agent.stat(path, user=user)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that `nobody` can reach, which pytest's own are not, with root's secret in it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        secret = directory / "secret"
        secret.write_text("root's")
        secret.chmod(0o600)
        home = directory / "home"
        home.mkdir()
        os.chown(home, 65534, 65534)
        yield directory
        assert secret.read_text() == "root's"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
async def test_what_the_account_may_not_touch_is_refused(open_directory: Path) -> None:
    directory = open_directory
    secret = directory / "secret"
    with fake_guest.running(directory, "--user", "nobody") as path:
        async with connected(path) as agent:
            info = await agent.write_file("d/mine", pieces(b"x"), user="user")
            assert info.owner == "nobody"
            for act in (
                content(agent, str(secret)),
                agent.write_file(str(secret), pieces(b""), user="user"),
                agent.remove(str(secret), user="user"),
                agent.move(str(secret), "here", user="user"),
                agent.change(str(secret), user="user", mode=0o777),
                agent.change("d/mine", user="user", owner="root"),
                agent.link(str(directory / "here"), "there", user="user"),
                anext(agent.archive("/root", user="user")),
                _watch(agent, "/root"),
            ):
                with pytest.raises(GuestFileError) as raised:
                    await act
                assert raised.value.error_code == "permission_denied"


async def _watch(agent: Agent, path: str) -> None:
    async with agent.watch(path, user="user", recursive=True):
        pass


async def test_a_slow_file_holds_up_nobody(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.write_file("slow", pieces(bytes(4 << 20)), user="user")
        async with aclosing(agent.read_file("slow", user="user")) as unread:
            await anext(unread)
            async with agent.execute(Command(argv=("true",))) as execution:
                assert len([event async for event in execution]) == 2
