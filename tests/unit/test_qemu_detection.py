"""Which walls a host can have, and what is done about those that it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmpool.engine.qemu import detection
from vmpool.engine.qemu.jail import cgroup, contents
from vmpool.engine.qemu.jail.limits import SMALL, Limits
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.errors import HostError
from vmpool.model import GIB, MIB, Accelerator, MachineSpec, Transport

QEMU = "qemu-system-x86_64"

_DETECT = """
from vmpool.engine.qemu import detection
found = detection.detect("qemu-system-x86_64", "10.0.2")
print(*sorted(found.walls))
print(*(lack.wall for lack in found.lacks if lack.why and lack.remedy))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the capability to lose")
@pytest.mark.parametrize(
    ("lost", "walls", "lacks"),
    [
        ("-sys_nice", "account landlock namespaces root seccomp", ""),
        ("-sys_admin", "account landlock seccomp", "namespaces root"),
    ],
)
def test_what_a_host_cannot_have_is_left_out_and_said(lost: str, walls: str, lacks: str) -> None:
    prefix = ("setpriv", f"--bounding-set={lost}")
    ended = subprocess.run(
        [*prefix, sys.executable, "-c", _DETECT], check=True, capture_output=True, text=True
    )
    assert ended.stdout.splitlines() == [walls, lacks]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give itself up, or not")
def test_where_root_cannot_be_given_up_nothing_is_started() -> None:
    ended = subprocess.run(
        ["setpriv", "--bounding-set=-setuid", sys.executable, "-c", _DETECT],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "cannot isolate QEMU" in ended.stderr.splitlines()[-1]


def test_a_qemu_that_is_a_script_is_not_seen_through_and_has_no_root(tmp_path: Path) -> None:
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    with pytest.raises(HostError) as caught:
        contents.of_qemu(str(script))
    assert caught.value.error_code == "contents_unknown"
    found = detection.detect(str(script), "10.0.2")
    assert not {Wall.ROOT, Wall.LANDLOCK} & found.walls
    found.close()


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + b"\xff" * 100])
def test_a_damaged_program_is_told_as_such(tmp_path: Path, damage: bytes) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(damage)
    program.chmod(0o755)
    with pytest.raises(HostError) as caught:
        contents.of_program(str(program))
    assert caught.value.error_code == "contents_unknown"


def test_a_program_needs_its_loader_and_libraries_and_qemu_its_firmware() -> None:
    needed = contents.of_qemu(QEMU)
    assert needed.code[0] == Path(shutil.which(QEMU) or "")
    assert {"libc.so.6", "libglib-2.0.so.0"} <= {path.name for path in needed.code}
    assert all(path.exists() for path in needed.readable)
    assert any(list(path.glob("*linuxboot*")) for path in needed.data)


def tree(top: Path, *groups: str, controllers: str = "cpu io memory pids") -> None:
    """Make what a cgroup file system of version 2 shows."""
    for group in ("", *groups):
        directory = top / group
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cgroup.controllers").write_text(controllers)
        (directory / "cgroup.subtree_control").write_text("memory")
        if group:
            (directory / "cgroup.type").write_text("domain")


def mounts(top: Path, within: str = "/") -> str:
    return (
        "22 27 0:21 / /proc rw - proc proc rw\n"
        "33 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        f"41 31 0:38 {within} {top} rw,relatime - cgroup2 cgroup2 rw\n"
    )


def test_root_without_a_service_manager_has_its_groups_at_the_top(tmp_path: Path) -> None:
    tree(tmp_path, "user/session")
    for own in ("/", "/user/session"):
        plan = cgroup.planned(mounts(tmp_path), f"1:memory:/x\n0::{own}\n", is_root=True)
        assert plan == cgroup.Plan(parent=tmp_path / "vmpool")


def test_a_group_of_a_container_is_left_for_one_below(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "cgroup.type").write_text("domain")
    plan = cgroup.planned(mounts(tmp_path, "/docker/x"), "0::/docker/x\n", is_root=True)
    assert plan == cgroup.Plan(parent=tmp_path / "vmpool", leave=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets this attribute")
def test_a_delegated_group_is_used(tmp_path: Path) -> None:
    tree(tmp_path, "system/vmpool.service", "system/vmpool.service/vmpool")
    own = tmp_path / "system/vmpool.service"
    membership = "0::/system/vmpool.service\n"
    with pytest.raises(HostError, match="delegated"):
        cgroup.planned(mounts(tmp_path), membership, is_root=False)
    os.setxattr(own, "trusted.delegate", b"1")
    plan = cgroup.planned(mounts(tmp_path), membership, is_root=False)
    assert plan == cgroup.Plan(parent=own / "vmpool", leave=own)
    assert cgroup.prepare(plan) == own / "vmpool"
    assert (own / "vmpool-server/cgroup.procs").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    ("controllers", "said"), [("cpu", "memory and pids"), ("pids", "memory"), ("", "memory and")]
)
def test_a_host_of_version_1_is_told_what_to_boot(
    tmp_path: Path, controllers: str, said: str
) -> None:
    tree(tmp_path, controllers=controllers)
    with pytest.raises(HostError, match=said) as caught:
        cgroup.planned(mounts(tmp_path), "0::/\n", is_root=True)
    assert "unified_cgroup_hierarchy" in caught.value.remedy
    with pytest.raises(HostError, match="no cgroup file system"):
        cgroup.planned("", "0::/\n", is_root=True)


def test_a_group_is_found_by_its_machines_directory_and_by_no_other_note(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    assert cgroup.of_machine(machine) is None
    note = machine / cgroup.FILE
    note.write_text(str(tmp_path / "groups/mach"))  # cut short as it was written
    assert cgroup.of_machine(machine) is None
    note.write_text(str(tmp_path / "groups/machine"))
    found = cgroup.of_machine(machine)
    assert found is not None
    found.remove()  # there is none: killed before it was made, or after it was removed
    assert not note.exists()


def test_what_cannot_be_limited_is_an_error_that_says_so(tmp_path: Path) -> None:
    made = cgroup.Cgroup(tmp_path / "missing/group", tmp_path / "note")
    with pytest.raises(HostError) as caught:
        made.make(SMALL)
    assert caught.value.error_code == "cgroup_failed"
    with pytest.raises(HostError):
        made.add(os.getpid())


@pytest.mark.parametrize("accelerator", Accelerator)
def test_a_machine_may_use_its_guests_memory_and_what_it_takes_itself(
    accelerator: Accelerator,
) -> None:
    spec = MachineSpec(
        root=Path("/r"),
        memory_bytes=GIB,
        vcpus=2,
        disk_bytes=GIB,
        accelerator=accelerator,
        transport=Transport.SERIAL,
    )
    most = Limits.of(spec)
    assert GIB + 64 * MIB < most.memory_bytes < GIB + 256 * MIB
    assert most.cpus == 3
    assert GIB < most.file_bytes < GIB + 128 * MIB
    assert Limits.of(spec, disk_in_memory_bytes=GIB).memory_bytes == most.memory_bytes + GIB
