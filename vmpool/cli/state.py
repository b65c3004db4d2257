"""State: which state directory a command works on."""

from __future__ import annotations

import os
from pathlib import Path

import click

from vmpool.errors import HostError


def default_state() -> Path:
    """Return where state is kept when nobody says: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmpool")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "vmpool"


state_option = click.option(
    "--state",
    envvar="VMPOOL_STATE",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_state,
    metavar="DIR",
    help="State directory.  [default: /var/lib/vmpool, or ~/.local/state/vmpool if not root]",
)


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
