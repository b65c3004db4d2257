"""Unpacking: a guest's tar archive, written below one directory of this host and nowhere else.

Names, links and sizes are a guest's, who may be hostile. So no step of a path is taken through a
link, whoever made it, and no link is made that could be followed out of the directory. `tarfile`
promises the same with its filters; what they keep depends on the release of Python, they look at
paths before they are used, and it buffers headers of any size.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HEADER_BYTES = 1 << 16
"""Of an extended header, which holds two paths of the guest's at most, and a few numbers."""

_MODES = 0o755
_LATEST = 1 << 33  # what a plain header's field of the time can hold
_LARGEST = 1 << 62
_IN_THE_WAY = frozenset(
    {errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
)
"""What comes of a path that leads through a link or a file, or of a directory that is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What stands in an archive before a file's content.

    Attributes:
        kind: As in `tarfile`: `REGTYPE`, `DIRTYPE`, ….
        link: Where a link leads.
        modified: Unix time in seconds.
    """

    name: str
    kind: bytes
    link: str
    mode: int
    size_bytes: int
    modified: float


def unpack(chunks: Iterator[bytes], target: Path, leave_out: Callable[[str, str], None]) -> None:
    """Write what an archive holds into a directory that is there.

    Args:
        leave_out: Told the name and the reason of what is not written.

    Raises:
        InfrastructureError: `not_vmpool`; it is no archive of an agent's, or not whole.
        OSError: It cannot be written here.
    """
    archive = _Archive(chunks)
    with _opened(target) as root:
        for member in archive.members():
            content = archive.content(member.size_bytes)
            try:
                _write(root, member, content)
            except _RefusedError as err:
                leave_out(member.name, str(err))
            for _ in content:  # of what was not written
                pass


class _RefusedError(Exception):
    """Why a member is left out."""


class _Archive:
    """A stream of members, each followed by its content."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def members(self) -> Iterator[Member]:
        """Yield the members up to the end; the content of each must be taken before the next."""
        said: dict[str, str] = {}
        while any(block := self._exactly(tarfile.BLOCKSIZE)):
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as err:
                raise _broken(str(err)) from err
            if header.type != tarfile.XHDTYPE:
                yield _member(header, said)
                said = {}
            elif 0 < header.size <= HEADER_BYTES:
                said = _records(b"".join(self.content(header.size)))
            else:
                raise _broken(f"a header of {header.size} bytes")

    def content(self, size_bytes: int) -> Iterator[bytes]:
        """Yield the next bytes, and pass over what fills their last block."""
        left = size_bytes
        while left:
            piece = self._some(left)
            left -= len(piece)
            yield piece
        self._exactly(-size_bytes % tarfile.BLOCKSIZE)

    def _exactly(self, size_bytes: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < size_bytes:
            pieces += self._some(size_bytes - len(pieces))
        return bytes(pieces)

    def _some(self, most: int) -> bytes:
        if not self._rest:
            self._rest = next(self._chunks, b"")
        if not self._rest:
            raise _broken("it has no end")
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece


def _member(header: tarfile.TarInfo, said: dict[str, str]) -> Member:
    """Return a member; what an extended header says of it holds more than the plain one."""
    try:
        size_bytes = int(said.get("size", header.size))
        modified = float(said.get("mtime", header.mtime))
    except ValueError as err:
        raise _broken(str(err)) from err
    if not 0 <= size_bytes < _LARGEST:
        raise _broken("an impossible size")
    return Member(
        name=said.get("path", header.name),
        kind=header.type,
        link=said.get("linkpath", header.linkname),
        mode=header.mode,
        size_bytes=size_bytes,
        modified=modified if 0 <= modified < _LATEST else 0.0,
    )


def _records(data: bytes) -> dict[str, str]:
    """Return what an extended header says: records of the form `27 path=file\\n`."""
    records = {}
    while data:
        word = data[:8].split(b" ", 1)[0]
        length = int(word) if word.isdigit() else 0
        record = data[len(word) + 1 : length]
        name, equals, value = record[:-1].partition(b"=")
        if length > len(data) or not equals or not record.endswith(b"\n"):
            raise _broken("an extended header of another form")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return records


def _write(root: int, member: Member, content: Iterator[bytes]) -> None:
    """Write a member.

    Raises:
        _RefusedError: It is left out.
    """
    steps = _steps(member.name)
    try:
        if steps:  # of the directory itself there is nothing to make
            with _parent(root, steps) as parent:
                _make(root, parent, steps, member, content)
    except OSError as err:
        if err.errno not in _IN_THE_WAY:
            raise
        raise _RefusedError(f"something else is in its way ({err.strerror})") from err


def _make(
    root: int, parent: int, steps: list[str], member: Member, content: Iterator[bytes]
) -> None:
    match member.kind:
        case tarfile.REGTYPE | tarfile.AREGTYPE:
            _write_file(parent, steps[-1], member, content)
        case tarfile.DIRTYPE:
            _make_directory(parent, steps[-1])
        case tarfile.SYMTYPE:
            _make_link(parent, steps, member.link)
        case tarfile.LNKTYPE:
            _make_hard_link(root, parent, steps, _steps(member.link))
        case _:
            raise _RefusedError("it is no file, directory or link")


def _steps(path: str) -> list[str]:
    """Return the names that a path is made of, none for the directory itself."""
    steps = [step for step in path.split("/") if step not in {"", "."}]
    if path.startswith("/") or ".." in steps or "\0" in path:
        raise _RefusedError("its path leads out of the directory")
    return steps


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _parent(root: int, steps: list[str]) -> Iterator[int]:
    """Yield the directory that the last step is in; fails where one of the others is a link."""
    fd = os.dup(root)
    try:
        for step in steps[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(step, flags, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _write_file(parent: int, name: str, member: Member, content: Iterator[bytes]) -> None:
    _clear(parent, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:  # noqa: PTH123
        for piece in content:
            file.write(piece)
        file.flush()
        os.fchmod(file.fileno(), member.mode & _MODES | 0o600)
        os.utime(file.fileno(), (member.modified, member.modified))


def _make_directory(parent: int, name: str) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise


def _make_link(parent: int, steps: list[str], link: str) -> None:
    if not _stays(link, depth=len(steps) - 1):
        raise _RefusedError("it is a link that leads out of the directory")
    _clear(parent, steps[-1])
    os.symlink(link, steps[-1], dir_fd=parent)


def _stays(link: str, *, depth: int) -> bool:
    """Whether a link, `depth` directories below the top, leads to something below the top.

    It may climb in the beginning only: behind a name that is a link, `..` is somewhere else.
    """
    steps = [step for step in link.split("/") if step not in {"", "."}]
    climbs = 0
    while climbs < len(steps) and steps[climbs] == "..":
        climbs += 1
    climbs_later = ".." in steps[climbs:]
    return not link.startswith("/") and "\0" not in link and climbs <= depth and not climbs_later


def _make_hard_link(root: int, parent: int, steps: list[str], source: list[str]) -> None:
    """Give a file that came before a second name."""
    with _parent(root, source) as directory:
        found = os.stat(source[-1] if source else ".", dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(found.st_mode):
            # Of a symbolic link least of all: from another directory it leads elsewhere.
            raise _RefusedError("it is a link to what is no file")
        if source != steps:
            _clear(parent, steps[-1])
            os.link(
                source[-1], steps[-1],
                src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False,
            )  # fmt: skip


def _clear(parent: int, name: str) -> None:
    """Remove a file or link that is in the way: what is written goes into no file that is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _broken(why: str) -> InfrastructureError:
    return InfrastructureError(f"the server's archive broke its form: {why}", code="not_vmpool")
