"""Apt: Debian's package manager, its sources and its command.

Reads the sources that a host has, writes the one that backports need, runs apt-get and passes on
what it says. Which packages are wanted is `packages`' to say.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from vmpool.errors import HostError
from vmpool.tools import DEBIAN_KEYRING

Report = Callable[[str], None]
"""Takes one line that says what is being done now."""

BACKPORTS = Path("/etc/apt/sources.list.d/vmpool-backports.sources")
DEADLINE = 1800.0
"""Seconds that one apt-get may take."""
STOP_TIMEOUT = 30.0

_APT_GET = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_NEWS = ("Get:", "Unpacking ", "Setting up ")  # what apt-get says about its progress

UPDATE = (*_APT_GET, "update")


def install_command(names: Iterable[str], *, suite: str | None = None) -> tuple[str, ...]:
    """Return the command line that installs packages, from `suite` when it is given."""
    target = () if suite is None else ("-t", suite)
    return (*_APT_GET, "install", "-y", *target, "--no-install-recommends", *sorted(names))


def read_sources(etc: Path) -> str:
    """Return the text of all sources in use, both formats, joined by empty lines."""
    files = [etc / "apt/sources.list", *sorted(etc.glob("apt/sources.list.d/*"))]
    used = [file for file in files if file.suffix in {".list", ".sources"} and file.is_file()]
    return "\n\n".join(file.read_text() for file in used)


def has_suite(sources: str, suite: str) -> bool:
    """Tell whether a source in use has `suite`; a second one of it would make apt complain."""
    return any(suite in suites for _, suites in _parse(sources))


def backports_source(sources: str, suite: str) -> str:
    """Return a deb822 source for `suite`, from the mirror that the host has its packages from."""
    codename = suite.removesuffix("-backports")
    mirrors = [mirror for mirror, suites in _parse(sources) if codename in suites]
    return (
        "Types: deb\n"
        f"URIs: {mirrors[0] if mirrors else _DEFAULT_MIRROR}\n"
        f"Suites: {suite}\n"
        "Components: main\n"
        f"Signed-By: {DEBIAN_KEYRING}\n"
    )


async def run(argv: tuple[str, ...], report: Report) -> None:
    """Run one apt-get command to its end.

    If it is cancelled, apt-get is asked to stop and awaited; what it had unpacked by then stays,
    and the next run goes on from there.

    Args:
        argv: `UPDATE`, or what `install_command` returned.
        report: Is told what apt-get does, as it does it.

    Raises:
        HostError: `package_install_failed`, with the end of apt-get's output.
    """
    report(shlex.join(argv))
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        process_group=0,
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=8)
    try:
        async with asyncio.timeout(DEADLINE):
            async for line in process.stdout:
                tail.append(line.decode(errors="replace").rstrip())
                if tail[-1].startswith(_NEWS):
                    report(tail[-1])
            code = await process.wait()
    except TimeoutError as err:
        raise _failed(argv, f"did not end within {DEADLINE:.0f} s", tail) from err
    finally:
        if process.returncode is None:
            await _end(process)
    if code != 0:
        raise _failed(argv, f"ended with {code}", tail)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask apt-get to stop, which lets dpkg finish the package in hand; insist after a while."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _failed(argv: tuple[str, ...], how: str, tail: Iterable[str]) -> HostError:
    lines = [line for line in tail if line]
    return HostError(
        f"{shlex.join(argv)} {how}: {' / '.join(lines)}",
        code="package_install_failed",
        remedy="mend what apt-get complains about and start again",
    )


def _parse(text: str) -> list[tuple[str, list[str]]]:
    """Return each binary source in use as its first URI and its suites; see sources.list(5)."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        for line in lines:
            if match := re.match(r"deb\s+(?:\[[^]]*]\s+)?(\S+)\s+(\S+)", line):
                found.append((match[1], [match[2]]))
        fields = {
            key.strip().lower(): value.split()
            for key, separator, value in (line.partition(":") for line in lines)
            if separator
        }
        in_use = fields.get("enabled") != ["no"] and "deb" in fields.get("types", [])
        if in_use and fields.get("uris"):
            found.append((fields["uris"][0], fields.get("suites", [])))
    return found
