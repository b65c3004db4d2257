"""Problem: the error that a problem document was made from.

A server says the code of its error and, in `kind`, that of the error's class. A server newer or
older than this client may have kinds that are not known here; then the fault decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmpool.errors import (
    CallerError,
    CapacityError,
    Fault,
    InfrastructureError,
    TaskError,
    VmpoolError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_OF_FAULT: dict[str, type[VmpoolError]] = {
    Fault.CALLER: CallerError,
    Fault.TASK: TaskError,
    Fault.CAPACITY: CapacityError,
    Fault.INFRASTRUCTURE: InfrastructureError,
}


def _family(root: type[VmpoolError]) -> Iterator[type[VmpoolError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == root.__module__:
            yield from _family(child)


_OF_KIND = {kind.code: kind for kind in _family(VmpoolError)}


def error_of(problem: dict[str, Any]) -> VmpoolError:
    """Return the error that a problem document was made from: its class, code, words and remedy.

    Raises:
        KeyError, TypeError: It is no problem document of ours.
    """
    widest = _OF_FAULT.get(problem["fault"], InfrastructureError)
    kind = _OF_KIND.get(problem.get("kind", ""), widest)
    return kind(problem["detail"], code=problem["code"], remedy=problem.get("remedy", ""))
