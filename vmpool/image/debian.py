"""Debian: root file systems and packages as tar archives, asked of mmdebstrap.

It decides what is asked for; how the program runs, what it says and how it ends is `mmdebstrap`'s.
"""

from __future__ import annotations

import io
import os
import pwd
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import HostError
from vmpool.image import mmdebstrap
from vmpool.image.furnish import EPOCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.image.recipe import Recipe, Source
    from vmpool.image.work import Step

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUBORDINATE_IDS = (Path("/etc/subuid"), Path("/etc/subgid"))
_SETUP = "tmp/vmpool-setup"
_NOT_IN_IMAGES = ("doc", "info", "locale", "man", "lintian", "doc-base", "bug")


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
            remedy=f"run as root: apt-get install --yes {' '.join(missing)}",
        )
    if os.geteuid() != 0 and not _has_subordinate_ids():
        raise HostError(
            "building images needs root or subordinate user ids",
            code="image_build_unprivileged",
            remedy="run as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
            + _account(),
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
    require_tools()
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
    await mmdebstrap.run(argv, at=at, progress=progress)


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
    require_tools()
    argv = [
        "mmdebstrap",
        "--variant=extract",
        f"--include={','.join(packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(source.suite, str(output), *source.lines),
    ]
    await mmdebstrap.run(argv, at=at, progress=progress)


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


def _account() -> str:
    """Return the name of the account that runs us, or its number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _has_subordinate_ids() -> bool:
    """Tell whether subuid(5) and subgid(5) give this account any."""
    names = {str(os.geteuid()), _account()}
    for path in _SUBORDINATE_IDS:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        if not any(line.split(":", 1)[0] in names for line in lines):
            return False
    return True
