"""Copying: `vmpool cp`, files and whole directories between this host and a sandbox."""

from __future__ import annotations

import json
import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from vmpool.cli import local_files, report, table, unpacking
from vmpool.cli import remote as remotes
from vmpool.cli.connection import connects
from vmpool.client.form import FormFile, forms
from vmpool.client.problem import error_of
from vmpool.errors import GuestFileError, InvalidRequestError

if TYPE_CHECKING:
    import http.client
    from collections.abc import Iterator, Sequence

    from vmpool.cli.remote import Remote
    from vmpool.errors import VmpoolError


@click.command()
@connects
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target")
@click.option("-u", "--user", metavar="NAME", help="Account in the guest.")
def command(remote: Remote, *, sources: tuple[str, ...], target: str, user: str | None) -> None:
    """Copy files and directories into a sandbox, or out of one.

    What is in a sandbox is written SANDBOX:/PATH. Directories are copied with all in them, links
    as links. A target that is a directory, or ends with a slash, gets the sources put into it.

    \b
      vmpool cp data.csv src SANDBOX:/home/user/
      vmpool cp SANDBOX:/home/user/plots SANDBOX:/home/user/out.csv .
    """
    here = [source for source in sources if _place(source) is None]
    place = _place(target)
    if place is not None and len(here) == len(sources):
        Delivery(remote, place, user).copy([Path(source) for source in sources])
    elif place is None and not here:
        for source in sources:
            _fetch(remote, cast("Place", _place(source)), Path(target), user, many=len(sources) > 1)
    else:
        raise click.UsageError("either all sources or the target are in a sandbox: SANDBOX:/PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path in a sandbox."""

    sandbox: str
    path: str


def _place(word: str) -> Place | None:
    """Return the place that a word names, `None` for a file of this host."""
    sandbox, colon, path = word.partition(":")
    if not colon or not sandbox.isalnum() or not path.startswith("/"):
        return None
    return Place(sandbox=sandbox, path=path)


class Delivery:
    """Files of this host on their way into one sandbox."""

    def __init__(self, remote: Remote, place: Place, user: str | None) -> None:
        self._remote = remote
        self._place = place
        self._user = user

    def copy(self, sources: Sequence[Path]) -> None:
        """Write the sources with all in them; what the guest refuses is told, and the rest goes on.

        Raises:
            VmpoolError: The last of what was refused.
        """
        into = self._place.path.endswith("/") or len(sources) > 1 or self._is_directory()
        files: list[FormFile] = []
        refused: list[VmpoolError] = []
        for source in sources:
            path = posixpath.join(self._place.path, source.resolve().name if into else "")
            for entry, there in _tree(source, path.rstrip("/") or "/"):
                if entry.is_symlink():
                    self._post("link", {"path": there, "target": os.readlink(entry)})  # noqa: PTH115
                elif entry.is_dir():
                    self._make_directory(there)
                elif not entry.is_file():
                    report.say(f"left out: {entry} is no file")
                else:
                    mode = stat.S_IMODE(entry.stat().st_mode) & 0o777
                    files.append(FormFile(path=there, content=entry, mode=mode))
        for form in forms(files):
            refused += self._send(form.pieces(), form.content_type)
        for error in refused[:-1]:
            report.show(error, as_json=False)
        if refused:
            raise refused[-1]

    def _send(self, pieces: Iterator[bytes], content_type: str) -> list[VmpoolError]:
        headers = {"Content-Type": content_type}
        path = remotes.path("sandboxes", self._place.sandbox, "files", user=self._user)
        with self._remote.open("POST", path, body=pieces, headers=headers) as answer:
            told = json.loads(remotes.read(answer))
        return [error_of(one["error"]) for one in told["files"] if "error" in one]

    def _is_directory(self) -> bool:
        try:
            return bool(_look(self._remote, self._place, self._user)["kind"] == "directory")
        except GuestFileError as err:
            if err.error_code == "file_not_found":
                return False
            raise

    def _make_directory(self, path: str) -> None:
        try:
            self._post("directory", {"path": path})
        except GuestFileError as err:
            if err.error_code != "file_exists":
                raise

    def _post(self, what: str, body: dict[str, Any]) -> None:
        user = {} if self._user is None else {"user": self._user}
        path = remotes.path("sandboxes", self._place.sandbox, "files", what)
        self._remote.call("POST", path, body | user)


def _tree(source: Path, path: str) -> Iterator[tuple[Path, str]]:
    """Yield a file, or a directory and all in it, parents first, each with where it goes."""
    if not source.is_symlink() and not source.exists():
        raise InvalidRequestError(f"there is no {str(source)!r}", code="file_unreadable")
    yield source, path
    if source.is_dir() and not source.is_symlink():
        try:
            below = sorted(source.iterdir())
        except OSError as err:
            raise InvalidRequestError(
                f"cannot read {str(source)!r}: {err.strerror or err}", code="file_unreadable"
            ) from err
        for child in below:
            yield from _tree(child, posixpath.join(path, child.name))


def _look(remote: Remote, place: Place, user: str | None) -> dict[str, Any]:
    path = remotes.path("sandboxes", place.sandbox, "files", "stat", path=place.path, user=user)
    return dict(remote.call("GET", path))


def _fetch(remote: Remote, place: Place, target: Path, user: str | None, *, many: bool) -> None:
    """Copy one file or directory out of a sandbox."""
    if many or target.is_dir():
        target /= posixpath.basename(posixpath.normpath(place.path)) or "root"
    kind = _look(remote, place, user)["kind"]
    what = ("files", "archive") if kind == "directory" else ("files",)
    path = remotes.path("sandboxes", place.sandbox, *what, path=place.path, user=user)
    with remote.open("GET", path) as answer:
        if kind == "directory":
            _unpack(answer, target)
            return
        with local_files.writing(target) as file:
            for chunk in remotes.chunks(answer):
                file.write(chunk)


def _unpack(answer: http.client.HTTPResponse, target: Path) -> None:
    """Write an archive of a guest below `target`; what would lead out of it is left out and said.

    Raises:
        InvalidRequestError: `file_unwritable`.
        InfrastructureError: `not_vmpool`; it is no archive, or not whole.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        unpacking.unpack(remotes.chunks(answer), target, _leave_out)
    except OSError as err:
        raise InvalidRequestError(
            f"cannot write {str(target)!r}: {err.strerror or err}", code="file_unwritable"
        ) from err


def _leave_out(name: str, reason: str) -> None:
    report.say(f"left out: {table.printable(name)}: {reason}")
