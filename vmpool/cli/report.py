"""Report: how a failure reads at a terminal, and which exit code it gets."""

from __future__ import annotations

import logging
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

import click

from vmpool.errors import EngineError

if TYPE_CHECKING:
    from vmpool.errors import VmpoolError

NO_SERVER = "no_server"
"""Code of the error that says that nothing answers where a server should."""


class ExitCode(IntEnum):
    """The exit codes that are vmpool's own."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_SERVER = 3
    TASK_TIMEOUT = 124  # as timeout(1)
    NOT_RUN = 125  # as timeout(1), env(1) and `docker run`
    INTERRUPTED = 130  # 128 + SIGINT, as a shell


def say(line: str) -> None:
    """Print one line for the person at the terminal, beside the output."""
    click.echo(line, err=True)


def show(err: VmpoolError, *, as_json: bool) -> None:
    """Print an error on stderr: one line of what, one of the remedy, its code; or one JSON line."""
    from vmpool.cli import table  # noqa: PLC0415 -- most commands end without an error

    if as_json:
        say(table.as_json(document(err)))
        return
    say(table.printable(f"error: {err.message} [{err.error_code}]"))
    for line in err.remedy.splitlines():
        say(f"       {table.printable(line)}")
    if isinstance(err, EngineError) and err.log_tail:
        say("the hypervisor's last words:")
        for line in err.log_tail.splitlines():
            say(f"    {table.printable(line)}")


def document(err: VmpoolError) -> dict[str, str]:
    """Return an error as the values that a script decides by."""
    return {
        "code": err.error_code,
        "fault": err.fault.value,
        "message": err.message,
        "remedy": err.remedy,
    }


def exit_code(err: VmpoolError, *, failure: ExitCode) -> ExitCode:
    """Return the exit code for an error of a command whose failures exit with `failure`."""
    if failure is ExitCode.FAILED and err.error_code == NO_SERVER:
        return ExitCode.NO_SERVER
    return failure


def log_to_stderr(*, debug: bool) -> None:
    """Send the log to stderr: warnings, or everything when debugging."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
