"""Snapshot: memory, device state, disk and manifest of a paused machine; immutable once published."""
