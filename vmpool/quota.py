"""Quota: how much one tenant may have of what all share, and whether it may have more.

Decides from values: what is allowed, what is used, what is asked for. It does not know who the
tenant is or what a sandbox is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vmpool.model import MachineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What is used, or asked for.

    Attributes:
        sandboxes: Machines, those of runs too, from the asking until they are gone.
        paused: Sandboxes that have none.
        checkpoints: States that are kept.
        vcpus: Of all machines together; `memory_bytes` likewise.
        disk_bytes: Files of checkpoints and of paused sandboxes.
    """

    sandboxes: int = 0
    paused: int = 0
    checkpoints: int = 0
    vcpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """Return all of them together."""
        all_of = list(usages)
        return cls(**{each.name: sum(getattr(of, each.name) for of in all_of) for each in _USAGE})

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            **{each.name: getattr(self, each.name) + getattr(other, each.name) for each in _USAGE}
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            **{each.name: getattr(self, each.name) - getattr(other, each.name) for each in _USAGE}
        )


_USAGE = fields(Usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may have; `None` for no limit. Attributes are as in `Usage`.

    Attributes:
        creates_per_minute: Sandboxes, runs and children that may be asked for, in the long run and
            at once.
    """

    sandboxes: int | None = None
    paused: int | None = None
    checkpoints: int | None = None
    vcpus: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    creates_per_minute: int | None = None

    def but(self, overrides: Mapping[str, int | None]) -> Quota:
        """Return the quota with some of its members replaced; unknown names are passed over."""
        known = {each.name for each in fields(self)}
        return replace(self, **{name: most for name, most in overrides.items() if name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What keeps a tenant from having more.

    Attributes:
        resource: Name of a member of `Quota`.
        used: Without what was asked for.
    """

    resource: str
    used: int
    asked: int
    limit: int


def excess(quota: Quota, used: Usage, asked: Usage) -> Excess | None:
    """Return the first resource of which more is asked for than is left; `None` when all fits.

    What is not asked for does not count: whoever is over a lowered limit in one thing may have
    more of another.
    """
    for each in _USAGE:
        limit, has, wants = (getattr(of, each.name) for of in (quota, used, asked))
        if limit is not None and wants > 0 and has + wants > limit:
            return Excess(resource=each.name, used=has, asked=wants, limit=limit)
    return None


def share_of(spec: MachineSpec) -> Usage:
    """Return what one machine counts as."""
    return Usage(sandboxes=1, vcpus=spec.vcpus, memory_bytes=spec.memory_bytes)


def most_saved_bytes(spec: MachineSpec) -> int:
    """Return what the saved state of a machine can take on disk at most."""
    return spec.memory_bytes + most_disk_bytes(spec)


def most_disk_bytes(spec: MachineSpec) -> int:
    """Return what the disk of a machine can take when it is saved alone, at most."""
    return spec.disk_bytes + DEVICE_STATE_BYTES


DEVICE_STATE_BYTES = 16 << 20
"""For the devices of a machine and the tables of its disk, with room; measured: under 1 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A minute's worth of tokens, which come back evenly.

    Attributes:
        tokens: How many there were at `at`.
        at: On the caller's clock; seconds.
    """

    tokens: float
    at: float

    def take(self, count: int, *, per_minute: int, now: float) -> Bucket | float:
        """Return the bucket without `count` tokens, or the seconds until there are so many.

        That is infinite when there never will be.
        """
        rate = per_minute / 60
        tokens = min(self.tokens + max(now - self.at, 0.0) * rate, float(per_minute))
        if count <= tokens:
            return Bucket(tokens=tokens - count, at=now)
        return math.inf if count > per_minute else (count - tokens) / rate

    def used(self, *, per_minute: int, now: float) -> int:
        """Return how many tokens are gone at a time, part of one counted as one."""
        tokens = min(self.tokens + max(now - self.at, 0.0) * per_minute / 60, float(per_minute))
        return math.ceil(per_minute - tokens)
