"""Aliases: templates by the names under which E2B has them.

Programs ask for `base` or `code-interpreter-v1` without ever naming them. A template of that very
name goes before what the settings say.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.errors import NotFoundError

if TYPE_CHECKING:
    from vmpool.host import Host


def template_of(host: Host, name: str, *, owner: str) -> str:
    """Return the name by which the catalogue knows what a tenant means.

    Raises:
        NotFoundError: `template_not_found`; there is none, under this name or another.
    """
    others = host.settings.e2b.aliases.get(name, ())
    for candidate in (name, *others):
        with contextlib.suppress(NotFoundError):
            host.catalogue.resolve(candidate, owner=owner)
            return candidate
    remedy = f"vmpool up --template {others[0]}" if others else "vmpool template list shows all"
    raise NotFoundError(f"no template {name[:64]!r}", code="template_not_found", remedy=remedy)
