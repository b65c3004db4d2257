"""Copying: what puts the files of an archive in their places, as a program for the guest.

The archive is a stranger's, so that it is unpacked where only the guest can come to harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import uuid4

from vmpool.model import Command

if TYPE_CHECKING:
    from vmpool.api.e2b.templates.recipe import Copy, Setting

# A directory is copied as what is in it, a single file as what the target says, several into it.
_SCRIPT: Final = r"""
set -eu
shopt -s dotglob globstar nullglob
archive=$1 pattern=$2 target=$3 owner=$4 mode=$5
work=$(mktemp -d)
trap 'rm -rf -- "$work" "$archive"' EXIT
tar -x -f "$archive" -C "$work" --no-same-owner
rm -- "$archive"
cd -- "$work"
IFS=
found=($pattern)
for each in "${found[@]}"; do
  [ -e "$each" ] || [ -L "$each" ] || { echo "no file is called '$each'" >&2; exit 1; }
  chown -hR -- "$owner" "$each"
  [ -z "$mode" ] || chmod -R -- "$mode" "$each"
done
[ ${#found[@]} -gt 0 ] || { echo "no file matches '$pattern'" >&2; exit 1; }
need() {
  [ -d "$1" ] || { mkdir -p -- "$1"; chown -- "$owner" "$1"; }
}
for each in "${found[@]}"; do
  if [ -d "$each" ] && [ ! -L "$each" ]; then
    need "$target"
    for entry in "$each"/*; do cp -a -- "$entry" "$target/"; done
  elif [ ${#found[@]} -gt 1 ] || [[ $target == */ ]] || [ -d "$target" ]; then
    need "$target"
    cp -a -- "$each" "$target/"
  else
    need "$(dirname -- "$target")"
    cp -aT -- "$each" "$target"
  fi
done
"""

_ENTER: Final = r"""[ -d "$1" ] || { mkdir -p -- "$1" && chown -- "$2" "$1"; }"""


def archive_path() -> str:
    """Return where in the guest an archive is put."""
    return f"/tmp/.vmpool-{uuid4().hex}.tar"  # noqa: S108 -- in the guest, and of no fixed name


def unpack(step: Copy, setting: Setting, archive: str, *, timeout: float) -> Command:
    """Return what copies the files of a step, and removes the archive whatever happens."""
    owner = step.owner or setting.user
    arguments = (
        archive,
        step.source,
        setting.path(step.target),
        owner if ":" in owner else f"{owner}:",  # with its own group
        step.mode,
    )
    return _as_root(_SCRIPT, arguments, timeout)


def enter(directory: str, setting: Setting, *, timeout: float) -> Command:
    """Return what makes a directory, unless it is there."""
    return _as_root(_ENTER, (directory, f"{setting.user}:"), timeout)


def _as_root(script: str, arguments: tuple[str, ...], timeout: float) -> Command:
    return Command(
        argv=("/bin/bash", "-c", script, "build", *arguments),
        user="root",
        cwd="/",
        timeout=timeout,
    )
