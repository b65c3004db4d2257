"""Traffic: what passed between a guest and the world, and what did not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Packets of IP and their bytes, since the slot was taken."""

    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    denied_packets: int
    denied_bytes: int
