"""Keyring: the host's own key, and those of others that its operator trusts.

    <state>/host-key                 the private key, readable by its owner alone
    <state>/host-key.pending         the same before all that was here already is signed with it
    <state>/trusted-keys/<key>       a file for each key; in it, whose that is, in words

The list is read when it is asked for, so a key that is distrusted is so at once, also by a server
that runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import HostError, InvalidRequestError, NotFoundError, SnapshotError
from vmpool.trust import keyfile
from vmpool.trust.keys import HostKey, Proof, PublicKey

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.trust.keys import Purpose

KEY_FILE = "host-key"
TRUSTED = "trusted-keys"

_COMMENT_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key of another host that this one believes.

    Attributes:
        comment: Whose it is, in the operator's words.
    """

    key: PublicKey
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """Why a document is not believed.

    Attributes:
        remedy: What would have it be believed as it is; empty when nothing would.
    """

    why: str
    remedy: str = ""


class Keyring:
    """The keys of one state directory.

    Attributes:
        own: What this host signs with.
    """

    def __init__(self, state: Path, own: HostKey) -> None:
        self._trusted = state / TRUSTED
        self.own = own

    @classmethod
    def open(cls, state: Path) -> Keyring:
        """Return the keys of a state directory; a host without one gets its own, not yet settled.

        Raises:
            HostError: `host_key_unusable`; `keys_unreadable`.
        """
        own = _present(state)
        if own is None:
            HostKey.fresh().save(_pending(state))
            own = _present(state)  # another process may have been faster
        assert own is not None
        keyring = cls(state, own)
        if keyring.is_settled():
            keyring._sweep(state)
        return keyring

    def is_settled(self) -> bool:
        """Tell whether what was here before the key was made has been signed with it."""
        return (self._trusted.parent / KEY_FILE).exists()

    def settle(self) -> None:
        """Have the key be this host's for good. *Idempotent.*

        Raises:
            HostError: `keys_unreadable`.
        """
        state = self._trusted.parent
        try:
            if not self.is_settled():
                _pending(state).rename(state / KEY_FILE)
                keyfile.sync(state)
        except FileNotFoundError:
            return
        except OSError as err:
            raise _unreadable(state, err) from err

    def _sweep(self, state: Path) -> None:
        """Remove what a server that was killed while it made a key has left."""
        try:
            _pending(state).unlink(missing_ok=True)
            for path in (state / KEY_FILE, _pending(state)):
                keyfile.sweep(path)
        except OSError as err:
            raise _unreadable(state, err) from err

    def trusted(self) -> list[TrustedKey]:
        """Return the keys of others, sorted by what they are called; what is no key is passed over.

        Raises:
            HostError: `keys_unreadable`.
        """
        found = []
        try:
            for path in self._trusted.iterdir():
                try:
                    key = PublicKey.parse(path.name)
                except InvalidRequestError:
                    continue  # half-written, or somebody's backup
                with path.open("rb") as file:
                    comment = file.read(_COMMENT_BYTES).decode(errors="replace").strip()
                found.append(TrustedKey(key=key, comment=comment))
        except FileNotFoundError:
            return []
        except OSError as err:
            raise _unreadable(self._trusted, err) from err
        return sorted(found, key=lambda each: (each.comment, str(each.key)))

    def trust(self, key: PublicKey, comment: str) -> None:
        """Believe what another key signed, from now on. *Idempotent*; the last comment stays.

        Raises:
            HostError: `keys_unreadable`; the list cannot be written.
        """
        words = "".join(c if c.isprintable() else " " for c in comment)
        try:
            self._trusted.mkdir(mode=0o700, exist_ok=True)
            beside = self._trusted / f".{os.getpid()}"
            beside.write_bytes(words.encode()[:_COMMENT_BYTES])
            beside.replace(self._trusted / str(key))
            keyfile.sync(self._trusted)
        except OSError as err:
            raise _unreadable(self._trusted, err) from err

    def distrust(self, key: PublicKey) -> None:
        """Believe a key of another host no more.

        What it signed is refused from then on; machines that run from it run on, and templates of
        its images are refused when the next server starts.

        Raises:
            NotFoundError: `key_not_found`; it is not on the list.
            HostError: `keys_unreadable`.
        """
        try:
            (self._trusted / str(key)).unlink()
        except FileNotFoundError as err:
            raise NotFoundError(
                f"{str(key)!r} is not trusted here",
                code="key_not_found",
                remedy="see what is: vmpool key list",
            ) from err
        except OSError as err:
            raise _unreadable(self._trusted, err) from err

    def require(
        self, purpose: Purpose, document: bytes, proof: bytes, *, of: str, also: str | None = None
    ) -> None:
        """Refuse a document that nobody signed whom this host trusts.

        Args:
            proof: As it was written down, empty for none.
            of: What the document is, in words.
            also: A key to trust for this once, in text.

        Raises:
            SnapshotError: `snapshot_untrusted`.
            InvalidRequestError: `key_invalid`; `also` is none.
        """
        objection = self.objection(purpose, document, proof, also=also)
        if objection is not None:
            raise SnapshotError(
                f"{of} is not trusted: {objection.why}",
                code="snapshot_untrusted",
                remedy=objection.remedy or "have it sent again, or make it again on this host",
            )

    def objection(
        self, purpose: Purpose, document: bytes, proof: bytes, *, also: str | None = None
    ) -> Objection | None:
        """Return why a document is not believed, `None` when it is; arguments as for `require`.

        Raises:
            HostError: `keys_unreadable`.
            InvalidRequestError: `key_invalid`; `also` is none.
        """
        believed = {str(PublicKey.parse(also))} if also is not None else set()
        said = Proof.decode(proof)
        if said is None:
            return Objection(why="nobody has signed it")
        if said.key != str(self.own.public) and said.key not in believed | self._others():
            return Objection(
                why=f"it was signed with the key {said.key!r}, which this host does not trust",
                remedy=f"if you know whose key that is: vmpool key trust {said.key}",
            )
        if not said.signs(purpose, document):
            return Objection(why="its signature is of something else")
        return None

    def _others(self) -> set[str]:
        return {str(each.key) for each in self.trusted()}


def _present(state: Path) -> HostKey | None:
    return HostKey.load(state / KEY_FILE) or HostKey.load(_pending(state))


def _pending(state: Path) -> Path:
    return state / f"{KEY_FILE}.pending"


def _unreadable(directory: Path, err: OSError) -> HostError:
    return HostError(
        f"the trusted keys in {str(directory)!r} cannot be used: {err.strerror or err}",
        code="keys_unreadable",
        remedy="run as the account that owns the state directory",
    )
