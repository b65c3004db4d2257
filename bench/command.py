"""Command: `vmpool bench` and `python -m bench`: measure, show a run, compare two."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from bench import comparison, facts, record
from bench.measurement import Effort
from bench.report import Report
from bench.suite import MEASUREMENTS, Outcome, Plan, run
from bench.verdict import as_lines
from vmpool import config
from vmpool.cli import report as terminal
from vmpool.cli.images import build_image
from vmpool.cli.listening import Interrupts
from vmpool.cli.progress import Progress
from vmpool.cli.report import ExitCode
from vmpool.errors import HostError, NotFoundError, VmpoolError
from vmpool.image import Freshness, Library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from vmpool.config import Settings
    from vmpool.image import Image

NAMES = [one.name for one in MEASUREMENTS]

RUN_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(
    invoke_without_command=True,
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
    help="Image to measure, built if it is not there. Repeatable.  [default: python]",
)
@click.option("--quick", is_flag=True, help="Fewer samples: under 3 minutes, not under 30.")
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
@click.pass_context
def command(
    ctx: click.Context,
    *,
    state: Path | None,
    names: tuple[str, ...],
    quick: bool,
    only: tuple[str, ...],
    json_file: Path | None,
) -> ExitCode | None:
    """Measure what vmpool costs here, beside what else could run the same.

    Opens the product on a state directory that no server uses at the time, and leaves it as it was.
    Targets that are missed are no failure; measurements that could not be made are.
    """
    if ctx.invoked_subcommand is not None:
        return None
    settings = _settings(state)
    plan = Plan(
        settings=settings,
        images=asyncio.run(_images(settings, names)),
        measurements=[one for one in MEASUREMENTS if one.name in (only or NAMES)],
        effort=Effort.QUICK if quick else Effort.FULL,
    )
    outcome = Outcome()
    before = facts.moment()
    try:
        return _run(plan, outcome)
    finally:  # a fault in one measurement does not cost what the others found
        found = Report(
            effort=plan.effort,
            machine=facts.machine(),
            before=before,
            after=facts.moment(),
            outcome=outcome,
            commit=facts.commit(),
        )
        click.echo(found.render())
        if json_file is not None:
            json_file.write_text(json.dumps(found.as_data(), separators=(",", ":")) + "\n")


@command.command()
@click.argument("run_file", type=RUN_FILE, metavar="FILE")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory that is written into, made if need be.  [default: that of FILE]",
)
def report(*, run_file: Path, out: Path | None) -> None:
    """Make a page of a run, which carries all of it, and a picture of each chart.

    FILE is what --json wrote, or such a page.
    """
    held = record.load(run_file)
    page = _page()
    directory = run_file.parent if out is None else out
    directory.mkdir(parents=True, exist_ok=True)
    whole = directory / f"{run_file.stem}.html"
    whole.write_text(page.render(held))
    click.echo(whole)
    for name, content in page.pictures(held):
        picture = directory / f"{run_file.stem}-{name}"
        picture.write_bytes(content)
        click.echo(picture)


@command.command()
@click.argument("before", type=RUN_FILE, metavar="BEFORE")
@click.argument("after", type=RUN_FILE, metavar="AFTER")
@click.option("--all", "everything", is_flag=True, help="Show also what has not changed.")
def compare(*, before: Path, after: Path, everything: bool) -> ExitCode:
    """Say what became slower or larger from one run to another, beyond the noise.

    Exits with 1 when anything did. BEFORE and AFTER are what --json wrote, or pages.
    """
    found = comparison.compare(record.load(before), record.load(after))
    for line in as_lines(found, everything=everything):
        click.echo(line)
    return ExitCode.FAILED if found.worse else ExitCode.OK


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


async def _images(settings: Settings, names: Sequence[str]) -> list[Image]:
    """Return the images, built where they are not there, before anything is opened.

    Raises:
        VmpoolError: As `build_image`.
    """
    found = []
    for name in names:
        try:
            found.append(Library(settings.state).load(name))
        except NotFoundError:
            with Progress(sys.stderr) as progress:
                made = build_image(
                    name, state=settings.state, freshness=Freshness.KEPT, progress=progress
                )
                found.append(await made)
    return found


def _page() -> ModuleType:
    """Import what draws, when it is asked for: measuring does without.

    Raises:
        HostError: `bench_libraries_missing`.
    """
    try:
        return importlib.import_module("bench.page")
    except ModuleNotFoundError as err:
        raise HostError(
            f"{err.name} is not installed, which draws the charts",
            code="bench_libraries_missing",
            remedy="pip install 'vmpool[bench]', or make bench, which does",
        ) from err


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
