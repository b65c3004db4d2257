"""Packages: how the tools that a host lacks come to it.

Decides which Debian or Ubuntu packages bring them, and with which commands; `install` carries a
plan out through `apt`. It refuses to guess on distributions without apt: there it only names what
is missing. What else a host needs is `doctor`'s to say.

Run as a program (`python3 -m vmpool.packages`) it installs what is missing, with the argument
`tests` also what only the tests need, with `bench` what benchmarks compare with.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool import apt
from vmpool.errors import DiskFullError, HostError, VmpoolError
from vmpool.model import GIB
from vmpool.tools import (
    BENCH_TOOLS,
    QEMU,
    QEMU_SINCE,
    TEST_TOOLS,
    needed,
    query_missing,
    query_qemu_version,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vmpool.tools import Tool

NEEDED_BYTES = 1 * GIB
"""What the packages with all they depend on take, unpacked and as archives, and then some."""

_TOO_OLD = {  # releases whose own QEMU is too old, and no backport exists
    "buster": "3.1",
    "bullseye": "5.2",
    "bionic": "2.11",
    "focal": "4.2",
    "jammy": "6.2",
}
_WITH_BACKPORTS = "bookworm"  # its own QEMU is 7.2
_BACKPORTED = frozenset(
    {
        *("qemu-system-x86", "qemu-utils", "seabios"),
        # A libvirt that knows that QEMU, in one version; a gVisor that is not three years old.
        *("libvirt-daemon-driver-qemu", "libvirt-daemon-common", "runsc"),
    }
)
_GROUPS: dict[str, tuple[Tool, ...]] = {"tests": TEST_TOOLS, "bench": BENCH_TOOLS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The distribution that the host runs, as os-release(5) tells it.

    Attributes:
        codename: The Debian or Ubuntu release that its packages are of; empty if unknown.
    """

    name: str
    codename: str

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read the text of `/etc/os-release`; derivatives count as what they derive from."""
        fields = {}
        for line in text.splitlines():
            key, separator, value = line.partition("=")
            if separator and not key.startswith("#"):
                fields[key.strip()] = "".join(shlex.split(value))
        codename = (
            fields.get("UBUNTU_CODENAME")
            or fields.get("DEBIAN_CODENAME")
            or fields.get("VERSION_CODENAME", "")
        )
        return cls(name=fields.get("PRETTY_NAME", "this distribution"), codename=codename)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What brings missing packages.

    Attributes:
        packages: Names, sorted.
        source: An apt source to add first, as path and text; `None` when none is needed.
        commands: apt-get's command lines, in order.
    """

    packages: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    source: tuple[Path, str] | None = None

    def script(self, *, prefix: str = "sudo ") -> str:
        """Return the whole plan as one shell line; `prefix` stands before each command."""
        lines = []
        if self.source is not None:
            path, text = self.source
            arguments = " ".join(shlex.quote(line) for line in text.splitlines())
            lines.append(f"printf '%s\\n' {arguments} | {prefix}tee {path} >/dev/null")
        lines.append(f"{prefix}apt-get update")
        lines += [f"{prefix}{shlex.join(command)}" for command in self.commands]
        return " && ".join(lines)


def plan(missing: Iterable[Tool], *, release: Release, sources: str) -> Plan:
    """Decide how `missing` is brought to a host with apt.

    Args:
        missing: What is absent, or too old.
        release: The host's distribution.
        sources: All apt sources of the host, both formats, joined by empty lines.

    Raises:
        HostError: `qemu_too_old`: QEMU is missing and the distribution has none that is new enough.
    """
    names = frozenset(tool.package for tool in missing)
    if QEMU.package in names:
        names |= {"seabios"}  # apt would leave the one that is there, however old
    backported = names & _BACKPORTED
    if QEMU.package in names and release.codename in _TOO_OLD:
        raise too_old(f"{release.name} has QEMU {_TOO_OLD[release.codename]}")
    if not backported or release.codename != _WITH_BACKPORTS:
        return Plan(packages=tuple(sorted(names)), commands=(apt.install_command(names),))
    suite = f"{release.codename}-backports"
    rest = names - _BACKPORTED
    source = None
    if not apt.has_suite(sources, suite):
        source = (apt.BACKPORTS, apt.backports_source(sources, suite))
    return Plan(
        packages=tuple(sorted(names)),
        source=source,
        commands=(
            apt.install_command(backported, suite=suite),
            *((apt.install_command(rest),) if rest else ()),
        ),
    )


