"""Means: what turns of sandboxes are taken with; the same for all of a host."""

from __future__ import annotations

from dataclasses import dataclass

from vmpool.catalogue import Catalogue
from vmpool.connecting import Connecting
from vmpool.household import Household
from vmpool.metrics import Metrics
from vmpool.nursery import Nursery
from vmpool.quotas import Quotas
from vmpool.store import Store
from vmpool.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """Who watches over sandboxes, where machines come from, and what is written down."""

    household: Household
    catalogue: Catalogue
    nursery: Nursery
    connecting: Connecting
    vault: Vault
    store: Store
    metrics: Metrics
    quotas: Quotas
