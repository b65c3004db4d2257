"""Scope: what a token may do, cut by the harm that its loss would do.

A token has a set of them. None implies another, and none reaches beyond the token's tenant but
those that say so.
"""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """One kind of harm."""

    SANDBOXES = "sandboxes"
    """Run, and hold sandboxes and checkpoints: read what its tenant has, and use up its quota."""
    TEMPLATES = "templates"
    """Make and remove its tenant's own templates: long work, and files that stay."""
    AUDIT = "audit"
    """Read who of its tenant did what."""
    METRICS = "metrics"
    """Read what was counted, of all tenants together."""
    OPERATOR = "operator"
    """What is everybody's: their templates, the whole audit log, and states of other hosts."""


class Role(StrEnum):
    """A name for a set of scopes that goes well together."""

    USE = "use"
    """Run, and hold sandboxes."""
    ADMIN = "admin"
    """Everything."""

    @property
    def scopes(self) -> frozenset[Scope]:
        """What it stands for."""
        match self:
            case Role.USE:
                return frozenset({Scope.SANDBOXES})
            case Role.ADMIN:
                return frozenset(Scope)
