"""Birth: the options that say what a new sandbox is like, whatever it is made of."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli.confidence import secret_option, secrets_of
from vmpool.cli.reach import network_of, network_options

if TYPE_CHECKING:
    from collections.abc import Callable

_SEED = re.compile(r"seed=(\d{1,19})")


class Rng(click.ParamType[Any]):
    """Where random numbers come from, as the interface has it."""

    name = "rng"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | dict[str, int]:
        """Return a policy's name, or a seed."""
        if value in {"unique", "preserve"}:
            return value
        match = _SEED.fullmatch(value)
        if match is None:
            self.fail(f"{value!r} is not unique, preserve or seed=N", param, ctx)
        return {"seed": int(match[1])}


def birth_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a new sandbox."""
    for option in reversed(
        (
            click.option(
                "--timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                help="Its time is up after so long.",
            ),
            click.option(
                "-e",
                "--env",
                multiple=True,
                metavar="NAME=VALUE",
                help="Variable for all in it. Repeatable.",
            ),
            secret_option("Variable for all in it that is told to nobody"),
            click.option(
                "-m",
                "--metadata",
                multiple=True,
                metavar="NAME=VALUE",
                help="Words of yours. Repeatable.",
            ),
            click.option(
                "--rng",
                type=Rng(),
                metavar="unique|preserve|seed=N",
                help="Where its random numbers come from.  [default: unique]",
            ),
            click.option(
                "--clock",
                type=click.Choice(["now", "frozen-at-snapshot"]),
                help="What time it is in it.  [default: now]",
            ),
        )
    ):
        command = option(command)
    return network_options(command)


def birth_body(
    *,
    timeout: float | None,
    env: tuple[str, ...],
    secrets: tuple[str, ...],
    metadata: tuple[str, ...],
    rng: str | dict[str, int] | None,
    clock: str | None,
    network: str | None,
    **reach: Any,
) -> dict[str, Any]:
    """Return what the options say, as a request has it."""
    body: dict[str, Any] = {"env": pairs("env", env), "metadata": pairs("metadata", metadata)}
    if secrets:
        body["secrets"] = secrets_of(secrets)
    return body | given(timeout=timeout, rng=rng, clock=clock, network=network_of(network, **reach))


def given(**members: object) -> dict[str, Any]:
    """Return the members that were said."""
    return {name: value for name, value in members.items() if value is not None}


def pairs(option: str, words: tuple[str, ...]) -> dict[str, str]:
    """Return `NAME=VALUE` words as a mapping.

    Raises:
        click.UsageError: One has no `=`.
    """
    for word in words:
        if "=" not in word:
            raise click.UsageError(f"--{option} takes NAME=VALUE, not {word!r}")
    return dict(word.split("=", 1) for word in words)
