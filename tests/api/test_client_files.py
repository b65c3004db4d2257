"""Files through both Python clients: several at once, links, modes, archives and watches."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import vmpool
from tests.blocking_twin import Twin
from vmpool.client import form
from vmpool.errors import GuestFileError, InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server

MIB = 1 << 20

Connect = Callable[..., Any]


@pytest.fixture(params=["asynchronous", "blocking"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Make a client of either kind."""
    if request.param == "asynchronous":
        return vmpool.AsyncClient
    return lambda *words, **options: Twin(vmpool.Client(*words, **options))


@pytest.fixture
async def held(connect: Connect, server: Server) -> AsyncIterator[Any]:
    """A sandbox of a client of either kind."""
    async with connect(server.url, token=server.token) as client, client.sandbox() as sandbox:
        yield sandbox


async def test_several_files_are_written_at_once_and_each_tells_how_it_went(
    held: Any, tmp_path: Path
) -> None:
    source, there = tmp_path / "source", tmp_path / "there"
    source.write_bytes(os.urandom(MIB))
    (there / "taken").mkdir(parents=True)
    outcomes = await held.files.write_many(
        {
            f"{there}/a": "täxt",
            f'{there}/odd "%22" ö': b"\x00\xff",
            f"{there}/taken": b"",
            f"{there}/large": source,
        },
        mode=0o600,
    )
    failed = outcomes.pop(f"{there}/taken")
    assert type(failed) is GuestFileError
    assert failed.error_code == "is_a_directory"
    assert {path: info.size_bytes for path, info in outcomes.items()} == {
        f"{there}/a": 5,
        f'{there}/odd "%22" ö': 2,
        f"{there}/large": MIB,
    }
    assert {info.mode for info in outcomes.values()} == {0o600}
    assert (there / "large").read_bytes() == source.read_bytes()
    with pytest.raises(InvalidRequestError) as raised:
        await held.files.write_many({f"{there}/never": tmp_path / "missing"})
    assert raised.value.error_code == "file_unreadable"
    assert await held.files.write_many({}) == {}


async def test_what_is_said_of_a_file_is_kept_with_it(held: Any, tmp_path: Path) -> None:
    words = {"author": 'A "B"', "purpose": ""}
    info = await held.files.write(f"{tmp_path}/file", b"x", metadata=words)
    assert info.metadata == words
    (tmp_path / "link").symlink_to("file")
    told = {one.path: one for one in await held.files.list(str(tmp_path))}
    assert told[f"{tmp_path}/file"].metadata == words
    assert told[f"{tmp_path}/link"].resolved == f"{tmp_path}/file"
    assert (await held.files.upload(io.BytesIO(b"y"), f"{tmp_path}/file")).metadata == {}
    long = {"k" * 247: "x"}, {"key": "v" * 4094}
    for odd in ({"two words": "x"}, {"key": "ö"}, {"key": "two\nlines"}, *long):
        with pytest.raises(InvalidRequestError) as raised:
            await held.files.write(f"{tmp_path}/file", b"z", metadata=odd)
        assert raised.value.error_code == "invalid_metadata"
    assert (tmp_path / "file").read_bytes() == b"y"


async def test_a_file_is_read_and_written_by_signed_urls(held: Any, tmp_path: Path) -> None:
    path = f"{tmp_path}/a file"
    writes = await held.files.sign(path, method="PUT", timeout=60, mode=0o640)
    reads = await held.files.sign(path, user="user")
    async with aiohttp.ClientSession() as session:
        async with session.put(writes, data=b"brought") as response:
            assert response.status == 200
        assert (tmp_path / "a file").stat().st_mode & 0o777 == 0o640
        async with session.get(reads) as response:
            assert await response.read() == b"brought"
        async with session.get(writes) as response:
            assert response.status == 401


async def test_more_files_than_a_request_takes_go_in_several(
    held: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "FILES", 3)
    monkeypatch.setattr("vmpool.api.uploads.FILES", 3)
    outcomes = await held.files.write_many({f"{tmp_path}/{n}": str(n) for n in range(7)})
    assert [info.path for info in outcomes.values()] == [f"{tmp_path}/{n}" for n in range(7)]


async def test_links_modes_and_owners(held: Any, tmp_path: Path) -> None:
    files = held.files
    await files.write(f"{tmp_path}/file", b"")
    made = await files.symlink(f"{tmp_path}/new/link", "../file")
    assert made.kind == "symlink"
    assert await files.readlink(f"{tmp_path}/new/link") == "../file"
    with pytest.raises(GuestFileError) as raised:
        await files.readlink(f"{tmp_path}/file")
    assert raised.value.error_code == "not_a_link"
    assert (await files.chmod(f"{tmp_path}/new/link", 0o751)).mode == 0o751
    info = await files.stat(f"{tmp_path}/file")
    same = await files.chown(f"{tmp_path}/file", owner=info.owner, group=info.group)
    assert (same.owner, same.group, same.mode) == (info.owner, info.group, 0o751)
    with pytest.raises(InvalidRequestError) as refused:
        await files.chown(f"{tmp_path}/file", group="nogroup2")
    assert refused.value.error_code == "unknown_group"


async def test_a_directory_comes_as_an_archive(held: Any, tmp_path: Path) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "file").write_bytes(bytes(MIB))
    data = bytearray()
    async with held.files.archive(f"{tmp_path}/top") as chunks:
        async for chunk in chunks:
            data += chunk
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == [".", "./file"]


async def test_changes_are_iterated_over_as_they_happen(held: Any, tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    async with held.files.watch(str(top), recursive=True) as changes:
        (top / "sub" / "file").touch()
        first = await anext(changes)
        (top / "sub" / "file").rename(top / "moved")
        second = await anext(changes)
        top.rename(tmp_path / "elsewhere")
        rest = [change.event async for change in changes]
    assert (first.event, first.path, first.directory) == ("created", "sub/file", False)
    assert (second.event, second.path, second.destination) == ("moved", "sub/file", "moved")
    assert rest == ["gone"]


async def test_a_watch_that_is_refused_or_broken_off_raises_why(held: Any, tmp_path: Path) -> None:
    with pytest.raises(GuestFileError) as raised:
        async with held.files.watch(f"{tmp_path}/nowhere"):
            pass
    assert raised.value.error_code == "file_not_found"
    async with held.files.watch(str(tmp_path)) as changes:
        await held.kill()
        with pytest.raises(NotFoundError) as ended:
            await anext(changes)
    assert ended.value.error_code == "sandbox_ended"
