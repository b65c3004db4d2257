"""Files: what a file operation does, in the child that runs as the asking account.

The child may block as long as it likes; the kernel decides what the account may touch. Bytes go
through descriptors 0 and 1, everything else through reports. Errno becomes a code here, once.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import shutil
import stat
import sys
import tarfile
from typing import TYPE_CHECKING, Any

from vmpool_agent import metadata, spawn, watch
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmpool_agent.system import Account

MAX_ENTRIES = 10_000
MAX_LISTING = 8 * 1024 * 1024
_BATCH = 100
_BATCH_SIZE = 64 * 1024
"""Characters of paths in one message, 12 bytes of JSON each at worst: below its limit."""
_ENTRY_COST = 128
_NAME_SHOWN = 1024
_CHUNK = 128 * 1024
_UNCHANGED = -1  # chown(2)
_LARGEST_ID = 2**32 - 1  # itself no id: chown(2) takes it for -1
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_CODES = {
    errno.ENOENT: "file_not_found",
    errno.ENOTDIR: "not_a_directory",
    errno.EISDIR: "is_a_directory",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EEXIST: "file_exists",
    errno.ENOSPC: "disk_full",
    errno.EDQUOT: "disk_full",
    errno.EFBIG: "disk_full",
    errno.ENAMETOOLONG: "name_too_long",
    errno.ENOTEMPTY: "not_empty",
    errno.ELOOP: "too_many_links",
    errno.EROFS: "read_only",
    errno.EBUSY: "busy",
    errno.ETXTBSY: "busy",
}


def perform(name: str, account: Account, request: dict[str, Any]) -> int:
    """Do the operation `name` and report `done` or an error; from the child.

    Returns:
        The exit code.
    """
    path = spawn.resolve(_text(request, "path"), account)
    try:
        members = _VERBS[name](path, account, request)
    except OSError as err:
        code = _CODES.get(err.errno or 0, "io_error")
        where = err.filename if isinstance(err.filename, str) else path
        raise OperationError(code, f"{where[:_NAME_SHOWN]!r}: {err.strerror or err}") from err
    spawn.tell({"type": "done", **members})
    return 0


def describe(path: str) -> dict[str, Any]:
    """Return the `info` of an entry, links not followed."""
    entry = os.lstat(path)
    info = {
        "path": path,
        "kind": _kind(entry.st_mode),
        "size_bytes": entry.st_size,
        "mode": stat.S_IMODE(entry.st_mode),
        "owner": _owner(entry.st_uid),
        "group": _group(entry.st_gid),
        "modified_ns": entry.st_mtime_ns,
        "target": None,
    }
    if stat.S_ISLNK(entry.st_mode):
        info["target"] = os.readlink(path)  # noqa: PTH115 the text as written, not a path
        info["resolved"] = _resolved(path)
    elif kept := metadata.read(path):
        info["metadata"] = kept
    return info


def _resolved(path: str) -> dict[str, Any] | None:
    """Return what a link leads to in the end; nothing when the account cannot see it."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    at = os.path.realpath(path)
    if len(at) > watch.MAX_PATH:
        return None
    return {"path": at, "kind": _kind(found.st_mode), "mode": stat.S_IMODE(found.st_mode)}


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "other")


def _read(path: str, _account: Account, request: dict[str, Any]) -> dict[str, Any]:
    offset = _number(request, "offset") or 0
    left = _number(request, "length")
    # Non-blocking, so that a pipe without a writer is refused and not waited for.
    with _opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
        os.lseek(fd, offset, os.SEEK_SET)
        while left is None or left > 0:
            data = os.read(fd, _CHUNK if left is None else min(left, _CHUNK))
            if not data:
                break
            if left is not None:
                left -= len(data)
            _write_all(1, data)
    return {}


def _write(path: str, account: Account, request: dict[str, Any]) -> dict[str, Any]:
    mode = _number(request, "mode")
    kept = metadata.wanted(request)
    _make_parents(path)
    created = not os.path.lexists(path)
    written = 0
    try:
        with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK) as fd:
            if kept is not None:
                _keep(path, fd, kept, created=created)
            # A file of another's that the group may write keeps its owner.
            with contextlib.suppress(PermissionError):
                os.fchown(fd, account.uid, account.gid)
            if mode is not None:
                os.fchmod(fd, stat.S_IMODE(mode))
            # To watchers this is a write, which an empty file that was just made has not had.
            if not created or os.fstat(fd).st_size:
                os.ftruncate(fd, 0)
            while True:
                data = os.read(0, _CHUNK)
                if not data:
                    break
                _write_all(fd, data)
                written += len(data)
    except OSError as err:
        if _CODES.get(err.errno or 0) != "disk_full":
            raise
        fate = f"{written} bytes of it were written and are left"
        if created:
            fate = f"{written} bytes were written and removed again"
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        why = f"{path[:_NAME_SHOWN]!r}: {err.strerror or err}; {fate}"
        raise OperationError("disk_full", why) from err
    return {"info": describe(path)}


def _keep(path: str, fd: int, words: dict[str, str], *, created: bool) -> None:
    """Keep metadata with a file that has its old content still; one just made goes if it fails."""
    try:
        metadata.replace(fd, words)
    except (OSError, OperationError):
        if created:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        raise


def _stat(path: str, _account: Account, _request: dict[str, Any]) -> dict[str, Any]:
    return {"info": describe(path)}


