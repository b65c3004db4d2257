"""Entry: one template of a catalogue, from the asking to its pool.

It holds and shows; what is done with a template, the catalogue decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from vmpool import template
from vmpool.lineages import Lineage
from vmpool.model import MachineSpec
from vmpool.policy import Census, Limits
from vmpool.quota import Usage
from vmpool.template_key import key_of, owner_of

if TYPE_CHECKING:
    from vmpool.clone import Clone
    from vmpool.errors import VmpoolError
    from vmpool.pool import Pool
    from vmpool.snapshot import Snapshot


STANDBY_BYTES = 32 << 20
"""What a hypervisor that waits counts as; measured: 20 to 25 MB."""


class TemplateState(StrEnum):
    """Whether a template can be used."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRequest:
    """What a template is to be; `None` leaves it to the image's recipe.

    Attributes:
        image: Name or digest of an image in the library.
        owner: The tenant that it is for alone; `None` for everybody.
    """

    name: str
    image: str
    owner: str | None = None
    limits: Limits | None = None
    memory_bytes: int | None = None
    vcpus: int | None = None
    disk_bytes: int | None = None

    @property
    def key(self) -> str:
        """What it is known by."""
        return key_of(self.name, self.owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A snapshot that was made of a checkpoint, and is to be had under a name.

    Attributes:
        key: What it is to be known by.
        snapshot: Its id.
        limits: Of its pool; `None` for what the settings say, with one clone ready.
        env: Environment of everything that runs in its sandboxes, under their own.
    """

    key: str
    snapshot: str
    limits: Limits | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStatus:
    """One template at one moment.

    Attributes:
        name: Its key: after its tenant's id, if it is one's own.
        image: Digest of its image; `image_name` is what that was called.
        snapshot: Id of its snapshot, `None` until there is one.
        aim: How many spares its pool keeps now.
        error: Why it failed, or why its pool cannot restore at present; empty otherwise.
        created_ns: Unix time.
        env: As of an `Offer`.
    """

    name: str
    image: str
    image_name: str
    snapshot: str | None
    spec: MachineSpec
    limits: Limits
    census: Census
    aim: int
    state: TemplateState
    error: str
    created_ns: int
    env: dict[str, str] = field(default_factory=dict, repr=False)


class Entry:
    """One template: what was asked, what came of it, and its pool once there is one.

    Attributes:
        digest: Of its image.
        error: Why it failed, for one that was brought up behind everybody's back.
        created_ns: Unix time.
        derived: Id of its snapshot, when that was made of a checkpoint.
        env: As of an `Offer`.
    """

    def __init__(
        self,
        *,
        name: str,
        digest: str,
        image_name: str,
        spec: MachineSpec,
        limits: Limits,
        created_ns: int,
        derived: str | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self.image_name = image_name
        self.spec = spec
        self.limits = limits
        self.created_ns = created_ns
        self.derived = derived
        self.env = env or {}
        self.snapshot: Snapshot | None = None
        self.pool: Pool[Clone] | None = None
        self.error: VmpoolError | None = None

    @property
    def snapshot_id(self) -> str:
        """Name of its snapshot, whether there is one yet or not."""
        return self.derived or template.snapshot_id(self.digest, self.spec)

    @property
    def usage(self) -> Usage:
        """What it counts as in its tenant's quota: clones that nobody holds yet, what waits
        to be one, and its snapshot.

        Everybody's count in nobody's.
        """
        if owner_of(self.name) is None:
            return Usage()
        share, ready = self.spec, self.limits.most_ready
        return Usage(
            vcpus=ready * share.vcpus,
            memory_bytes=ready * share.memory_bytes + self.limits.standby * STANDBY_BYTES,
            disk_bytes=share.memory_bytes + share.disk_bytes,
        )

    @property
    def lineage(self) -> Lineage | None:
        """What descends from it needs of it; `None` until it can be used."""
        if self.pool is None or self.snapshot is None:
            return None
        return Lineage(snapshot=self.snapshot, pool=self.pool, template=self.name)

    @property
    def state(self) -> TemplateState:
        """Whether it can be used."""
        if self.pool is not None:
            return TemplateState.READY
        return TemplateState.FAILED if self.error is not None else TemplateState.BUILDING

    @property
    def status(self) -> TemplateStatus:
        """The template at this moment."""
        trouble = self.error or (self.pool.last_error if self.pool is not None else None)
        return TemplateStatus(
            name=self.name,
            image=self.digest,
            image_name=self.image_name,
            snapshot=self.snapshot.manifest.id if self.snapshot is not None else None,
            spec=self.spec,
            limits=self.limits,
            census=self.pool.census if self.pool is not None else Census(),
            aim=self.pool.aim if self.pool is not None else 0,
            state=self.state,
            error=str(trouble) if trouble is not None else "",
            created_ns=self.created_ns,
            env=self.env,
        )
