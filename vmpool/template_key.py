"""Template key: what a template is known by: its name, after its tenant's id if it is one's own.

A tenant's own go before everybody's of the same name, for that tenant. Pure.
"""

from __future__ import annotations

_BETWEEN = "/"
"""In no name and in no id."""


def key_of(name: str, owner: str | None) -> str:
    """Return the key of a tenant's own template, or of everybody's when `owner` is `None`."""
    return name if owner is None else f"{owner}{_BETWEEN}{name}"


def name_of(key: str) -> str:
    """Return what its users call a template."""
    return key.rpartition(_BETWEEN)[2]


def owner_of(key: str) -> str | None:
    """Return whose a template is; `None` for everybody's."""
    return key.rpartition(_BETWEEN)[0] or None


def visible(key: str, owner: str) -> bool:
    """Tell whether a template is there for a tenant."""
    return owner_of(key) in {None, owner}
