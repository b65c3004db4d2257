"""Operations: what E2B's clients ask about templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vmpool.api.e2b.operation import Operation

OPERATIONS: Final[tuple[Operation, ...]] = ()
