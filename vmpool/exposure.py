"""Exposure: who may reach which ports of a sandbox, beside those who may use all of it. Pure.

A port is private unless it was made public. A token of its own opens one port, or all of a sandbox,
and nothing else; only its hash is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, replace

from vmpool.errors import CapacityError, NotFoundError

MOST_TOKENS = 64
MOST_PORTS = 64
"""How many ports of one sandbox may be set apart from its others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficToken:
    """A token that opens ports, without what would let anyone use it.

    Attributes:
        port: The one that it opens; `None` for all.
        digest: SHA-256, in hexadecimal digits.
    """

    id: str
    port: int | None
    digest: str
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """The ports of one sandbox.

    Attributes:
        public: Whether everybody may reach a port that `ports` does not name.
        ports: Whether everybody may reach a port.
        tokens: The oldest first.
        revoked: How many of the tokens that the server makes for it by itself were revoked; the
            next is another one.
    """

    public: bool = False
    ports: tuple[tuple[int, bool], ...] = ()
    tokens: tuple[TrafficToken, ...] = ()
    revoked: int = 0

    def is_public(self, port: int) -> bool:
        """Whether everybody may reach a port."""
        return dict(self.ports).get(port, self.public)

    def admits(self, token: str, port: int) -> bool:
        """Whether a token opens a port."""
        given = digest_of(token)
        fitting = [one for one in self.tokens if one.port in (None, port)]
        return any(hmac.compare_digest(one.digest, given) for one in fitting)

    def holds(self, digest: str) -> bool:
        """Whether a token with this digest opens anything."""
        return any(one.digest == digest for one in self.tokens)

    def publishing(self, port: int | None, *, public: bool) -> Exposure:
        """Return it with a port made public or private; `None` for all, single ones included.

        Raises:
            CapacityError: `ports_full`; too many ports are set apart.
        """
        if port is None:
            return replace(self, public=public, ports=())
        apart = {**dict(self.ports), port: public}
        if len(apart) > MOST_PORTS:
            raise CapacityError(
                f"{MOST_PORTS} ports are set apart from the others already",
                code="ports_full",
                remedy="set all of them at once",
            )
        return replace(self, ports=tuple(sorted(apart.items())))

    def adding(self, token: TrafficToken) -> Exposure:
        """Return it with a token more.

        Raises:
            CapacityError: `traffic_tokens_full`; there are as many as may be.
        """
        if len(self.tokens) >= MOST_TOKENS:
            raise CapacityError(
                f"the sandbox has {MOST_TOKENS} traffic tokens already",
                code="traffic_tokens_full",
                remedy="revoke one that nobody needs",
            )
        return replace(self, tokens=(*self.tokens, token))

    def without(self, token_id: str, *, standing: str) -> Exposure:
        """Return it with a token less.

        Args:
            standing: Digest of the one that the server makes by itself; it is not made again.

        Raises:
            NotFoundError: `traffic_token_not_found`.
        """
        kept = tuple(one for one in self.tokens if one.id != token_id)
        gone = [one.digest for one in self.tokens if one.id == token_id]
        if not gone:
            raise NotFoundError(
                f"there is no traffic token {token_id!r}", code="traffic_token_not_found"
            )
        return replace(self, tokens=kept, revoked=self.revoked + (standing in gone))

    @property
    def text(self) -> str:
        """What it is written down as."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Exposure:
        """Return what was written down."""
        members = json.loads(text)
        return cls(
            public=members["public"],
            ports=tuple((port, public) for port, public in members["ports"]),
            tokens=tuple(TrafficToken(**token) for token in members["tokens"]),
            revoked=members.get("revoked", 0),
        )


def digest_of(token: str) -> str:
    """Return what is kept of a token; it has 256 random bits, there is no dictionary of such."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
