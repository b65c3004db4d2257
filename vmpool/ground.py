"""Ground: what the machines of a host stand on, the same for all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from vmpool.agent import Airtime
from vmpool.clone import Dawn, RestoreDeadlines
from vmpool.config import Settings
from vmpool.engine import Engine
from vmpool.image import Library
from vmpool.metrics import Metrics
from vmpool.model import Accelerator, Transport
from vmpool.network.network import Network
from vmpool.quotas import Quotas
from vmpool.standby import Standby
from vmpool.store import Store
from vmpool.trust import Custody


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What templates and sandboxes are made with.

    Attributes:
        snapshots: Directory of published snapshots.
        clones: Directory that machines' directories are made in.
        custody: Says which snapshots to believe.
        restores: Shared by all pools: restores that may run at one time.
        dawn: The same for clones of pools that wake.
        airtime: What their guests share.
        standby: Has the hypervisors that wait for whatever state comes next.
    """

    engine: Engine
    accelerator: Accelerator
    transport: Transport
    images: Library
    store: Store
    metrics: Metrics
    quotas: Quotas
    snapshots: Path
    clones: Path
    settings: Settings
    deadlines: RestoreDeadlines
    custody: Custody
    restores: asyncio.Semaphore
    dawn: Dawn
    airtime: Airtime
    standby: Standby
    network: Network
