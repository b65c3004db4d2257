"""Limits: what a request may ask for, as settings and Linux have it.

Checks of values that the types of `bodies` cannot make: those that depend on settings, those that
count bytes and not characters, and those with an error code of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.api.bodies import PublishedLimits
from vmpool.errors import InvalidRequestError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmpool.config import Settings

PATH_BYTES: Final = 4095  # PATH_MAX without its NUL, linux/limits.h
ARGUMENT_BYTES: Final = 131_071  # MAX_ARG_STRLEN without its NUL, linux/binfmts.h
ARGUMENTS_BYTES: Final = 1 << 20  # half of what Linux takes with the usual stack of 8 MiB
CODE_BYTES: Final = 1 << 20  # escaped as JSON at most 6 MiB, and the agent takes 8
MESSAGE_BYTES: Final = 1 << 20
OURS: Final = "vmpool."
"""What keys of metadata begin with that the server gives, and believes."""


class Limits:
    """The limits of one server.

    Attributes:
        published: All of them as the interface shows them.
    """

    def __init__(self, published: PublishedLimits) -> None:
        self.published = published

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Return what the settings say."""
        requests = settings.requests
        return cls(
            PublishedLimits(
                body_bytes=requests.body_bytes,
                body_seconds=requests.body_timeout,
                file_bytes=requests.file_bytes,
                output_bytes=requests.output_bytes,
                returned_files_bytes=requests.body_bytes,
                execution_seconds=requests.exec_timeout_most,
                execution_seconds_default=requests.exec_timeout,
                sandbox_seconds=requests.sandbox_timeout_most,
                sandbox_seconds_default=requests.sandbox_timeout,
                wait_seconds=requests.queue_wait_most,
                wait_seconds_default=requests.queue_wait,
                children=settings.checkpoints.children,
                stall_seconds=requests.stall_timeout,
                path_bytes=PATH_BYTES,
                argument_bytes=ARGUMENT_BYTES,
                arguments_bytes=ARGUMENTS_BYTES,
                code_bytes=CODE_BYTES,
                message_bytes=MESSAGE_BYTES,
            )
        )

    def check_body_size(self, size_bytes: int) -> None:
        """Refuse a JSON body over the limit."""
        if size_bytes > self.published.body_bytes:
            raise TooLargeError(
                f"the request body is over {self.published.body_bytes} bytes",
                code="body_too_large",
                remedy="upload files one by one with PUT /v1/sandboxes/{id}/files",
            )

    def check_file_size(self, size_bytes: int) -> None:
        """Refuse an uploaded file over the limit."""
        if size_bytes > self.published.file_bytes:
            raise TooLargeError(
                f"the file is over {self.published.file_bytes} bytes", code="file_too_large"
            )

    def check_timeout(self, timeout: float, most: float) -> None:
        """Refuse a time over `most` seconds."""
        if timeout > most:
            raise InvalidRequestError(
                f"timeout {timeout!r} is over {most!r} seconds", code="invalid_timeout"
            )

    def check_wait(self, wait: float) -> None:
        """Refuse to wait for a clone for longer than the limit."""
        if wait > self.published.wait_seconds:
            raise InvalidRequestError(
                f"wait {wait!r} is over {self.published.wait_seconds!r} seconds",
                code="invalid_wait",
            )


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a caller gives a sandbox as metadata, if it is a caller's to give.

    Raises:
        InvalidRequestError: `metadata_reserved`.
    """
    for key in metadata:
        if key.startswith(OURS):
            raise InvalidRequestError(
                f"metadata {key!r} begins as those do that the server itself gives",
                code="metadata_reserved",
                remedy=f"give a key that does not begin with {OURS!r}",
            )
    return dict(metadata)


def check_path(path: str) -> str:
    """Return a guest path that is absolute, does not climb and fits into Linux's limit.

    Raises:
        InvalidRequestError: `invalid_path`.
    """
    reason = _path_fault(path)
    if reason:
        raise InvalidRequestError(
            f"path {path[:200]!r} {reason}",
            code="invalid_path",
            remedy="give an absolute path such as '/home/user/data.csv'",
        )
    return path


def _path_fault(path: str) -> str:
    if "\0" in path:
        return "holds a NUL"
    if not path.startswith("/"):
        return "is not absolute"
    if ".." in path.split("/"):
        return "climbs with '..'"
    if len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        return f"is over {PATH_BYTES} bytes"
    return ""


def check_code(source: str) -> None:
    """Refuse source that is over the limit.

    Raises:
        TooLargeError: `code_too_large`.
    """
    if len(source) > CODE_BYTES or len(source.encode()) > CODE_BYTES:
        raise TooLargeError(
            f"the code is over {CODE_BYTES} bytes",
            code="code_too_large",
            remedy="send it as a file and run that",
        )


def check_arguments(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse arguments and environment that Linux could not pass to a program.

    Raises:
        TooLargeError: `arguments_too_large`.
        InvalidRequestError: `program_not_found`; the first of them names none.
    """
    if argv and not argv[0]:
        raise InvalidRequestError(
            "the first of argv is empty", code="program_not_found", remedy="name a program there"
        )
    sizes = [len(argument.encode()) for argument in argv]
    sizes += [len(name.encode()) + 1 + len(value.encode()) for name, value in env.items()]
    if max(sizes, default=0) > ARGUMENT_BYTES or sum(sizes) > ARGUMENTS_BYTES:
        raise TooLargeError(
            f"an argument or variable is over {ARGUMENT_BYTES} bytes, or all are over "
            f"{ARGUMENTS_BYTES}",
            code="arguments_too_large",
            remedy="pass the data as a file or on stdin",
        )
