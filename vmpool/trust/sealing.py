"""Sealing: values that lie on disk for whoever has this host's key, and for nobody else.

AES-256-GCM under a key of the state directory's own; what is sealed is bound to what it belongs to,
so that it opens nowhere else. A copy of the journal without the key holds no secret. It decides
nothing about who is told them.
"""

from __future__ import annotations

import base64
import hmac
import os
import secrets
import stat
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmpool.errors import HostError
from vmpool.trust import keyfile

if TYPE_CHECKING:
    from pathlib import Path

_VERSION = b"\x01"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TOKENS = b"vmpool tokens"
_VALUES = msgspec.msgpack.Decoder(dict[str, str])
"""What the key of tokens is derived for; the key itself seals, and does nothing else."""


class Sealing:
    """The key of one state directory; `open` before use.

    Args:
        path: Its file, made when missing, readable for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cipher: AESGCM | None = None
        self._tokens = b""

    def open(self) -> None:
        """Read the key, or make one; whole or not at all. *Idempotent.*

        Raises:
            HostError: `seal_key_unusable`.
        """
        try:
            self._make()
            data = self._read()
        except OSError as err:
            raise self._unusable(err.strerror or str(err)) from err
        if len(data) != _KEY_BYTES:
            raise self._unusable(f"it does not have {_KEY_BYTES} bytes")
        self._cipher = AESGCM(data)
        self._tokens = hmac.digest(data, _TOKENS, "sha256")

    def seal(self, values: dict[str, str], *, of: str) -> bytes:
        """Return values as they may lie on disk; empty for none.

        Args:
            of: What they belong to, and open with.
        """
        return self.seal_bytes(msgspec.msgpack.encode(values), of=of) if values else b""

    def unseal(self, sealed: bytes, *, of: str) -> dict[str, str] | None:
        """Return what was sealed; `None` when it was with another key, or for something else."""
        if not sealed:
            return {}
        opened = self.unseal_bytes(sealed, of=of)
        return None if opened is None else _VALUES.decode(opened)

    def seal_bytes(self, data: bytes, *, of: str) -> bytes:
        """Return bytes as they may lie on disk, as `seal`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _VERSION + nonce + self._opened().encrypt(nonce, data, of.encode())

    def unseal_bytes(self, sealed: bytes, *, of: str) -> bytes | None:
        """Return what was sealed, as `unseal`."""
        nonce, data = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if sealed[:1] != _VERSION or len(nonce) != _NONCE_BYTES:
            return None
        try:
            return self._opened().decrypt(nonce, data, of.encode())
        except InvalidTag:
            return None

    def token(self, *, of: str) -> str:
        """Return a token that whoever has the key can tell again, and nobody else: 256 bits.

        Args:
            of: What it opens; the same gives the same.
        """
        assert self._tokens, "not open"
        digest = hmac.digest(self._tokens, of.encode(), "sha256")
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def _opened(self) -> AESGCM:
        assert self._cipher is not None, "not open"
        return self._cipher

    def _make(self) -> None:
        if not self._path.exists():
            keyfile.write(self._path, secrets.token_bytes(_KEY_BYTES))
        keyfile.sweep(self._path)

    def _read(self) -> bytes:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise self._unusable("others than its owner can use it", f"chmod 600 {self._path}")
            return file.read(_KEY_BYTES + 1)

    def _unusable(self, why: str, remedy: str = "") -> HostError:
        return HostError(
            f"the key that secrets are sealed with, {str(self._path)!r}, cannot be used: {why}",
            code="seal_key_unusable",
            remedy=remedy
            or "put it back from a copy; or remove it, and sandboxes lose their secrets",
        )
