"""Task: what a request wants run, as the value that the guest is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool import model
from vmpool.api.limits import check_arguments, check_code, check_path
from vmpool.api.sandbox_bodies import Seed
from vmpool.errors import InvalidRequestError
from vmpool.model import Code, Command

if TYPE_CHECKING:
    from vmpool.api.bodies import Exec, FileContent, Run
    from vmpool.api.limits import Limits
    from vmpool.api.sandbox_bodies import RngPolicy
    from vmpool.model import Rng


def task_of(body: Run | Exec, limits: Limits) -> Command | Code:
    """Return what is to run; it has a timeout in any case.

    Raises:
        InvalidRequestError: `invalid_request`, `invalid_path` or `invalid_timeout`.
        TooLargeError: `code_too_large` or `arguments_too_large`.
    """
    published = limits.published
    timeout = published.execution_seconds_default if body.timeout is None else body.timeout
    limits.check_timeout(timeout, published.execution_seconds)
    cwd = None if body.cwd is None else check_path(body.cwd)
    env = body.env | body.secrets
    has_stdin = body.stdin is not None or body.stdin_base64 is not None
    match body.code, body.argv:
        case str(code), None if body.language == "python":
            check_code(code)
            check_arguments((), env)
            return Code(
                source=code, env=env, cwd=cwd, user=body.user, timeout=timeout, stdin=has_stdin
            )
        case str(code), None:
            argv: tuple[str, ...] = ("/bin/bash", "-l", "-c", code)
        case None, list(arguments):
            argv = tuple(arguments)
        case _:
            raise InvalidRequestError("give exactly one of 'code' and 'argv'")
    check_arguments(argv, env)
    return Command(argv=argv, env=env, cwd=cwd, user=body.user, timeout=timeout, stdin=has_stdin)


def rng_of(policy: RngPolicy) -> Rng:
    """Return where random numbers come from."""
    match policy:
        case "unique":
            return model.Unique()
        case "preserve":
            return model.Preserve()
        case Seed(seed=number):
            return model.Seed(number)


def stdin_of(body: Run | Exec) -> bytes:
    """Return what is written to the task's stdin.

    Raises:
        InvalidRequestError: Both forms are given.
    """
    if body.stdin is not None and body.stdin_base64 is not None:
        raise InvalidRequestError("give at most one of 'stdin' and 'stdin_base64'")
    return body.stdin.encode() if body.stdin is not None else body.stdin_base64 or b""


def content_of(path: str, file: FileContent) -> bytes:
    """Return a file's content.

    Raises:
        InvalidRequestError: Both forms are given, or neither.
    """
    match file.content, file.content_base64:
        case str(text), None:
            return text.encode()
        case None, bytes(data):
            return data
        case _:
            raise InvalidRequestError(
                f"file {path!r}: give exactly one of 'content' and 'content_base64'"
            )
