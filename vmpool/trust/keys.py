"""Keys: who vouches for a document, with Ed25519; the library's owner.

A key in text is `ed25519:` and its 32 bytes in URL-safe base64, short enough to be read out. What
is signed says what for, so that no signature serves for a document of another kind.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmpool.errors import HostError, InvalidRequestError
from vmpool.trust import keyfile

if TYPE_CHECKING:
    from pathlib import Path

PROOF_LIMIT_BYTES = 1024
"""More than any signature takes as it is written down."""

_ALGORITHM = "ed25519:"
_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_FILE_LIMIT_BYTES = 4096


class Purpose(Enum):
    """What a signature is for; its value goes before what is signed."""

    SNAPSHOT = b"vmpool snapshot manifest\0"
    PARCEL = b"vmpool parcel envelope\0"
    IMAGE = b"vmpool image manifest\0"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Whom a signature is checked against."""

    data: bytes

    def __str__(self) -> str:
        return _ALGORITHM + base64.urlsafe_b64encode(self.data).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Return the key that a text is.

        Raises:
            InvalidRequestError: `key_invalid`.
        """
        algorithm, body = text[: len(_ALGORITHM)], text[len(_ALGORITHM) :]
        with contextlib.suppress(binascii.Error, UnicodeEncodeError):
            data = base64.b64decode(f"{body}=".encode("ascii"), altchars=b"-_", validate=True)
            # One text for each key: it names a file.
            if algorithm == _ALGORITHM and len(data) == _KEY_BYTES and str(cls(data)) == text:
                return cls(data)
        raise InvalidRequestError(
            f"{text[:80]!r} is no public key",
            code="key_invalid",
            remedy="give what this prints on the other host: vmpool key show",
        )


class Proof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A signature as it is written down.

    Attributes:
        key: Who signed, in text.
    """

    key: str
    signature: bytes

    @classmethod
    def decode(cls, data: bytes) -> Proof | None:
        """Return what was written down, `None` for anything else."""
        try:
            proof = _PROOFS.decode(data[:PROOF_LIMIT_BYTES])
            PublicKey.parse(proof.key)  # no other words of a stranger are shown to anybody
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidRequestError):
            return None
        return proof if len(proof.signature) == _SIGNATURE_BYTES else None

    def signs(self, purpose: Purpose, document: bytes) -> bool:
        """Tell whether the signature is that of its key for the document."""
        try:
            key = Ed25519PublicKey.from_public_bytes(PublicKey.parse(self.key).data)
            key.verify(self.signature, purpose.value + document)
        except (InvalidSignature, InvalidRequestError, ValueError):
            return False
        return True


_PROOFS = msgspec.json.Decoder(Proof)
"""Made here, as msgspec crashes when two threads are the first to decode a type."""


class HostKey:
    """The key that this host signs with."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def fresh(cls) -> HostKey:
        """Return a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> HostKey | None:
        """Return the key in a file, `None` when there is no such file.

        Raises:
            HostError: `host_key_unusable`; it is no key, or others can read it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise _unusable(path, err.strerror or str(err)) from err
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise _unusable(path, "others than its owner can use it", f"chmod 600 {path}")
            data = file.read(_FILE_LIMIT_BYTES)
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as err:
            raise _unusable(path, "it is no private key") from err
        if not isinstance(key, Ed25519PrivateKey):
            raise _unusable(path, "it is no Ed25519 key")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key into a file that only its owner can read, unless there is one already.

        It is there whole or not at all.

        Raises:
            HostError: `host_key_unusable`; it could not be written.
        """
        data = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            keyfile.write(path, data)
        except OSError as err:
            raise _unusable(path, err.strerror or str(err)) from err

    def sign(self, purpose: Purpose, document: bytes) -> bytes:
        """Return a proof for the document, as it is written down."""
        signature = self._key.sign(purpose.value + document)
        return msgspec.json.encode(Proof(key=str(self.public), signature=signature)) + b"\n"


def _unusable(path: Path, why: str, remedy: str = "") -> HostError:
    return HostError(
        f"the key of this host, {str(path)!r}, cannot be used: {why}",
        code="host_key_unusable",
        remedy=remedy or "put it back from a copy, or remove it to have another one made",
    )