def too_old(finding: str) -> HostError:
    """Return the error for a QEMU that is too old; `finding` says where it was seen."""
    wanted = ".".join(str(number) for number in QEMU_SINCE[:2])
    return HostError(
        f"{finding}, but vmpool needs {wanted} or newer",
        code="qemu_too_old",
        remedy="use Debian 12, Ubuntu 24.04 or anything newer, or put a QEMU of your own first "
        "on the PATH",
    )


def plan_for_this_host(missing: Iterable[Tool]) -> Plan:
    """Plan with what `/etc` says about this host.

    Raises:
        HostError: `qemu_too_old`, or `packages_missing` on a host without apt.
    """
    missing = tuple(missing)
    if shutil.which("apt-get") is None:
        names = ", ".join(f"{tool.name} ({tool.purpose})" for tool in missing)
        raise HostError(
            f"missing: {names}; there is no apt here to install them with",
            code="packages_missing",
            remedy="install them with your distribution's package manager; Debian's packages are "
            + ", ".join(sorted({tool.package for tool in missing})),
        )
    etc = Path("/etc")
    release = Release.parse((etc / "os-release").read_text())
    return plan(missing, release=release, sources=apt.read_sources(etc))


async def ensure(report: apt.Report, wanted: Sequence[Tool] | None = None) -> None:
    """Install what this host lacks. *Idempotent*, and quick when nothing is missing.

    Args:
        report: Is told what is being done.
        wanted: What there shall be; `None` for all that vmpool uses under this account.

    Raises:
        HostError: `packages_missing` with the remedy when they cannot be installed from here;
            `qemu_too_old` when this distribution has no QEMU that is new enough;
            `package_install_failed` with the end of apt-get's output.
        DiskFullError: There is no room for the packages.
    """
    wanted = needed() if wanted is None else wanted
    missing = await query_missing(wanted)
    if not missing:
        return
    await install(plan_for_this_host(missing), report)
    still = await query_missing(wanted)
    if QEMU in still and (version := await query_qemu_version()) is not None:
        raise too_old(f"{QEMU.find()} is QEMU {'.'.join(map(str, version))}")
    if still:
        raise HostError(
            f"installed, but not found: {', '.join(tool.name for tool in still)}",
            code="packages_missing",
            remedy="see that they are on the PATH",
        )


async def install(wanted: Plan, report: apt.Report) -> None:
    """Carry a plan out. *Idempotent.*

    Raises:
        HostError: `packages_missing` without root's rights, with the commands to run as remedy;
            `package_install_failed`.
        DiskFullError: There is no room for the packages.
    """
    if os.geteuid() != 0:
        prefix = "sudo " if shutil.which("sudo") else ""
        raise HostError(
            f"missing or too old: {', '.join(wanted.packages)}; installing them takes root",
            code="packages_missing",
            remedy=("run: " if prefix else "run as root: ") + wanted.script(prefix=prefix),
        )
    free = shutil.disk_usage("/usr").free
    if free < NEEDED_BYTES:
        raise DiskFullError(
            f"installing {', '.join(wanted.packages)} takes up to {NEEDED_BYTES >> 20} MiB, "
            f"and {free >> 20} MiB are free under /usr"
        )
    refreshed = wanted.source is not None
    if wanted.source is not None:
        await _add_source(*wanted.source, report)
    for command in wanted.commands:
        try:
            await apt.run(command, report)
        except HostError:  # most often: the lists are missing or older than the mirror
            if refreshed:
                raise
            await apt.run(apt.UPDATE, report)
            refreshed = True
            await apt.run(command, report)


async def _add_source(path: Path, text: str, report: apt.Report) -> None:
    """Let apt know a source; take it away again if apt cannot use it."""
    try:
        await asyncio.to_thread(path.write_text, text)
    except OSError as err:
        raise HostError(
            f"cannot write {path}: {err.strerror}", code="package_install_failed"
        ) from err
    try:
        await apt.run(apt.UPDATE, report)
    except BaseException:
        os.unlink(path)  # noqa: PTH108 - ASYNC240 would have a thread for this one call
        raise


def main() -> int:
    """Install what is missing; return the exit code."""
    wanted = (*needed(), *_GROUPS.get(" ".join(sys.argv[1:]), ()))
    try:
        asyncio.run(ensure(functools.partial(print, flush=True), wanted))
    except VmpoolError as err:
        print(f"error: {err.message}\n       {err.remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