def _list(path: str, _account: Account, request: dict[str, Any]) -> dict[str, Any]:
    batch: list[dict[str, Any]] = []
    total = size = 0
    for count, entry in enumerate(_walk(path, _number(request, "depth") or 1)):
        cost = _cost(entry)
        total += cost
        size += cost
        if count >= MAX_ENTRIES or total > MAX_LISTING:
            what = f"{path[:_NAME_SHOWN]!r} has over {MAX_ENTRIES} entries, or paths too long"
            raise OperationError("too_many_entries", what)
        batch.append(entry)
        if len(batch) == _BATCH or size > _BATCH_SIZE:
            spawn.tell({"type": "entries", "entries": batch})
            batch = []
            size = 0
    if batch:
        spawn.tell({"type": "entries", "entries": batch})
    return {}


def _cost(entry: dict[str, Any]) -> int:
    """Return about how many characters an entry has."""
    cost = _ENTRY_COST + len(entry["path"]) + len(entry["target"] or "")
    if resolved := entry.get("resolved"):
        cost += _ENTRY_COST + len(resolved["path"])
    return cost + sum(len(key) + len(one) for key, one in entry.get("metadata", {}).items())


def _remove(path: str, _account: Account, _request: dict[str, Any]) -> dict[str, Any]:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)  # noqa: PTH108
    return {}


def _move(path: str, account: Account, request: dict[str, Any]) -> dict[str, Any]:
    destination = spawn.resolve(_text(request, "destination"), account)
    os.lstat(path)
    _make_parents(destination)
    try:
        os.rename(path, destination)  # noqa: PTH104
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        if os.path.isdir(destination):  # noqa: PTH112
            raise IsADirectoryError(errno.EISDIR, "is a directory", destination) from err
        shutil.move(path, destination)
    return {"info": describe(destination)}


def _make_directory(path: str, _account: Account, _request: dict[str, Any]) -> dict[str, Any]:
    os.makedirs(path, mode=0o755)  # noqa: PTH103
    return {"info": describe(path)}


def _link(path: str, _account: Account, request: dict[str, Any]) -> dict[str, Any]:
    target = _text(request, "target")
    if not target or "\0" in target:
        raise OperationError("bad_request", "target is a path, as it is to stand in the link")
    _make_parents(path)
    os.symlink(target, path)  # noqa: PTH211
    return {"info": describe(path)}


def _change(path: str, _account: Account, request: dict[str, Any]) -> dict[str, Any]:
    mode = _number(request, "mode")
    uid = _id_of(request, "owner", lambda name: pwd.getpwnam(name).pw_uid, "unknown_user")
    gid = _id_of(request, "group", lambda name: grp.getgrnam(name).gr_gid, "unknown_group")
    path = os.path.realpath(path)
    # In this order: a new owner costs a program its set-user-ID bit.
    if (uid, gid) != (_UNCHANGED, _UNCHANGED):
        os.chown(path, uid, gid)
    if mode is not None:
        os.chmod(path, stat.S_IMODE(mode))  # noqa: PTH101
    return {"info": describe(path)}


def _archive(path: str, _account: Account, _request: dict[str, Any]) -> dict[str, Any]:
    waiting = ["."]
    os.scandir(path).close()
    with (
        open(1, "wb", closefd=False) as out,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        while waiting:
            name = waiting.pop()
            whole = os.path.join(path, name) if name != "." else path  # noqa: PTH118
            archive.add(whole, arcname=name, recursive=False)
            if stat.S_ISDIR(os.lstat(whole).st_mode):
                below = sorted(os.listdir(whole), reverse=True)  # noqa: PTH208
                waiting += [os.path.join(name, child) for child in below]  # noqa: PTH118
    return {}


_VERBS: dict[str, Callable[[str, Account, dict[str, Any]], dict[str, Any]]] = {
    "read": _read,
    "write": _write,
    "stat": _stat,
    "list": _list,
    "remove": _remove,
    "move": _move,
    "make_directory": _make_directory,
    "link": _link,
    "change": _change,
    "archive": _archive,
    "watch": watch.follow,
}
OPERATIONS = frozenset(_VERBS)


def _make_parents(path: str) -> None:
    parent = os.path.dirname(path)  # noqa: PTH120
    try:
        os.makedirs(parent, mode=0o755, exist_ok=True)  # noqa: PTH103
    except FileExistsError as err:
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", parent) from err


def _walk(path: str, depth: int) -> Iterator[dict[str, Any]]:
    for name in sorted(os.listdir(path)):  # noqa: PTH208
        child = os.path.join(path, name)  # noqa: PTH118
        try:
            entry = describe(child)
        except FileNotFoundError:
            continue  # removed since it was listed
        yield entry
        if depth > 1 and entry["kind"] == "directory":
            # A directory closed to the account is listed without its content.
            with contextlib.suppress(PermissionError, FileNotFoundError):
                yield from _walk(child, depth - 1)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    """Open a regular file.

    Raises:
        OperationError: It is something else.
    """
    fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, "is a directory", path)
        if not stat.S_ISREG(kind):
            raise OperationError("not_a_regular_file", f"{path!r} is no regular file")
        yield fd
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise OperationError("bad_request", f"{name} is a string")
    try:
        os.fsencode(value)
    except UnicodeEncodeError as err:
        raise OperationError("bad_request", f"{name} {value!r} is no file name") from err
    return value


def _number(request: dict[str, Any], name: str) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= sys.maxsize:
        raise OperationError("bad_request", f"{name} is a number from 0 on, or null")
    return value


def _id_of(request: dict[str, Any], name: str, look_up: Callable[[str], int], code: str) -> int:
    """Return the number of an account or group that a request names."""
    if request.get(name) is None:
        return _UNCHANGED
    value = _text(request, name)
    with contextlib.suppress(KeyError, ValueError):
        number = int(value) if value.isascii() and value.isdecimal() else look_up(value)
        if 0 <= number < _LARGEST_ID:
            return number
    raise OperationError(code, f"invalid {name}: {value[:_NAME_SHOWN]!r}")


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
