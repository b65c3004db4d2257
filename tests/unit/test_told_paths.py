"""What a caller is told of a disk that fails does not say where the host keeps things."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmpool import delta, snapshot
from vmpool.clone.plug import Plug
from vmpool.clone.waiting import claim_directory
from vmpool.errors import HostError, SnapshotError

NOWHERE = Path("/proc/state/run/clones/m1")
"""Where nobody can make anything, root neither."""

DEEDS: dict[str, Callable[[], object]] = {
    "a machine's directory": lambda: claim_directory(NOWHERE.parent),
    "a machine's network": lambda: Plug(slot=1).write(NOWHERE),
    "a snapshot": lambda: snapshot.begin(NOWHERE),
    "the pages of a checkpoint": lambda: delta.Writer(NOWHERE / "pages", []),
}


@pytest.mark.parametrize("what", DEEDS)
def test_what_cannot_be_written_is_told_without_its_path(what: str) -> None:
    with pytest.raises((HostError, SnapshotError)) as caught:
        DEEDS[what]()
    assert caught.value.error_code in {"state_unwritable", "snapshot_unsaved"}
    assert "/" not in caught.value.message
