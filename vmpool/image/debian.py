"""Debian: runs mmdebstrap to make root file systems and to fetch packages, as tar archives."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import signal
import tarfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import HostError, ImageError
from vmpool.image.furnish import EPOCH
from vmpool.image.work import Step, disk_full

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.image.recipe import Recipe, Source

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TERMINATE_TIMEOUT = 15.0
_LOG_LINES = 60
_MAX_LINE = 64 * 1024
_SETUP = "tmp/vmpool-setup"
_NOT_IN_IMAGES = ("doc", "info", "locale", "man", "lintian", "doc-base", "bug")
_FULL = re.compile(r"No space left on device|Disk quota exceeded|don't have enough free space")
_OFFLINE = re.compile(
    r"Temporary failure resolving|Could not resolve|Could not connect|Failed to fetch"
    r"|Connection timed out|Network is unreachable|does not have a Release file"
)
_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation")


def require_tools() -> None:
    """Check that this host can build.

    Raises:
        HostError: A tool is missing, or there is neither root nor subordinate user ids.
    """
    missing = []
    if shutil.which("mmdebstrap") is None:
        missing.append("mmdebstrap")
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        missing.append("uidmap")
    if missing:
        raise HostError(
            f"building images needs {', '.join(missing)}",
            code="image_tools_missing",
            remedy=f"sudo apt-get install --yes {' '.join(missing)}",
        )
    if os.geteuid() != 0 and not _has_subordinate_ids():
        raise HostError(
            "building images needs root or subordinate user ids",
            code="image_build_unprivileged",
            remedy='sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "$USER"',
        )


async def bootstrap(
    recipe: Recipe, output: Path, *, at: Path, progress: Callable[[Step], None]
) -> None:
    """Write the recipe's root file system to `output`, a new tar archive.

    Args:
        at: A directory for what is needed on the way.

    Raises:
        HostError: This host cannot build.
        ImageError: `image_mirror_unreachable`, `image_package_unknown` or `image_build_failed`.
        DiskFullError: The disk is full.
    """
    scripts = _write_inputs(recipe, at / "inputs.tar")
    hooks = ["tar-in inputs.tar /"]
    hooks += [f'chroot "$1" /{_SETUP}/{name}' for name in scripts]
    argv = [
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(recipe.packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NOT_IN_IMAGES),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *(f"--customize-hook={hook}" for hook in hooks),
        *(recipe.source.suite, str(output), *recipe.source.lines),
    ]
    await _run(argv, at=at, progress=progress)


async def fetch(
    packages: tuple[str, ...],
    source: Source,
    output: Path,
    *,
    at: Path,
    progress: Callable[[Step], None],
) -> None:
    """Write the files of `packages`, unpacked but not installed, to `output`, a new tar archive.

    Raises:
        As `bootstrap`.
    """
    argv = [
        "mmdebstrap",
        "--variant=extract",
        f"--include={','.join(packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(source.suite, str(output), *source.lines),
    ]
    await _run(argv, at=at, progress=progress)


def _write_inputs(recipe: Recipe, output: Path) -> list[str]:
    """Write the recipe's files and scripts to a tar archive; return the scripts' names in order."""
    scripts: list[str] = []
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, directory in enumerate(recipe.directories):
            files = directory / "files"
            for path in sorted(files.rglob("*")):
                archive.add(path, path.relative_to(files), recursive=False, filter=_ours)
            script = directory / "setup.sh"
            if script.exists():
                scripts.append(f"{number}-{directory.name}")
                entry = tarfile.TarInfo(f"{_SETUP}/{scripts[-1]}")
                content = script.read_bytes()
                entry.size, entry.mode, entry.mtime = len(content), 0o755, EPOCH
                archive.addfile(entry, io.BytesIO(content))
    return scripts


def _ours(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return the entry as root's, with a mode that no checkout's umask changes."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = EPOCH
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def _has_subordinate_ids() -> bool:
    names = {str(os.getuid()), os.environ.get("USER", "")}
    try:
        lines = Path("/etc/subuid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.split(":", 1)[0] in names for line in lines)


def _environment(at: Path) -> dict[str, str]:
    environment = dict(os.environ)
    # Dates and hash order that would otherwise differ from build to build.
    environment |= {"SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    if os.geteuid() == 0:
        # So that what a killed build leaves is in the directory that is swept. Without root the
        # ids that mmdebstrap maps could not enter it.
        environment["TMPDIR"] = str(at)
    return environment


async def _run(argv: list[str], *, at: Path, progress: Callable[[Step], None]) -> None:
    require_tools()
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=at,
        env=_environment(at),
        start_new_session=True,
        limit=_MAX_LINE,
    )
    log: deque[str] = deque(maxlen=_LOG_LINES)
    try:
        assert process.stdout is not None
        while chunk := await process.stdout.read(_MAX_LINE):
            for line in chunk.decode(errors="replace").splitlines():
                log.append(line[:500])
                # What it does now; where it keeps its files is of no interest.
                if line.startswith("I: ") and line.endswith("...") and "tempdir" not in line:
                    progress(Step(text=line.removeprefix("I: ").removesuffix("...")))
        status = await process.wait()
    finally:
        await asyncio.shield(asyncio.create_task(_end(process)))
    if status != 0:
        raise _failure("\n".join(log), at)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and all it started; it unmounts and cleans up on SIGTERM."""
    for number, timeout in ((signal.SIGTERM, _TERMINATE_TIMEOUT), (signal.SIGKILL, None)):
        if process.returncode is not None:
            return
        try:
            os.killpg(process.pid, number)
            async with asyncio.timeout(timeout):
                await process.wait()
        except ProcessLookupError:
            await process.wait()
        except TimeoutError:
            continue


def _failure(log: str, at: Path) -> Exception:
    tail = "\n".join(log.splitlines()[-12:])
    if _FULL.search(log):
        return disk_full(at)
    if unknown := _UNKNOWN.search(log):
        name = unknown[1] or unknown[2]
        return ImageError(f"Debian has no package {name!r}", code="image_package_unknown")
    if _OFFLINE.search(log):
        return ImageError(
            f"the Debian mirror cannot be reached:\n{tail}",
            code="image_mirror_unreachable",
            remedy="check the network, or name another mirror in the recipe",
        )
    return ImageError(f"mmdebstrap failed:\n{tail}", code="image_build_failed")
