"""What is left of a control group that cannot be removed, as the kernel shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmpool.engine.qemu.jail import cgroup
from vmpool.errors import EngineError


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine's directory, and a group of its name that says it has processes."""
    monkeypatch.setattr(cgroup, "_EMPTY_TIMEOUT", 0.0)
    group = tmp_path / "groups/m1"
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    directory = tmp_path / "m1"
    directory.mkdir()
    (directory / cgroup.FILE).write_text(str(group))
    return directory


def test_a_group_with_processes_that_do_not_end_is_found_again(machine: Path) -> None:
    found = cgroup.of_machine(machine)
    assert found is not None
    with pytest.raises(EngineError) as caught:
        found.remove()
    assert caught.value.error_code == "process_stuck"
    assert cgroup.of_machine(machine) is not None


def test_an_empty_group_that_stays_is_given_up(machine: Path) -> None:
    found = cgroup.of_machine(machine)
    assert found is not None
    (found.path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    found.remove()  # a directory with files in it is not removed, as one of the kernel's would be
    assert cgroup.of_machine(machine) is None
