"""Errors: what went wrong, whose it is, and what to do about it.

One tree, cut by what the caller can do. Every class has a stable `code`, part of the interface:

    VmpoolError
    ├── CallerError              the request is wrong; the same request will fail again
    │   ├── InvalidRequestError      … in its form
    │   ├── NotFoundError            … names something that is not there, or not yours
    │   ├── ConflictError            … contradicts the present state
    │   ├── UnauthorizedError        … has no valid token
    │   ├── ForbiddenError           … has a token that does not allow it
    │   └── TooLargeError            … exceeds a limit that is in the interface
    ├── TaskError                the code in the guest failed; the infrastructure is well
    │   ├── TaskTimeoutError         … ran past its time
    │   ├── TaskMemoryError          … used up the guest's memory
    │   └── GuestFileError           … or a file operation in the guest was refused by the guest
    ├── CapacityError            not now; the same request may succeed later
    │   ├── PoolBusyError            … all clones are out and the queue is full
    │   ├── PoolTimeoutError         … none came free before the deadline
    │   └── QuotaError               … the tenant has as much as it may
    └── InfrastructureError      ours; nothing that the caller did
        ├── HostError                the host lacks something; `remedy` mends it
        ├── DiskFullError            the host's disk is full
        ├── ImageError               an image is missing, damaged or cannot be built
        ├── SnapshotError            a snapshot is damaged or does not fit this host
        ├── EngineError              the hypervisor failed; carries its command and log tail
        ├── GuestError               the guest died, hung or broke the protocol
        └── StoreError               the journal cannot be read or written

HTTP statuses are not known here; `api` maps codes to them.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Whose a failure is."""

    CALLER = "caller"
    TASK = "task"
    CAPACITY = "capacity"
    INFRASTRUCTURE = "infrastructure"


class VmpoolError(Exception):
    """Root of all errors that vmpool raises on purpose.

    Args:
        message: What was wrong; lower case, no full stop, values in `!r`.
        code: A code narrower than the class's own, stable like it.
        remedy: What to do about it: a command or a sentence; empty when there is nothing to do.
    """

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.INFRASTRUCTURE

    def __init__(self, message: str, *, code: str | None = None, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.error_code = code if code is not None else self.code

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class CallerError(VmpoolError):
    """The request is wrong; the same request will fail again."""

    code = "bad_request"
    fault = Fault.CALLER


class InvalidRequestError(CallerError):
    """The request is malformed."""

    code = "invalid_request"


class NotFoundError(CallerError):
    """The request names something that is not there, or is not the caller's."""

    code = "not_found"


class ConflictError(CallerError):
    """The request contradicts the present state."""

    code = "conflict"


class UnauthorizedError(CallerError):
    """The request has no valid token."""

    code = "unauthorized"


class ForbiddenError(CallerError):
    """The request has a token that does not allow it."""

    code = "forbidden"


class TooLargeError(CallerError):
    """The request exceeds a limit of the interface."""

    code = "too_large"


class TaskError(VmpoolError):
    """The code in the guest failed; the infrastructure is well."""

    code = "task_failed"
    fault = Fault.TASK


class TaskTimeoutError(TaskError):
    """The code in the guest ran past its time; its process group was killed."""

    code = "task_timeout"


class TaskMemoryError(TaskError):
    """The code in the guest used up the guest's memory."""

    code = "task_out_of_memory"


class GuestFileError(TaskError):
    """The guest refused a file operation; `code` narrows it (`file_not_found`, `disk_full`, …)."""

    code = "file_error"


class CapacityError(VmpoolError):
    """Not now; the same request may succeed later."""

    code = "capacity"
    fault = Fault.CAPACITY


class PoolBusyError(CapacityError):
    """Every clone is out and the queue of waiters is full."""

    code = "pool_busy"


class PoolTimeoutError(CapacityError):
    """No clone came free before the deadline."""

    code = "pool_timeout"


class QuotaError(CapacityError):
    """The caller's tenant has as much as it may.

    Args:
        message: What was wrong.
        resource: What there is too much of: a member of `quota.Quota`.
        used: How much of it the tenant has, without what was asked for.
        limit: How much it may have.
        retry_after: Seconds after which it may be different; infinite for never.
    """

    code = "quota_exceeded"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        remedy: str = "",
        resource: str = "",
        used: float = 0,
        limit: float = 0,
        retry_after: float = math.inf,
    ) -> None:
        super().__init__(message, code=code, remedy=remedy)
        self.resource = resource
        self.used = used
        self.limit = limit
        self.retry_after = retry_after


class InfrastructureError(VmpoolError):
    """Ours; nothing that the caller did."""

    code = "infrastructure"


class HostError(InfrastructureError):
    """The host lacks something that vmpool needs; `remedy` says how to get it."""

    code = "host_unfit"


class DiskFullError(InfrastructureError):
    """The host's disk is full."""

    code = "host_disk_full"


class ImageError(InfrastructureError):
    """An image is missing, damaged or cannot be built."""

    code = "image_error"


class SnapshotError(InfrastructureError):
    """A snapshot is missing, damaged or does not fit this host."""

    code = "snapshot_error"


class EngineError(InfrastructureError):
    """The hypervisor failed.

    Args:
        message: What was wrong.
        argv: The command line of the hypervisor, empty when it was never started.
        log_tail: The last lines of its log.
    """

    code = "engine_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        remedy: str = "",
        argv: tuple[str, ...] = (),
        log_tail: str = "",
    ) -> None:
        super().__init__(message, code=code, remedy=remedy)
        self.argv = argv
        self.log_tail = log_tail


class GuestError(InfrastructureError):
    """The guest died, hung, or broke the agent protocol; its clone is lost."""

    code = "guest_error"


class StoreError(InfrastructureError):
    """The journal cannot be read or written."""

    code = "store_error"
