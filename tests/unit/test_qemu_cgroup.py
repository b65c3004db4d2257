"""Where control groups are made, and what is left of one that stays, as the kernel shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmpool.engine.qemu.jail import cgroup
from vmpool.errors import EngineError, HostError


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


@pytest.fixture
def service(tmp_path: Path) -> Path:
    """The group of a service below the top of all, which systemd has delegated to it."""
    group = tmp_path / "system.slice/vmpool.service"
    group.mkdir(parents=True)
    for each in (tmp_path, group):
        (each / "cgroup.controllers").write_text("cpu io memory pids")
    (group / "cgroup.type").touch()
    os.setxattr(group, "user.delegate", b"1")
    return group


def planned(top: Path, within: str) -> cgroup.Plan:
    mounts = f"30 23 0:26 / {top} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    return cgroup.planned(mounts, f"0::{within}\n", is_root=False)


@pytest.mark.parametrize("below", ["", "/vmpool-server"])
def test_a_service_has_its_machines_in_what_was_delegated_to_it(
    tmp_path: Path, service: Path, below: str
) -> None:
    plan = planned(tmp_path, f"/system.slice/vmpool.service{below}")
    assert plan == cgroup.Plan(parent=service / "vmpool", leave=service)


def test_what_was_not_delegated_is_nobodys_to_divide(tmp_path: Path, service: Path) -> None:
    os.removexattr(service, "user.delegate")
    with pytest.raises(HostError) as caught:
        planned(tmp_path, "/system.slice/vmpool.service")
    assert caught.value.error_code == "cgroup_missing"
    assert "Delegate=yes" in caught.value.remedy
