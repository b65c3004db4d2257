"""Facts: what this host can do, as it was found out when it was opened."""

from __future__ import annotations

from dataclasses import dataclass

from vmpool.model import Accelerator, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What this host can do, and why not more.

    Attributes:
        accelerator_reason: Why it is not KVM, in words; empty when it is.
    """

    accelerator: Accelerator
    accelerator_reason: str
    transport: Transport
    qemu_version: str
