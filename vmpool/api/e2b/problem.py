"""Problem: how an error is told to E2B's clients, in the three shapes that they read.

The control plane and plain HTTP say a number, which is the status again; Connect says a word. What
the error itself is worth, `vmpool.api.problem` decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from vmpool.api import codec, problem
from vmpool.api.e2b.visit import Shape
from vmpool.errors import CapacityError, ConflictError, Fault, UnauthorizedError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORD_OF_CODE: Final[Mapping[str, str]] = {
    "disk_full": "internal",  # these clients take 'resource_exhausted' for too many requests
    "file_exists": "already_exists",
    "guest_no_resources": "resource_exhausted",
    "is_a_directory": "invalid_argument",
    "not_a_directory": "invalid_argument",
    "task_timeout": "deadline_exceeded",
    "unknown_user": "unauthenticated",
    "watch_overflow": "data_loss",
}
_WORD_OF_STATUS: Final[Mapping[int, str]] = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    408: "deadline_exceeded",
    409: "failed_precondition",
    410: "not_found",
    413: "invalid_argument",  # the word of Connect for it is what clients take for a rate limit
    415: "invalid_argument",
    416: "out_of_range",
    422: "unknown",
    429: "resource_exhausted",
    499: "canceled",
    500: "internal",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    504: "deadline_exceeded",
    507: "resource_exhausted",
}
_STATUS_OF_WORD: Final[Mapping[str, int]] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}
"""As the protocol Connect has it."""

RETRY_AFTER: Final = "1"


def respond(error: VmpoolError, shape: Shape) -> web.Response:
    """Return the response that tells an error."""
    if shape is Shape.CONNECT:
        return connect(word_of(error), message_of(error))
    status = status_of(error)
    if shape is Shape.TEXT:
        response = web.Response(status=status, text=message_of(error))
    elif isinstance(error, UnauthorizedError):
        response = coded(status, message_of(error))  # clients compare the whole of it
    else:
        response = coded(status, message_of(error), error_code=error.error_code)
    if error.fault is Fault.CAPACITY or isinstance(error, CapacityError):
        response.headers["Retry-After"] = RETRY_AFTER
    return response


def coded(status: int, message: str, **more: Any) -> web.Response:
    """Return an error whose code is its status."""
    return _json(status, {"code": status, "message": message, **more})


def connect(word: str, message: str) -> web.Response:
    """Return an error whose code is a word of the protocol Connect."""
    return _json(_STATUS_OF_WORD[word], {"code": word, "message": message})


def gone(sandbox_id: str) -> web.Response:
    """Return what a sandbox is answered with that has no machine; clients look for the words."""
    return coded(502, "The sandbox was not found", sandboxId=sandbox_id)


def port_closed(sandbox_id: str, port: int) -> web.Response:
    """Return what a port is answered with on which nothing listens; clients compare the words."""
    said = "The sandbox is running but port is not open"
    return coded(502, said, sandboxId=sandbox_id, port=port)


def status_of(error: VmpoolError) -> int:
    """Return the HTTP status for an error: what has ended is to these clients what never was."""
    status = problem.status_of(error)
    return 404 if status == 410 else status


def word_of(error: VmpoolError) -> str:
    """Return the word of Connect for an error."""
    word = _WORD_OF_CODE.get(error.error_code)
    if word is not None:
        return word
    if isinstance(error, ConflictError):
        return "failed_precondition"
    if isinstance(error, CapacityError):  # not "unavailable", which clients take for a lost guest
        return "resource_exhausted"
    return _WORD_OF_STATUS[problem.status_of(error)]


def message_of(error: VmpoolError) -> str:
    """Return an error's message, with what can be done about it."""
    return str(error)


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, body=codec.encode_plain(body), content_type="application/json"
    )
