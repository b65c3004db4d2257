"""Envelope: what a parcel says of itself, before its files.

It decides which words of a stranger are believed: none that becomes a path, and sizes only as a
limit that the files are held to.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta

from vmpool import snapshot
from vmpool.errors import InvalidRequestError, SnapshotError
from vmpool.snapshot import MEMORY, Manifest

FORMAT = 2
"""Version of the envelope; a host refuses any other."""

ENVELOPE = "parcel.json"
ENVELOPE_LIMIT_BYTES = 1 << 20
PROOF = "signature.json"
PROOF_LIMIT_BYTES = 1024

KEY_BYTES = 32  # vmpool_agent/wire.py: KEY_SIZE

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CPU_MODEL = re.compile(r"[A-Za-z0-9._-]{1,64}(,[+-]?[a-z0-9._-]{1,64}(=[a-z0-9]{1,16})?){0,256}")

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]


class State(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a host knows of a checkpoint beside its files.

    Attributes:
        name: What it was called; `None` for nothing.
        sandbox_id: Whose state it is, on the host that made it.
        template: Name of that sandbox's template there.
        key: What the agent in it obeys, in hexadecimal: a secret.
        dirty_bytes: Memory that differed from the base.
        saved_ns: What the guest's clock said.
        env: Environment of everything that ran in the sandbox.
    """

    name: Annotated[str, Meta(max_length=64)] | None
    sandbox_id: Annotated[str, Meta(pattern=r"^[a-z0-9]{1,64}$")]
    template: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
    key: Annotated[str, Meta(pattern=rf"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]
    dirty_bytes: Count
    saved_ns: Count
    env: dict[str, str]


class Envelope(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a parcel holds.

    Attributes:
        checkpoint: Manifest of the checkpoint; its files are in the parcel.
        base: Manifest of the snapshot that it is the difference from. Its files are in the parcel
            when `with_base`.
    """

    checkpoint: Manifest
    base: Manifest
    with_base: bool
    state: State
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Of all files in the parcel, zeros included."""
        manifests = [self.checkpoint, *([self.base] if self.with_base else [])]
        return sum(file.size_bytes for each in manifests for file in each.files.values())


class _Header(msgspec.Struct):
    """The one field that every version of the envelope has."""

    format: int


# Made here, as msgspec crashes when two threads are the first to decode a type.
_HEADERS = msgspec.json.Decoder(_Header)
_ENVELOPES = msgspec.json.Decoder(Envelope, dec_hook=lambda kind, value: kind(value))


def encode(envelope: Envelope) -> bytes:
    """Return an envelope as it stands in a parcel."""
    return msgspec.json.encode(envelope, enc_hook=str, order="deterministic")


def decode(data: bytes) -> Envelope:
    """Return what a parcel says of itself, if it is possible.

    Raises:
        InvalidRequestError: `parcel_damaged`; it is not an envelope, or contradicts itself.
        SnapshotError: `parcel_unfit`; another vmpool wrote it.
    """
    try:
        version = _HEADERS.decode(data).format
        if version != FORMAT:
            raise unfit(f"has format {version}, this vmpool reads {FORMAT}")
        envelope = _ENVELOPES.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as err:
        damaged(f"{ENVELOPE!r}: {err}")
    for manifest in (envelope.checkpoint, envelope.base):
        if manifest.format != snapshot.FORMAT:
            theirs = f"has snapshots of format {manifest.format}"
            raise unfit(f"{theirs}, this vmpool reads {snapshot.FORMAT}")
    _check(envelope)
    return envelope


def _check(envelope: Envelope) -> None:
    """Refuse what no vmpool writes."""
    checkpoint, base = envelope.checkpoint, envelope.base
    spec = base.spec
    possible = {
        "its base is no base": base.base is None,
        "its base is another": checkpoint.base == _as_base(base),
        "its machine is not its base's": replace(checkpoint.spec, root=spec.root) == spec,
        "its files are not those of a checkpoint": not snapshot.wrong_files(checkpoint),
        "its base's files are not those of a template": not snapshot.wrong_files(base),
        "its image has no digest": _DIGEST.fullmatch(base.image) is not None,
        "its processor model is none": _CPU_MODEL.fullmatch(spec.cpu_model) is not None,
        "its machine is none": spec.vcpus > 0 and spec.memory_bytes > 0 and spec.disk_bytes >= 0,
        "it has files of negative size": all(
            file.size_bytes >= 0
            for files in (checkpoint.files, base.files)
            for file in files.values()
        ),
    }
    wrong = [what for what, right in possible.items() if not right]
    if wrong:
        damaged(wrong[0])


def _as_base(base: Manifest) -> snapshot.Base | None:
    if MEMORY not in base.files:
        return None
    return snapshot.Base(id=base.id, memory=base.files[MEMORY].digest)


def damaged(what: str) -> NoReturn:
    """Refuse a parcel.

    Raises:
        InvalidRequestError: `parcel_damaged`.
    """
    raise InvalidRequestError(
        f"this is no exported checkpoint, or it is damaged: {what[:500]}",
        code="parcel_damaged",
        remedy="export it again",
    )


def unfit(what: str) -> SnapshotError:
    """Return the error for what another vmpool wrote."""
    return SnapshotError(
        f"the exported checkpoint {what}",
        code="parcel_unfit",
        remedy="export it with the vmpool that is to import it",
    )
