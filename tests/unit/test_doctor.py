"""What the doctor concludes from what it is shown, and that it looks at this host quickly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.certificates import DAY, Authority
from vmpool import doctor
from vmpool.cli import diagnosis
from vmpool.config import ApiSettings
from vmpool.doctor import (
    Finding,
    State,
    confinement,
    encryption,
    examination,
    judgement,
    network,
    virtualization,
)
from vmpool.doctor.virtualization import EMULATED_HOST_BYTES, Provider
from vmpool.engine.qemu import detection, probe
from vmpool.engine.qemu.jail.wall import Lack, Wall
from vmpool.engine.qemu.probe import Probe
from vmpool.errors import HostError
from vmpool.model import GIB, Accelerator, Processor
from vmpool.tools import QEMU, TOOLS

WORKING = Probe(accelerator=Accelerator.KVM)
ABSENT = Probe(accelerator=Accelerator.TCG, reason="there is no /dev/kvm")
HARDWARE = Provider(extensions=("svm",), modules=("kvm_amd",))
WITH_SVM = Processor(vendor="AuthenticAMD", features=frozenset({"sse2", "svm"}))
WITHOUT_SVM = Processor(vendor="AuthenticAMD", features=frozenset({"sse2"}))


@pytest.mark.parametrize(
    ("finding", "state"),
    [
        (judgement.platform("Linux", "x86_64"), State.OK),
        (judgement.platform("Linux", "aarch64"), State.MISSING),
        (judgement.platform("Darwin", "x86_64"), State.MISSING),
        (judgement.python((3, 11, 0)), State.OK),
        (judgement.python((3, 10, 14)), State.MISSING),
        (judgement.qemu((8, 2, 0), Path("/q")), State.OK),
        (judgement.qemu((7, 2, 19), Path("/q")), State.MISSING),
        (judgement.qemu(None, None), State.MISSING),
        (judgement.tool(TOOLS[1], None), State.MISSING),
        (judgement.tool(TOOLS[1], Path("/x")), State.OK),
        (virtualization.acceleration(WORKING, HARDWARE), State.OK),
        (virtualization.acceleration(ABSENT, HARDWARE), State.DEGRADED),
        (judgement.vsock(usable=True), State.OK),
        (judgement.vsock(usable=False), State.DEGRADED),
        (judgement.pagemap_scan(release="6.1", available=False), State.DEGRADED),
        (judgement.access(), State.OK),
        (judgement.access(failure="not permitted"), State.DEGRADED),
        (judgement.disk(Path("/s"), 100 * GIB), State.OK),
        (judgement.disk(Path("/s"), 5 * GIB), State.DEGRADED),
        (judgement.disk(Path("/s"), 1 * GIB), State.MISSING),
        (judgement.memory(16 * GIB), State.OK),
        (judgement.memory(2 * GIB), State.DEGRADED),
        (judgement.memory(GIB // 2), State.MISSING),
        (judgement.descriptors(1023), State.MISSING),
        (judgement.descriptors(1024), State.DEGRADED),
        (judgement.descriptors(-1), State.OK),
        (judgement.run_directory(Path("/run/vmpool")), State.OK),
        (judgement.run_directory(Path("/" + "d" * 90)), State.MISSING),
    ],
    ids=lambda value: value.name if isinstance(value, Finding) else str(value),
)
def test_each_thing_is_judged(finding: Finding, state: State) -> None:
    assert finding.state is state


def test_each_wall_is_on_or_off_and_then_it_is_said_why_and_what_to_do() -> None:
    lack = Lack(wall=Wall.CGROUP, why="version 1", remedy="boot otherwise")
    *others, last = confinement.walls(set(Wall) - {Wall.CGROUP}, [lack])
    assert {one.state for one in others} == {State.OK}
    assert len(others) == len(Wall) - 1
    assert last.state is State.DEGRADED
    assert "version 1" in last.detail
    assert last.remedy == "boot otherwise"


def test_a_host_with_nobody_to_run_qemu_as_is_not_fit() -> None:
    (only,) = confinement.impossible("no ids", "more ids")
    assert only.state is State.MISSING


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        (HARDWARE, ""),
        (Provider(extensions=(), modules=()), ": the processor shows neither vmx nor svm"),
        (
            Provider(extensions=(), modules=("kvm_pvm",)),
            ": the processor shows neither vmx nor svm, and kvm_pvm does without, for kernels made "
            "for it",
        ),
    ],
)
def test_the_reason_why_kvm_runs_no_guest_is_told(provider: Provider, words: str) -> None:
    found = virtualization.acceleration(ABSENT, provider)
    assert found.detail == "there is no /dev/kvm" + words


@pytest.mark.parametrize(
    ("probe", "vsock", "emulated", "available_bytes", "state", "words"),
    [
        (WORKING, True, None, 0, State.OK, "can run on this machine"),
        (
            WORKING,
            False,
            WITH_SVM,
            EMULATED_HOST_BYTES,
            State.OK,
            "can run in an emulated host, for lack of vhost-vsock here",
        ),
        (
            ABSENT,
            False,
            WITH_SVM,
            EMULATED_HOST_BYTES,
            State.OK,
            "can run in an emulated host, for lack of KVM and vhost-vsock here",
        ),
        (
            ABSENT,
            True,
            WITH_SVM,
            EMULATED_HOST_BYTES - 1,
            State.DEGRADED,
            "neither here, for lack of KVM, nor in an emulated host, which takes 6 GiB of memory",
        ),
        (
            ABSENT,
            True,
            WITHOUT_SVM,
            EMULATED_HOST_BYTES,
            State.DEGRADED,
            "neither here, for lack of KVM, nor in an emulated host: QEMU emulates no processor "
            "with SVM",
        ),
    ],
)
def test_where_the_tests_of_kvm_can_run_is_told(
    *,
    probe: Probe,
    vsock: bool,
    emulated: Processor | None,
    available_bytes: int,
    state: State,
    words: str,
) -> None:
    found = virtualization.ring(
        probe, vsock=vsock, emulated=emulated, available_bytes=available_bytes
    )
    assert (found.state, found.detail) == (state, words)
    assert bool(found.remedy) == (state is not State.OK)


@given(st.integers(0, 120))
def test_a_run_directory_fits_exactly_when_its_longest_socket_does(length: int) -> None:
    run = Path("/" + "r" * length)
    address = os.fsencode(str(run) + judgement.LONGEST_SOCKET)
    fits = judgement.run_directory(run).state is State.OK
    assert fits == (len(address) < 108)  # linux/un.h, with the closing zero


@pytest.mark.parametrize(
    ("most", "state", "words"),
    [
        (None, State.OK, "tracks none yet"),
        (262_144, State.OK, "those of 64 guests"),
        (131_072, State.OK, "those of 32 guests"),
        (65_536, State.DEGRADED, "those of 16 guests"),
    ],
)
def test_room_for_connections_is_told_in_guests(most: int | None, state: State, words: str) -> None:
    found = network.connections(most)
    assert found.state is state
    assert words in found.detail


def test_a_certificate_is_judged_when_there_is_to_be_one(tmp_path: Path) -> None:
    assert encryption.examine(ApiSettings(domain="box.example")) == ()
    authority = Authority()
    chain, key = authority.issue("*.box.example").write(tmp_path)

    def judged(domain: str) -> Finding:
        named = ApiSettings(domain=domain, certificate=chain, certificate_key=key)
        (found,) = encryption.examine(named)
        assert bool(found.remedy) == (found.state is not State.OK)
        return found

    assert judged("box.example:8700").state is State.OK
    assert "*.box.example until" in judged("box.example").detail
    assert judged("other.example").state is State.DEGRADED
    assert "does not name *.other.example" in judged("other.example").detail
    authority.issue("*.box.example", ends=datetime.now(UTC) - DAY).write(tmp_path)
    assert "ended on" in judged("box.example").detail
    key.unlink()
    assert judged("box.example").state is State.MISSING


async def test_whatever_does_not_stand_well_has_a_remedy(tmp_path: Path) -> None:
    findings = await doctor.examine(state=tmp_path / "state", run=tmp_path / "run")
    for finding in findings:
        assert finding.purpose
        assert finding.detail
        assert bool(finding.remedy) == (finding.state is not State.OK), finding
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    assert {"networks", "connections"} <= set(names)


async def test_this_host_is_examined_in_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    await doctor.examine(state=tmp_path, run=tmp_path)
    assert time.monotonic() - began < 20.0


def test_a_missing_thing_makes_a_host_unhealthy_and_a_degraded_one_does_not() -> None:
    good, degraded = judgement.access(), judgement.vsock(usable=False)
    assert doctor.healthy([good, degraded])
    assert not doctor.healthy([good, judgement.qemu(None, None)])


def test_text_and_document_say_the_same() -> None:
    findings = [judgement.qemu(None, None), judgement.access()]
    text = doctor.render_text(findings)
    assert text.splitlines()[0].split() == ["missing", QEMU.name, "not", "found"]
    assert judgement.INSTALL_COMMAND in text
    assert json.loads(json.dumps(doctor.document(findings))) == {
        "healthy": False,
        "checks": [
            {
                "name": finding.name,
                "purpose": finding.purpose,
                "state": finding.state,
                "detail": finding.detail,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


async def test_a_qemu_that_cannot_be_started_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "KVM", "/dev/zero")
    program = tmp_path / "qemu-system-x86_64"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    isolated = detection.detect(str(program), "10.0.2")
    acceleration, ring = await examination._examine_virtualization(program, isolated)
    assert acceleration.state is ring.state is State.DEGRADED
    assert acceleration.detail
    assert "QEMU emulates no processor with SVM" in ring.detail


_EXAMINE = """
import asyncio
from vmpool.doctor import examination
from vmpool.engine.qemu import detection
isolated = detection.detect("qemu-system-x86_64", "10.0.2")
finding = asyncio.run(examination._examine_access(isolated))
print(finding.state, finding.remedy)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root has the capability to lose")
def test_a_host_that_may_not_copy_its_guests_is_told_by_trying() -> None:
    for prefix, said in (
        ((), "ok "),
        (("setpriv", "--bounding-set=-sys_ptrace"), "degraded give the server the capability"),
    ):
        ended = subprocess.run(
            [*prefix, sys.executable, "-c", _EXAMINE], check=True, capture_output=True, text=True
        )
        assert ended.stdout.startswith(said), ended.stdout


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with all that is needed but mmdebstrap, and an apt-get that brings it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("qemu-system-x86_64", "unshare", "touch", "chmod"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    apt_get = programs / "apt-get"
    new = programs / "mmdebstrap"
    apt_get.write_text(f"#!/bin/sh\ntouch {new} && chmod 755 {new}\n")
    apt_get.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    return programs


def test_missing_packages_are_installed_before_the_host_is_looked_at(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = CliRunner()
    before = json.loads(runner.invoke(diagnosis.command, ["--json"]).stdout)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    after = json.loads(runner.invoke(diagnosis.command, ["--json", "--install"]).stdout)
    states = [
        {check["name"]: check["state"] for check in found["checks"]}["mmdebstrap"]
        for found in (before, after)
    ]
    assert states == ["missing", "ok"]


def test_without_root_the_commands_that_install_are_told(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    failed = CliRunner().invoke(diagnosis.command, ["--install"])
    assert isinstance(failed.exception, HostError)
    assert "apt-get" in failed.exception.remedy
    assert "mmdebstrap" in failed.exception.remedy
    assert not (bare / "mmdebstrap").exists()
