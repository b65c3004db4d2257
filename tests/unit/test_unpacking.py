"""What a hostile guest's archive may write here: nothing outside of the directory."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from vmpool.cli import unpacking
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def member(
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    link: str = "",
    content: bytes = b"",
    mode: int = 0o644,
) -> bytes:
    """Return a member as an agent of any intention writes it."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size, entry.mode = kind, link, len(content), mode
    entry.mtime = 1.5
    head = entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return head + content + bytes(-len(content) % tarfile.BLOCKSIZE)


END = bytes(2 * tarfile.BLOCKSIZE)


def unpack(target: Path, *members: bytes) -> list[str]:
    """Unpack an archive in pieces of an odd size; return the names that were left out."""
    whole = b"".join((*members, END))
    left_out: list[str] = []
    pieces = (whole[at : at + 333] for at in range(0, len(whole), 333))
    unpacking.unpack(pieces, target, lambda name, _: left_out.append(name))
    return left_out


def outside(target: Path) -> dict[str, bytes]:
    """Return the files beside the target; all that must stay as it is."""
    return {path.name: path.read_bytes() for path in target.parent.iterdir() if path.is_file()}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_files_directories_and_links_come_as_they_are(target: Path) -> None:
    long = "n" * 200
    assert not unpack(
        target,
        member(".", tarfile.DIRTYPE),
        member("d", tarfile.DIRTYPE),
        member(f"d/{long}", content=b"x" * 1000, mode=0o4777),
        member("d/\udcff", content=b"y"),
        member("d/up", tarfile.SYMTYPE, link="../same"),
        member("same", tarfile.LNKTYPE, link=f"d/{long}"),
    )
    found = (target / "d" / long).stat()
    assert (found.st_mode & 0o7777, found.st_mtime, found.st_nlink) == (0o755, 1.5, 2)
    assert (target / "d/up").read_bytes() == b"x" * 1000
    assert (target / "d" / os.fsdecode(b"\xff")).read_bytes() == b"y"


@pytest.mark.parametrize(
    "members",
    [
        [member("../mine", content=b"evil")],
        [member("d/../../mine", content=b"evil")],
        [member("/tmp/vmpool-evil", content=b"evil")],
        [member("l", tarfile.SYMTYPE, link="..")],
        [member("l", tarfile.SYMTYPE, link="/etc")],
        [member("l", tarfile.LNKTYPE, link="../mine")],
        [member("l", tarfile.LNKTYPE, link=".")],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("nowhere/file", content=b"x")],
        [member("n" * 300, content=b"x")],
    ],
)
def test_what_leads_out_is_left_out(target: Path, members: list[bytes]) -> None:
    before = outside(target)
    assert len(unpack(target, *members, member("after", content=b"after"))) == 1
    assert [path.name for path in target.iterdir()] == ["after"]
    assert outside(target) == before


def test_a_link_does_not_climb_behind_another_link(target: Path) -> None:
    # Every target lies within the directory if names alone are looked at.
    left_out = unpack(
        target,
        member("d", tarfile.DIRTYPE),
        member("d/e", tarfile.DIRTYPE),
        member("d/e/top", tarfile.SYMTYPE, link="../.."),
        member("out", tarfile.SYMTYPE, link="d/e/top/../mine"),
        member("hard", tarfile.LNKTYPE, link="d/e/top"),
        member("d/e/top/through", content=b"x"),
    )
    assert left_out == ["out", "hard", "d/e/top/through"]
    for path in target.rglob("*"):
        assert path.resolve().is_relative_to(target), path


def test_nothing_is_written_through_what_was_there(target: Path) -> None:
    (target / "dir").symlink_to("..")
    (target / "file").symlink_to("../mine")
    before = outside(target)
    assert unpack(target, member("dir/mine", content=b"evil"), member("file", content=b"new")) == [
        "dir/mine"
    ]
    assert outside(target) == before
    assert (target / "file").read_bytes() == b"new"


def test_a_file_with_two_names_is_not_written_through_one_of_them(target: Path) -> None:
    (target / "old").write_bytes(b"old")
    unpack(target, member("new", tarfile.LNKTYPE, link="old"), member("new", content=b"new"))
    assert ((target / "old").read_bytes(), (target / "new").read_bytes()) == (b"old", b"new")


def test_headers_are_bounded_before_they_are_kept(target: Path) -> None:
    entry = tarfile.TarInfo("big")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 33
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield entry.tobuf(tarfile.GNU_FORMAT)
        for piece in itertools.repeat(bytes(1 << 16), 1 << 6):
            taken += len(piece)
            yield piece

    with pytest.raises(InfrastructureError, match="a header of 8589934592 bytes"):
        unpacking.unpack(endless(), target, lambda *_: None)
    assert taken <= 1 << 16


def extended(records: bytes) -> bytes:
    """Return an extended header with these records."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, len(records)
    return entry.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"nonsense",
        b"x" * 512,
        member("cut", content=b"x" * 700)[:1024],
        extended(b"0 path=x\n") + member("a"),
        extended(b"9999 path=x\n") + member("a"),
        extended(b"10 sizes-1\n") + member("a"),
        extended(b"10 size=-1\n") + member("a"),
        extended(b"10 size=xx\n") + member("a"),
        extended(b"10 size=99") + member("a"),
    ],
)
def test_a_broken_archive_is_said(target: Path, archive: bytes) -> None:
    with pytest.raises(InfrastructureError) as caught:
        unpacking.unpack(io.BytesIO(archive), target, lambda *_: None)
    assert caught.value.error_code == "not_vmpool"


def test_times_that_are_none_are_the_beginning(target: Path) -> None:
    plain = tarfile.TarInfo("a")
    plain.mtime = 7
    for word in (b"nan", b"inf", b"-1."):
        said = extended(b"13 mtime=%b\n" % word)
        assert not unpack(target, said, plain.tobuf(tarfile.USTAR_FORMAT))
        assert (target / "a").stat().st_mtime == 0
