"""Certificates: an authority of a test's own, and what it issues for a domain's wildcard."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM."""

    chain: bytes
    key: bytes
    serial: int

    def write(self, directory: Path) -> tuple[Path, Path]:
        """Put both where a server finds them; return where."""
        places = directory / "fullchain.pem", directory / "privkey.pem"
        for place, content in zip(places, (self.chain, self.key), strict=True):
            replace(place, content)
        return places


class Authority:
    """Whom a test's clients believe."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("authority of a test")
        self._certificate = (
            _begun(self._name, self._name, self._key.public_key(), datetime.now(UTC) + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """What clients are given."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def client(self) -> ssl.SSLContext:
        """Return what a client speaks that believes nobody else."""
        return ssl.create_default_context(cadata=self.pem.decode())

    def issue(
        self, *names: str, ends: datetime | None = None, phrase: bytes | None = None
    ) -> Issued:
        """Issue a certificate for DNS names, with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        until = datetime.now(UTC) + DAY if ends is None else ends
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        made = (
            _begun(self._name, _name("server of a test"), key.public_key(), until)
            .add_extension(alternatives, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        secrecy = (
            serialization.NoEncryption()
            if phrase is None
            else serialization.BestAvailableEncryption(phrase)
        )
        return Issued(
            chain=made.public_bytes(serialization.Encoding.PEM),
            key=key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secrecy
            ),
            serial=made.serial_number,
        )


def replace(place: Path, content: bytes) -> None:
    """Put a file in another's place, as those who renew certificates do."""
    beside = place.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(place)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _begun(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.now(UTC), until) - DAY)
        .not_valid_after(until)
    )
