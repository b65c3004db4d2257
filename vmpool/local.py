"""Local access: what a server leaves in its state directory for clients on its host.

Its address while it runs, and a token that only the server's own account can read. Neither is
needed by anyone else.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN_FILE = "local-token"  # noqa: S105 -- a file's name
SERVER_FILE = "local-server"

_LIMIT_BYTES = 4096


def token_path(state: Path) -> Path:
    """Return where the local token is kept."""
    return state / TOKEN_FILE


def read_token(state: Path) -> str:
    """Return the local token, empty when there is none.

    Raises:
        PermissionError: There is one, of another account.
    """
    return _read(token_path(state))


def read_server(state: Path) -> str:
    """Return the address that a server left, empty when there is none to be read."""
    try:
        return _read(state / SERVER_FILE)
    except PermissionError:
        return ""


def write_token(state: Path, token: str) -> None:
    """Keep the local token, readable by this account alone."""
    _write(token_path(state), token)


@contextlib.contextmanager
def announced(state: Path, url: str) -> Iterator[None]:
    """Leave a server's address for as long as the block runs."""
    _write(state / SERVER_FILE, url)
    try:
        yield
    finally:
        if read_server(state) == url:
            (state / SERVER_FILE).unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LIMIT_BYTES).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.new-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{text}\n")
    beside.replace(path)
