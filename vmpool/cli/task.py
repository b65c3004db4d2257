"""Task: what is to run in a guest, from a command line's words to a request's body."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmpool.cli.confidence import secret_option, secrets_of
from vmpool.cli.report import ExitCode
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

C = TypeVar("C", bound="Callable[..., Any]")

_OPTIONS = (
    click.argument("argv", nargs=-1, metavar="[-- PROGRAM [ARGUMENT]...]"),
    click.option("--code", metavar="SOURCE", help="Run this source instead of a program."),
    click.option(
        "--code-file",
        type=click.Path(path_type=Path, allow_dash=True),
        metavar="FILE",
        help="Run the source in FILE; - reads it from stdin.",
    ),
    click.option(
        "--language",
        type=click.Choice(["python", "bash"]),
        default="python",
        show_default=True,
        help="Language of the source.",
    ),
    click.option(
        "-e",
        "--env",
        "env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Set a variable; without a value it has the one that it has here. Repeatable.",
    ),
    secret_option("Set a variable that is told to nobody"),
    click.option("-w", "--cwd", metavar="PATH", help="Working directory; an absolute path."),
    click.option("-u", "--user", metavar="NAME", help="Account in the guest."),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="Kill it after so long.",
    ),
)


def task_options(command: C) -> C:
    """Give a command the options and the argument that say what is to run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def task_body(
    *,
    argv: Sequence[str],
    code: str | None,
    code_file: Path | None,
    language: str,
    env: Sequence[str],
    secrets: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    """Return the members of a request that say what is to run; what was not given is left out.

    Raises:
        click.UsageError: Not exactly one of a program and a source was given.
    """
    if [bool(argv), code is not None, code_file is not None].count(True) != 1:
        raise click.UsageError(
            "say what to run: -- PROGRAM [ARGUMENT]..., or --code SOURCE, or --code-file FILE"
        )
    body: dict[str, Any] = {"env": dict(map(variable, env)), "cwd": cwd, "user": user}
    body["timeout"] = timeout
    body["secrets"] = secrets_of(secrets) or None
    if argv:
        body["argv"] = list(argv)
    else:
        body["code"] = code if code_file is None else read_source(code_file)
        body["language"] = language
    return {name: value for name, value in body.items() if value is not None}


def read_source(path: Path) -> str:
    """Return the text of a file, of stdin for `-`.

    Raises:
        InvalidRequestError: `file_unreadable`.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return content.decode()
    except UnicodeDecodeError as err:
        raise InvalidRequestError(
            f"{str(path)!r} is not text in UTF-8", code="file_unreadable"
        ) from err
    except OSError as err:
        raise unreadable(path, err) from err


def unreadable(path: Path, err: OSError) -> InvalidRequestError:
    """Return the error for a file of this host that cannot be read."""
    return InvalidRequestError(
        f"cannot read {str(path)!r}: {err.strerror or err}", code="file_unreadable"
    )


def exit_code(ended: dict[str, Any]) -> int:
    """Return the exit code that passes on how a program in a guest ended.

    Args:
        ended: The members `exit_code`, `signal`, `timed_out`, `out_of_memory` of an answer.
    """
    if ended["timed_out"]:
        return ExitCode.TASK_TIMEOUT
    if ended["signal"] is not None:
        return 128 + int(ended["signal"])  # as a shell
    return int(ended["exit_code"])


def epitaph(ended: dict[str, Any]) -> str:
    """Return why a program did not end of its own accord, empty when it did."""
    why = _end_by_force(ended)
    lost = "its context begins anew, without its state" if ended.get("context_lost") else ""
    return "; ".join(filter(None, (why, lost)))


def _end_by_force(ended: dict[str, Any]) -> str:
    if ended["timed_out"]:
        goes_on = ended["signal"] is None and not ended.get("context_lost")
        return f"its time was up; it was {'interrupted' if goes_on else 'killed'}"
    if ended["out_of_memory"]:
        return "the guest was out of memory; it was killed"
    if ended["signal"] is not None:
        return f"it was killed by signal {ended['signal']}"
    return ""


def variable(assignment: str) -> tuple[str, str]:
    """Return the name and value of a variable; without a value it has the one that it has here."""
    name, equals, value = assignment.partition("=")
    return name, value if equals else os.environ.get(name, "")
