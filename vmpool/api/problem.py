"""Problem: how an error is told to whoever made the request, as RFC 9457 has it.

The only place that knows HTTP statuses. It decides from the error alone; the log has what is not
the caller's to know.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web

from vmpool.api.bodies import Problem
from vmpool.errors import (
    CallerError,
    CapacityError,
    ConflictError,
    DiskFullError,
    Fault,
    ForbiddenError,
    GuestError,
    GuestFileError,
    InvalidRequestError,
    NotFoundError,
    PoolBusyError,
    QuotaError,
    TaskError,
    TooLargeError,
    UnauthorizedError,
    VmpoolError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmpool.api.limits import Limits

CONTENT_TYPE = "application/problem+json"

RETRY_AFTER = 1
"""Seconds that a caller should wait for capacity: a clone is restored in well under one."""

STATUS_OF_CODE: Final[Mapping[str, int]] = {
    "base_missing": 409,
    "body_timeout": 408,
    "builds_busy": 429,
    "connection_reset": 502,
    "disk_full": 507,
    "file_exists": 409,
    "file_not_found": 404,
    "image_untrusted": 409,
    "method_not_allowed": 405,
    "name_too_long": 400,
    "permission_denied": 403,
    "port_answer_malformed": 502,
    "port_closed": 502,
    "port_redirect_refused": 502,
    "port_silent": 504,
    "port_unresponsive": 504,
    "range_not_satisfiable": 416,
    "sandbox_ended": 410,
    "snapshot_processor_unfit": 409,
    "snapshot_unfit": 409,
    "snapshot_untrusted": 409,
    "too_many_entries": 413,
    "unknown_user": 400,
    "unsupported_media_type": 415,
    "upgrade_required": 426,
}
"""Codes whose status is narrower than that of their class."""

_STATUS_OF_CLASS: Final[tuple[tuple[type[VmpoolError], int], ...]] = (
    (InvalidRequestError, 400),
    (UnauthorizedError, 401),
    (ForbiddenError, 403),
    (NotFoundError, 404),
    (ConflictError, 409),
    (TooLargeError, 413),
    (GuestFileError, 409),
    (TaskError, 422),
    (PoolBusyError, 429),
    (QuotaError, 429),
    (CapacityError, 503),
    (DiskFullError, 507),
    (GuestError, 502),
    (CallerError, 400),
    (VmpoolError, 500),
)

_LIMITS_OF_CODE: Final[Mapping[str, tuple[str, ...]]] = {
    "arguments_too_large": ("arguments_bytes",),
    "body_timeout": ("body_seconds",),
    "body_too_large": ("body_bytes",),
    "code_too_large": ("code_bytes",),
    "file_too_large": ("file_bytes",),
    "fork_too_wide": ("children",),
    "invalid_path": ("path_bytes",),
    "invalid_timeout": ("execution_seconds", "sandbox_seconds"),
    "invalid_wait": ("wait_seconds",),
    "message_too_large": ("message_bytes",),
}


def status_of(error: VmpoolError) -> int:
    """Return the HTTP status for an error: that of its code, or else of its class."""
    by_code = STATUS_OF_CODE.get(error.error_code)
    if by_code is not None:
        return by_code
    return next(status for kind, status in _STATUS_OF_CLASS if isinstance(error, kind))


def describe(error: VmpoolError, *, request_id: str, limits: Limits) -> Problem:
    """Return the document for an error, with the limits that it is about."""
    code = error.error_code
    values = msgspec.structs.asdict(limits.published)
    return Problem(
        type=f"urn:vmpool:problem:{code}",
        title=code.replace("_", " ").capitalize(),
        status=status_of(error),
        detail=error.message,
        code=code,
        kind=error.code,
        fault=error.fault.value,
        request_id=request_id,
        remedy=error.remedy,
        limits=_limits_of(error, {name: values[name] for name in _LIMITS_OF_CODE.get(code, ())}),
        used={error.resource: error.used} if isinstance(error, QuotaError) else {},
        retry_after=_retry_after(error),
    )


def _limits_of(error: VmpoolError, published: dict[str, float]) -> dict[str, float]:
    return {error.resource: error.limit} if isinstance(error, QuotaError) else published


def _retry_after(error: VmpoolError) -> int | None:
    """Return the seconds that a caller should wait; `None` when that helps nothing."""
    if isinstance(error, QuotaError):
        return None if math.isinf(error.retry_after) else math.ceil(error.retry_after)
    return RETRY_AFTER if error.fault is Fault.CAPACITY else None


def respond(problem: Problem) -> web.Response:
    """Return the response that carries a document."""
    headers = {}
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="vmpool"'
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status == 426:
        headers["Upgrade"] = "websocket"
    response = web.Response(
        status=problem.status,
        body=msgspec.json.encode(problem),
        content_type=CONTENT_TYPE,
        headers=headers,
    )
    if problem.status in {408, 413}:
        response.force_close()  # the rest of the body is not worth reading
    return response
