"""Command: `python -m bench`, from options to a table and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from bench import facts
from bench.measurement import Effort
from bench.report import Report
from bench.suite import MEASUREMENTS, Outcome, Plan, run
from vmpool import config
from vmpool.cli import report as terminal
from vmpool.cli.listening import Interrupts
from vmpool.cli.progress import Progress
from vmpool.cli.report import ExitCode
from vmpool.errors import HostError, NotFoundError, VmpoolError
from vmpool.image import Library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmpool.config import Settings
    from vmpool.image import Image

NAMES = [one.name for one in MEASUREMENTS]


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Measurements: " + "; ".join(f"{one.name}: {one.summary}" for one in MEASUREMENTS),
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    metavar="DIR",
    help="State directory with the images.  [default: that of the settings, as vmpool up]",
)
@click.option(
    "-t",
    "--template",
    "names",
    multiple=True,
    default=("python",),
    metavar="NAME",
    help="Image to measure, built before. Repeatable.  [default: python]",
)
@click.option("--quick", is_flag=True, help="Fewer samples: under 2 minutes, not under 8.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(NAMES),
    help="Measure this alone. Repeatable.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write everything with all samples as JSON.",
)
def command(
    *,
    state: Path | None,
    names: tuple[str, ...],
    quick: bool,
    only: tuple[str, ...],
    json_file: Path | None,
) -> ExitCode:
    """Measure what vmpool costs on this machine.

    Opens the product on a state directory that no server uses at the time, and leaves it as it was.
    Targets that are missed are no failure; measurements that could not be made are.
    """
    settings = _settings(state)
    plan = Plan(
        settings=settings,
        images=_images(settings, names),
        measurements=[one for one in MEASUREMENTS if one.name in (only or NAMES)],
        effort=Effort.QUICK if quick else Effort.FULL,
    )
    outcome = Outcome()
    before = facts.moment()
    ended = _run(plan, outcome)
    report = Report(
        effort=plan.effort,
        machine=facts.machine(),
        before=before,
        after=facts.moment(),
        outcome=outcome,
    )
    click.echo(report.render())
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_data(), indent=1) + "\n")
    return ended


def _run(plan: Plan, outcome: Outcome) -> ExitCode:
    """Measure; whatever ends it early, what was found by then is in `outcome`."""
    try:
        asyncio.run(_measure(plan, outcome))
    except KeyboardInterrupt:
        terminal.say("interrupted; what was measured until then:")
        return ExitCode.INTERRUPTED
    except TimeoutError:
        terminal.say("out of time; what was measured until then:")
    return ExitCode.OK if outcome.complete else ExitCode.FAILED


async def _measure(plan: Plan, outcome: Outcome) -> None:
    with Interrupts(), Progress(sys.stderr) as progress:
        await run(plan, outcome, progress=progress)


def _settings(state: Path | None) -> Settings:
    given = {} if state is None else {"VMPOOL_STATE": os.fspath(state)}
    return config.load(environ=os.environ | given)


def _images(settings: Settings, names: Sequence[str]) -> list[Image]:
    """Return the images, before anything is opened or made.

    Raises:
        HostError: `bench_image_missing`; the remedy is the command that builds it.
    """
    found = []
    for name in names:
        try:
            found.append(Library(settings.state).load(name))
        except NotFoundError as err:
            build = ["vmpool", "image", "build", name, "--state", os.fspath(settings.state)]
            raise HostError(
                f"there is no image {name!r} in {os.fspath(settings.state)!r}",
                code="bench_image_missing",
                remedy=f"build it: {shlex.join(build)}",
            ) from err
    return found


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the benchmark and exit with its code.

    Args:
        argv: Arguments without the program's name; those of the process when `None`.
    """
    terminal.log_to_stderr(debug=False)
    sys.exit(_main(argv))


def _main(argv: Sequence[str] | None) -> int:
    with contextlib.suppress(BrokenPipeError):
        try:
            ended = command.main(args=argv, prog_name="python -m bench", standalone_mode=False)
        except click.ClickException as err:
            err.show()
            return ExitCode.USAGE
        except (click.Abort, KeyboardInterrupt):
            terminal.say("interrupted")
            return ExitCode.INTERRUPTED
        except VmpoolError as err:
            terminal.show(err, as_json=False)
            return ExitCode.FAILED
        return ended if isinstance(ended, int) else ExitCode.OK
    return ExitCode.OK
