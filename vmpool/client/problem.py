"""Problem: the error that a problem document was made from.

A server says the code of its error and, in `kind`, that of the error's class. A server newer or
older than this client may have kinds that are not known here; then the fault decides.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vmpool.errors import (
    CallerError,
    CapacityError,
    Fault,
    HostError,
    InfrastructureError,
    QuotaError,
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
        KeyError, TypeError, AttributeError: It is no problem document of ours.
    """
    widest = _OF_FAULT.get(problem["fault"], InfrastructureError)
    kind = _OF_KIND.get(problem.get("kind", ""), widest)
    if kind is QuotaError:
        return _quota_error_of(problem)
    return kind(problem["detail"], code=problem["code"], remedy=problem.get("remedy", ""))


def _quota_error_of(problem: dict[str, Any]) -> QuotaError:
    resource, limit = next(iter(problem.get("limits", {}).items()), ("", 0))
    return QuotaError(
        problem["detail"],
        code=problem["code"],
        remedy=problem.get("remedy", ""),
        resource=resource,
        used=problem.get("used", {}).get(resource, 0),
        limit=limit,
        retry_after=problem.get("retry_after", math.inf),
    )


def certificate_refused(url: str, err: Exception) -> HostError:
    """Return what tells of a server that is there, and may be somebody else."""
    why = getattr(err, "verify_message", "") or str(err)
    return HostError(
        f"the certificate that is shown at {url} is not believed: {why}",
        code="certificate_refused",
        remedy="name the server as its certificate does; if an authority of your own issued it,"
        " set SSL_CERT_FILE to that one's",
    )
