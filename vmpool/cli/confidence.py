"""Confidence: secrets that a command line passes on without showing them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

C = TypeVar("C", bound="Callable[..., Any]")


def secret_option(meaning: str) -> Callable[[C], C]:
    """Return the option that names secrets: a value on a command line is nobody's secret."""
    return click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="NAME",
        help=f"{meaning}; it has the value that it has here. Repeatable.",
    )


def secrets_of(names: tuple[str, ...]) -> dict[str, str]:
    """Return secrets by name, from this program's own environment.

    Raises:
        click.UsageError: One is not there.
    """
    for name in names:
        if name not in os.environ:
            raise click.UsageError(f"--secret takes the name of a variable here, not {name!r}")
    return {name: os.environ[name] for name in names}
