"""Defaults: as whom and where things run in a sandbox when nobody says, as its template has it.

They stand in the sandbox's environment, and so go wherever that goes: into the journal, checkpoints
and children. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from collections.abc import Mapping

USER: Final = "VMPOOL_DEFAULT_USER"
DIRECTORY: Final = "VMPOOL_DEFAULT_DIRECTORY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds when a request says nothing.

    Attributes:
        directory: Absolute; `None` for the account's home.
    """

    user: str = DEFAULT_USER
    directory: str | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Defaults:
        """Return what an environment says."""
        return cls(
            user=environment.get(USER) or DEFAULT_USER, directory=environment.get(DIRECTORY) or None
        )

    @property
    def environment(self) -> dict[str, str]:
        """How they stand in an environment."""
        return {USER: self.user} | ({} if self.directory is None else {DIRECTORY: self.directory})
