"""The control plane as E2B's clients speak it: sandboxes, their networks and their snapshots."""
