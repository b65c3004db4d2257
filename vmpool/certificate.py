"""Certificate: what the server shows to clients that speak TLS, as it lies in two files.

It reads the files, says what is wrong with them, and which names they are good for. When they are
read again is not known here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509

from vmpool.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

SIZE_LIMIT_BYTES = 1 << 20
"""Of each file: a chain has a few thousand."""

_REMEDY = "give a chain and its key in PEM, as `fullchain.pem` and `privkey.pem` of an ACME client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate with its key, as they were when they were read.

    Attributes:
        names: DNS names that it is good for, in lower case.
        context: Speaks TLS with it, HTTP/1.1 alone.
    """

    names: frozenset[str]
    begins: datetime
    ends: datetime
    context: ssl.SSLContext

    def lacks(self, domain: str) -> tuple[str, ...]:
        """Return which names below a domain it is not good for, that of all ports first.

        Args:
            domain: As `api.domain`, perhaps with a port; with none, no name is needed.
        """
        name = domain.partition(":")[0].lower()
        wanted = (f"*.{name}",) if name else ()
        return tuple(each for each in wanted if each not in self.names)

    def out_of_time(self, now: datetime | None = None) -> str:
        """Say why clients refuse it for the time it is; empty when they do not."""
        now = now or datetime.now(UTC)
        if now < self.begins:
            return f"is good only from {self.begins:%Y-%m-%d %H:%M} UTC on"
        if now >= self.ends:
            return f"ended on {self.ends:%Y-%m-%d %H:%M} UTC"
        return ""


def load(chain: Path, key: Path) -> Certificate:
    """Read a certificate and its key. Blocks.

    Args:
        chain: The certificate and those that vouch for it, in PEM, the own one first.
        key: Its private key, in PEM, without a pass phrase.

    Raises:
        HostError: `certificate_unusable`; with the file, and what is wrong with it.
    """
    written = _read(chain)
    _read(key)
    try:
        own = x509.load_pem_x509_certificates(written)[0]
    except ValueError as err:
        raise _unusable(chain, "holds no certificate in PEM") from err
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(chain, key, password=_no_password)
    except _PasswordNeededError as err:
        raise _unusable(key, "needs a pass phrase, which nobody is here to type") from err
    except (OSError, ValueError) as err:  # ssl.SSLError is an OSError
        if isinstance(err, ssl.SSLError) and err.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(key, f"is not the key of {str(chain)!r}") from err
        raise _unusable(key, "holds no private key in PEM that fits") from err
    return Certificate(
        names=_names(own),
        begins=own.not_valid_before_utc,
        ends=own.not_valid_after_utc,
        context=context,
    )


class _PasswordNeededError(Exception):
    """The key is encrypted."""


def _no_password() -> str:
    """Be asked for a pass phrase, without which OpenSSL asks the terminal."""
    raise _PasswordNeededError


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT_BYTES + 1)
    except OSError as err:
        raise _unusable(path, f"cannot be read: {err.strerror or err}") from err
    if len(data) > SIZE_LIMIT_BYTES:
        raise _unusable(path, f"has more than {SIZE_LIMIT_BYTES} bytes")
    return data


def _names(own: x509.Certificate) -> frozenset[str]:
    try:
        extension = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()  # clients look nowhere else
    names = extension.value.get_values_for_type(x509.DNSName)
    return frozenset(name.lower() for name in names)


def _unusable(path: Path, why: str) -> HostError:
    return HostError(f"{str(path)!r} {why}", code="certificate_unusable", remedy=_REMEDY)
