"""How missing tools come to each distribution; the plans are golden files, as shell lines.

`UPDATE_GOLDEN=1` writes them anew, for a person to read in the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool import apt, packages
from vmpool.errors import HostError
from vmpool.packages import Release
from vmpool.tools import (
    BENCH_TOOLS,
    QEMU,
    ROOT_TOOLS,
    TEST_TOOLS,
    TOOLS,
    needed,
    parse_qemu_version,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "packages"

BOOKWORM = Release(name="Debian GNU/Linux 12 (bookworm)", codename="bookworm")
DEB822 = """\
Types: deb
# a comment inside a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm-backports main
deb-src http://source.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://line.example/debian bookworm main contrib
"""


@pytest.mark.parametrize(
    ("name", "release", "sources"),
    [
        ("bookworm", BOOKWORM, DEB822),
        ("bookworm-one-line-sources", BOOKWORM, ONE_LINE),
        ("bookworm-no-sources", BOOKWORM, ""),
        (
            "bookworm-has-backports",
            BOOKWORM,
            f"{ONE_LINE}\ndeb http://b.example/debian bookworm-backports main",
        ),
        ("trixie", Release(name="Debian GNU/Linux 13 (trixie)", codename="trixie"), ""),
        ("noble", Release(name="Ubuntu 24.04.2 LTS", codename="noble"), ""),
    ],
)
def test_a_plan_is_as_it_was_reviewed(name: str, release: Release, sources: str) -> None:
    script = packages.plan(TOOLS, release=release, sources=sources).script() + "\n"
    golden = GOLDEN / f"{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()


def test_a_release_with_an_old_qemu_and_no_backport_is_refused_in_words() -> None:
    jammy = Release(name="Ubuntu 22.04.5 LTS", codename="jammy")
    with pytest.raises(HostError, match=r"Ubuntu 22\.04\.5 LTS has QEMU 6\.2, but .* 8\.2") as info:
        packages.plan([QEMU], release=jammy, sources="")
    assert info.value.error_code == "qemu_too_old"
    assert "Ubuntu 24.04" in info.value.remedy


def test_an_old_release_with_a_qemu_of_its_own_still_gets_the_rest() -> None:
    jammy = Release(name="Ubuntu 22.04.5 LTS", codename="jammy")
    plan = packages.plan([t for t in TOOLS if t is not QEMU], release=jammy, sources="")
    assert "mmdebstrap" in plan.packages
    assert "qemu-system-x86" not in plan.packages


def test_a_host_without_apt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match=r"no apt here") as info:
        packages.plan_for_this_host(TOOLS)
    assert info.value.error_code == "packages_missing"
    for tool in TOOLS:
        assert tool.name in info.value.message
        assert tool.package in info.value.remedy


async def test_without_root_the_commands_are_printed_and_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    plan = packages.plan(TOOLS, release=BOOKWORM, sources="")
    lines: list[str] = []
    with pytest.raises(HostError) as info:
        await packages.install(plan, lines.append)
    assert info.value.error_code == "packages_missing"
    assert "apt-get" in info.value.remedy
    assert "-t bookworm-backports" in info.value.remedy
    assert lines == []


def test_root_needs_what_networks_take_and_others_what_building_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert needed() == (*TOOLS, *ROOT_TOOLS)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    plan = packages.plan(needed(), release=BOOKWORM, sources="")
    assert set(plan.packages) >= {"uidmap", *(tool.package for tool in TOOLS)}


def test_a_tool_of_qemus_own_comes_from_where_qemu_comes_from() -> None:
    plan = packages.plan(TEST_TOOLS, release=BOOKWORM, sources="")
    assert plan.commands[0] == apt.install_command(["qemu-utils"], suite="bookworm-backports")
    assert "qemu-system-x86" not in plan.packages


def test_what_is_compared_with_comes_in_one_version_and_is_not_needed() -> None:
    plan = packages.plan(BENCH_TOOLS, release=BOOKWORM, sources="")
    newer, rest = plan.commands
    assert {"libvirt-daemon-driver-qemu", "libvirt-daemon-common", "runsc"} <= set(newer)
    assert "bookworm-backports" in newer
    assert {"crun", "bubblewrap", "python3-libvirt"} <= set(rest)
    assert not {tool.package for tool in needed()} & {"crun", "bubblewrap", "runsc"}


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_CODENAME=bookworm\n', "bookworm"),
        ('NAME="Linux Mint"\nVERSION_CODENAME=wilma\nUBUNTU_CODENAME=noble\n', "noble"),
        ('PRETTY_NAME="Fedora Linux 42"\nVERSION_CODENAME=""\n', ""),
        ("", ""),
    ],
)
def test_os_release_tells_whose_packages_a_host_has(text: str, codename: str) -> None:
    assert Release.parse(text).codename == codename


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", (10, 0, 2)),
        ("QEMU emulator version 8.2 (v8.2)", (8, 2, 0)),
        ("bash: qemu: not found", None),
    ],
)
def test_a_qemu_version_is_read(text: str, version: tuple[int, int, int] | None) -> None:
    assert parse_qemu_version(text) == version


def test_a_disabled_source_has_no_suites() -> None:
    text = "Types: deb\nEnabled: no\nURIs: http://m.example/debian\nSuites: bookworm-backports\n"
    assert not apt.has_suite(text, "bookworm-backports")


@given(st.text())
def test_any_text_can_stand_in_a_sources_file(text: str) -> None:
    assert apt.backports_source(text, "x-backports").startswith("Types: deb\nURIs: ")


def ignore(line: str) -> None:
    """Take a report and do nothing with it."""


def apt_get_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in apt-get's place."""
    program = tmp_path / "apt-get"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


async def test_what_apt_get_does_is_told_while_it_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_get_that(tmp_path, monkeypatch, "echo Reading lists; echo Unpacking zstd")
    lines: list[str] = []
    await apt.run(apt.UPDATE, lines.append)
    assert lines == ["apt-get -q -o DPkg::Lock::Timeout=300 update", "Unpacking zstd"]


async def test_the_end_of_a_failed_apt_gets_output_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_get_that(tmp_path, monkeypatch, "echo E: no such package >&2; exit 100")
    with pytest.raises(HostError, match=r"ended with 100: E: no such package") as info:
        await apt.run(apt.UPDATE, ignore)
    assert info.value.error_code == "package_install_failed"


async def test_an_apt_get_that_hangs_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt_get_that(tmp_path, monkeypatch, "exec sleep 60")
    monkeypatch.setattr(apt, "DEADLINE", 0.05)
    with pytest.raises(HostError, match=r"did not end within"):
        await apt.run(apt.UPDATE, ignore)


async def test_a_failed_install_is_tried_again_after_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = tmp_path / "fresh"
    apt_get_that(
        tmp_path, monkeypatch, f'case "$*" in *update) : >{fresh};; *) test -e {fresh};; esac'
    )
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    lines: list[str] = []
    trixie = Release(name="Debian 13", codename="trixie")
    await packages.install(packages.plan(TOOLS, release=trixie, sources=""), lines.append)
    verbs = ["update" if line.endswith("update") else "install" for line in lines]
    assert verbs == ["install", "update", "install"]


async def test_a_source_that_apt_cannot_use_is_taken_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "vmpool-backports.sources"
    apt_get_that(tmp_path, monkeypatch, f"cat {source}; exit 100")
    monkeypatch.setattr(apt, "BACKPORTS", source)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(HostError, match=r"Suites: bookworm-backports"):
        await packages.install(packages.plan(TOOLS, release=BOOKWORM, sources=""), ignore)
    assert not source.exists()
