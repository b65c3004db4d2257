"""Bench: `vmpool bench`, which is the checkout's `bench/` and no part of the installed package.

What it measures beside vmpool, and how, is pieces of the tests and tools that nobody who serves
needs; and a number is worth something only together with the commit that it is of.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import click

import vmpool
from vmpool.errors import HostError

_SUITE = Path("bench", "command.py")


def _found(checkout: Path) -> click.Command:
    """Return the suite's own command, or one that says where there is one."""
    if not (checkout / _SUITE).is_file():
        return _absent
    found = importlib.import_module("bench.command").command
    assert isinstance(found, click.Command)
    return found


@click.command(
    "bench",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    add_help_option=False,
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def _absent(*, words: tuple[str, ...]) -> None:  # noqa: ARG001 -- whatever was asked for
    """Say that the suite is in the checkout."""
    raise HostError(
        "the benchmark suite is not installed with the package",
        code="bench_not_installed",
        remedy="git clone the sources, and run `make bench` in them",
    )


command = _found(Path(vmpool.__file__).parent.parent)
