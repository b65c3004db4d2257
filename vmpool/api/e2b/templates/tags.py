"""Tags: builds of a template told apart by a word behind its name. Pure.

In the catalogue each is a template of its own, whose name has the tag in it; those of one build
have one snapshot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from vmpool.api.e2b.naming import USUAL_TAGS
from vmpool.errors import InvalidRequestError

USUAL: Final = "default"
"""The tag of what is called by its name alone."""

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Title:
    """What somebody calls a template.

    Attributes:
        tag: `None` where none is said.
    """

    name: str
    tag: str | None

    @property
    def key(self) -> str:
        """Its name in the catalogue, without whose it is."""
        return tagged(self.name, self.tag or USUAL)


def parse(reference: str) -> Title:
    """Return what a reference says; whose it is, before a slash, is the caller's anyway.

    Raises:
        InvalidRequestError: `template_name_invalid`.
    """
    name, colon, tag = reference.rpartition("/")[2].partition(":")
    if _WORD.fullmatch(name) is None or (colon and _WORD.fullmatch(tag) is None):
        raise InvalidRequestError(
            f"{reference[:128]!r} is no name for a template",
            code="template_name_invalid",
            remedy="use up to 63 letters, digits, dots, dashes and underscores, and the same for"
            " a tag behind a colon",
        )
    return Title(name=name, tag=tag if colon else None)


def tagged(name: str, tag: str) -> str:
    """Return a template's name in the catalogue."""
    return name if tag in USUAL_TAGS else f"{name}:{tag}"


def tag_of(key: str, name: str) -> str | None:
    """Return the tag of a name in the catalogue; `None` when it is not of that template."""
    found, colon, tag = key.partition(":")
    if found != name:
        return None
    return tag if colon else USUAL
