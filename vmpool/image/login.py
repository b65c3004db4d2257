"""Login: what a login shell does before it does what it was started for.

Clients start each command in one. Debian's profile runs two programs to learn what a shell knows
by itself, and in a guest each costs milliseconds. They are written out of it, and nothing else is:
a profile that says something else stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.image.tree import ENCODING
from vmpool.model import MIB

if TYPE_CHECKING:
    from vmpool.image.tree import Tree

PROFILE: Final = "/etc/profile"

_SPARED: Final = (
    # bash has the number of its account in a variable; other shells go on asking.
    ('"$(id -u)" -eq 0', '"${EUID:-$(id -u)}" -eq 0'),
    (
        r"$(run-parts --list --regex '^[a-zA-Z0-9_][a-zA-Z0-9._-]*\.sh$' /etc/profile.d)",
        "/etc/profile.d/[a-zA-Z0-9_]*.sh",
    ),
)


def hasten(tree: Tree) -> None:
    """Have login shells start no program that they can do without. *Idempotent.*"""
    node = tree.find(PROFILE)
    if node is None or not node.is_file or node.size_bytes > MIB:
        return
    text = node.read().decode(*ENCODING)
    hastened = text
    for said, spared in _SPARED:
        hastened = hastened.replace(said, spared)
    if hastened != text:
        node.content = hastened.encode(*ENCODING)
