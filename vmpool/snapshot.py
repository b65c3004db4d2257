"""Snapshot: memory, device state, disk and manifest of a paused machine, immutable.

The directory of a published snapshot never changes; it is there whole or not at all.
"""
