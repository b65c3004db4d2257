"""State: which state directory a command works on, and the settings that go with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from vmpool import config
from vmpool.client.endpoint import found_state
from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.config import Settings

C = TypeVar("C", bound="Callable[..., Any]")


def own_state() -> Path:
    """Return the state directory of the settings, for a command that works on it.

    Raises:
        HostError: `invalid_settings`.
    """
    return config.load().state


def _state_option(default: Callable[[], Path]) -> Callable[[C], C]:
    return click.option(
        "--state",
        envvar="VMPOOL_STATE",
        type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
        default=default,
        metavar="DIR",
        help="State directory.  [default: that of the settings]",
    )


state_option = _state_option(own_state)

client_state_option = _state_option(found_state)

_SERVER_OPTIONS = (
    click.option("--listen", metavar="HOST:PORT", help="Address to serve on."),
    click.option(
        "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Settings."
    ),
    click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
        metavar="DIR",
        help="State directory.  [default: that of the settings]",
    ),
    click.option("--insecure-no-tokens", is_flag=True, help="Ask for no tokens; on loopback only."),
)


def server_options(command: C) -> C:
    """Give a command the options that `settings_from` takes."""
    for option in reversed(_SERVER_OPTIONS):
        command = option(command)
    return command


def settings_from(
    *,
    listen: str | None,
    config_file: Path | None,
    state: Path | None,
    insecure_no_tokens: bool,
) -> Settings:
    """Return the settings, with what was given on the command line before the rest.

    Raises:
        HostError: `invalid_settings`, or `state_unusable`.
    """
    given = {"VMPOOL_LISTEN": listen, "VMPOOL_STATE": None if state is None else str(state)}
    overridden = {name: value for name, value in given.items() if value is not None}
    settings = config.load(config_file, environ=os.environ | overridden)
    usable(settings.state)
    if not insecure_no_tokens:
        return settings
    return msgspec.structs.replace(settings, insecure_no_tokens=True)


def usable(state: Path) -> Path:
    """Return a state directory that can be written, made if it was not there.

    Raises:
        HostError: `state_unusable`.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise _unusable(state, err.strerror or str(err)) from err
    if not os.access(state, os.W_OK | os.X_OK):
        raise _unusable(state, "this account may not write there")
    return state


def journal_path(state: Path) -> Path:
    """Return where the journal of a state directory is."""
    return state / "vmpool.db"


def _unusable(state: Path, why: str) -> HostError:
    return HostError(
        f"the state directory {str(state)!r} cannot be used: {why}",
        code="state_unusable",
        remedy="run as the account that owns it, or choose another: --state DIR, or VMPOOL_STATE",
    )
