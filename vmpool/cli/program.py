"""Program: `vmpool` itself, and how each of its commands ends.

A command's module is imported when the command is called and not before, because `vmpool run` is
used in loops where every millisecond of start-up is paid each time; the table below therefore holds
each command's summary. Commands raise; what a failure looks like and which exit code it gets is
decided here and in `report`, once.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import click

from vmpool.cli import report
from vmpool.cli.report import ExitCode
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where a command is found and what is known of it without importing it.

    Attributes:
        module: Module under `vmpool.cli` whose `command` it is.
        summary: The first line of its help.
        failure: Exit code when it fails; commands that pass a guest's exit code on have one of
            their own, so that the guest's failure and vmpool's are told apart.
    """

    module: str
    summary: str
    failure: ExitCode = ExitCode.FAILED


COMMANDS = {
    "up": Entry(module="up", summary="Build what is missing, serve, and show one request."),
    "serve": Entry(module="serve", summary="Serve the HTTP API until interrupted."),
    "run": Entry(
        module="run",
        summary="Run a program in a virtual machine of its own.",
        failure=ExitCode.NOT_RUN,
    ),
    "exec": Entry(
        module="execution",
        summary="Run a program in a sandbox and print its output as it comes.",
        failure=ExitCode.NOT_RUN,
    ),
    "run-code": Entry(
        module="run_code",
        summary="Run source in an interpreter of a sandbox that keeps its state.",
        failure=ExitCode.NOT_RUN,
    ),
    "context": Entry(
        module="contexts",
        summary="Create, list, interrupt, restart and close interpreters that keep their state.",
    ),
    "shell": Entry(
        module="shell",
        summary="Start a shell at a terminal in a sandbox, or another program, and attach to it.",
        failure=ExitCode.NOT_RUN,
    ),
    "attach": Entry(
        module="attachment",
        summary="Print what a process writes, until it ends; then exit as it did.",
        failure=ExitCode.NOT_RUN,
    ),
    "ps": Entry(module="ps", summary="List the processes of a sandbox that were started to stay."),
    "port-forward": Entry(
        module="port_forward",
        summary="Have ports of this machine lead to ports of a sandbox, until Ctrl-C.",
    ),
    "url": Entry(module="url", summary="Print where a port of a sandbox is found."),
    "cp": Entry(
        module="copying", summary="Copy files and directories into a sandbox, or out of one."
    ),
    "watch": Entry(
        module="watching",
        summary="Print what happens in a directory of a sandbox, until it is gone or Ctrl-C.",
    ),
    "network": Entry(
        module="network",
        summary="See what a sandbox was denied on the network, and the packets that pass.",
    ),
    "sandbox": Entry(module="sandboxes", summary="Create, inspect, fill and kill sandboxes."),
    "pause": Entry(
        module="pause",
        summary="Save sandboxes and end their machines; files are all that is left of them.",
    ),
    "resume": Entry(module="resume", summary="Go on with a paused sandbox."),
    "checkpoint": Entry(
        module="checkpoints",
        summary="Create, list, remove, export and import checkpoints of sandboxes.",
    ),
    "rollback": Entry(
        module="rollback",
        summary="Put a sandbox back to what it was at CHECKPOINT, an id or a name.",
    ),
    "fork": Entry(
        module="fork",
        summary="Make children of a running sandbox as it is now, and print their ids.",
    ),
    "template": Entry(module="templates", summary="Create, list and remove templates."),
    "image": Entry(module="images", summary="Build, import, list, sign and remove images."),
    "key": Entry(module="keys", summary="Show this host's key, and trust those of other hosts."),
    "token": Entry(module="tokens", summary="Create, list and revoke access tokens."),
    "tenant": Entry(module="tenants", summary="Create, list, change and remove tenants."),
    "usage": Entry(module="usage", summary="Show what a tenant has, and what it may have."),
    "audit": Entry(module="audit", summary="Show who did what, or tried, the newest first."),
    "bench": Entry(
        module="bench",
        summary="Measure what vmpool costs here, beside what else could run the same.",
    ),
    "doctor": Entry(module="diagnosis", summary="Say what this host lacks and how to mend it."),
    "version": Entry(
        module="version", summary="Print the versions of vmpool and of what it runs on."
    ),
}


class Commands(click.Group):
    """The commands of `COMMANDS`, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- as click has it
        """Return the names in the order of the table: what a newcomer needs comes first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command, `None` when there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = importlib.import_module(f"vmpool.cli.{entry.module}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: vmpool up",
)
@click.version_option(package_name="vmpool", prog_name="vmpool")
@click.option("--debug", is_flag=True, help="Log what happens, and show a failure's stack trace.")
def program(*, debug: bool) -> None:
    """Run untrusted code in virtual machines that restore from snapshots in milliseconds."""
    report.log_to_stderr(debug=debug)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    Args:
        argv: Arguments without the program's name; those of the process when `None`.
    """
    sys.exit(_run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    """Run one command; turn however it ended into words and an exit code."""
    entry = COMMANDS.get(next((word for word in argv if not word.startswith("-")), ""))
    debug = "--debug" in argv[:1]
    try:
        ended = program.main(args=argv, prog_name="vmpool", standalone_mode=False)
    except click.ClickException as err:
        err.show()
        if isinstance(err, click.NoSuchOption) and entry is not None and _mirrors(entry):
            report.say("An option of the program? Put -- before it.")
        return ExitCode.USAGE if entry is None or not _mirrors(entry) else entry.failure
    except (click.Abort, KeyboardInterrupt):
        report.say("interrupted")
        return ExitCode.INTERRUPTED
    except VmpoolError as err:
        if debug:
            raise
        report.show(err, as_json="--json" in _own_options(argv))
        return report.exit_code(err, failure=entry.failure if entry else ExitCode.FAILED)
    return ended if isinstance(ended, int) else ExitCode.OK


def _mirrors(entry: Entry) -> bool:
    return entry.failure is ExitCode.NOT_RUN


def _own_options(argv: list[str]) -> list[str]:
    """Return the words that are vmpool's, not the guest program's."""
    return argv[: argv.index("--")] if "--" in argv else argv
