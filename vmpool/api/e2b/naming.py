"""Naming: what E2B's clients mean by a template's name: a template, or something that was kept.

A name may come with whose it is before a slash, and with a tag behind a colon; the tags `default`
and `latest` are what a name means without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmpool.api.e2b import aliases
from vmpool.errors import NotFoundError

if TYPE_CHECKING:
    from vmpool.host import Host

USUAL_TAGS: Final = frozenset({"default", "latest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a sandbox is to be made of: exactly one of the two.

    Attributes:
        template: A name of the catalogue, empty for none.
        checkpoint: An id of the vault.
    """

    template: str = ""
    checkpoint: str | None = None


def bare(reference: str) -> str:
    """Return a reference without whose it is, and without a tag that says nothing."""
    name = reference.rpartition("/")[2]
    before, colon, tag = name.rpartition(":")
    return before if colon and tag in USUAL_TAGS else name


def source_of(host: Host, reference: str, *, owner: str) -> Source:
    """Return what a reference means to a tenant; what that has kept goes before templates.

    Raises:
        NotFoundError: `template_not_found`; nothing.
    """
    name = bare(reference)
    try:
        return Source(checkpoint=host.find_checkpoint(name, owner=owner).id)
    except NotFoundError:
        return Source(template=aliases.template_of(host, name, owner=owner))
