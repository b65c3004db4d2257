"""A mirror of Debian's without Debian: images are built of archives made here.

mmdebstrap is played by a script, run as the real one is: it copies what it is given.
"""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.leftovers import MARK, MARK_NAME
from vmpool.image import Library, Recipe, debian, recipe

if TYPE_CHECKING:
    import pytest

MMDEBSTRAP = """\
for output; do case $output in /*.tar) break ;; esac; done
kind=root
for word; do [ "$word" = --variant=extract ] && kind=kernel; done
echo $kind >>"$FAKE/calls"
printf '%s\\n' "$@" >"$FAKE/$kind.argv"
env >"$FAKE/environment"
[ -e inputs.tar ] && cp inputs.tar "$FAKE/"
echo "I: finding correct signed-by value..."
echo "I: downloading packages with apt..."
if [ -e "$FAKE/hang" ]; then
    trap 'echo ended >>"$FAKE/calls"; exit 1' TERM
    (if [ -e "$FAKE/stubborn" ]; then trap '' TERM; fi
    echo "I: installing essential packages..."
    exec sleep 1000) &
    wait
fi
echo "I: installing essential packages..."
echo "I: installing remaining packages inside the chroot..."
echo "I: removing tempdir /tmp/x..."
if [ -e "$FAKE/failure" ]; then cat "$FAKE/failure"; exit 25; fi
cp "$FAKE/$kind.tar" "$output"
"""

MODULE = b"\x7fELF\0name=x\0depends=%s\0vermagic=6\0"
RELEASE = "6.12.1-cloud-amd64"


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))


def kernel_files() -> dict[str, bytes]:
    modules = f"usr/lib/modules/{RELEASE}"
    return {
        f"boot/vmlinuz-{RELEASE}": b"kernel",
        "usr/bin/busybox": b"busybox",
        f"{modules}/modules.builtin": b"kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio_pci.ko\n"
        b"kernel/x/virtio_console.ko\nkernel/y/vmgenid.ko\n",
        **{
            f"{modules}/kernel/{name}.ko": MODULE % depends
            for name, depends in {
                "virtio_mmio": b"",
                "virtio_blk": b"",
                "virtio_net": b"net-failover",
                "net_failover": b"failover",
                "failover": b"",
                "erofs": b"libcrc32c",
                "libcrc32c": b"",
                "overlay": b"",
                "pvpanic_mmio": b"pvpanic",
                "pvpanic": b"",
                "vmw_vsock_virtio_transport": b"vsock",
                "vsock": b"",
            }.items()
        },
    }


ROOT = {"usr/bin/python3.13": b"\x7fELF", "bin/bash": b"\x7fELF", "usr/share/doc/x": b"doc"}


@dataclass(frozen=True)
class World:
    """A state directory, a mirror and a recipe."""

    state: Path
    mirror: Path
    recipe: Recipe

    @property
    def library(self) -> Library:
        """The library as a new process sees it."""
        return Library(self.state)

    def calls(self) -> list[str]:
        """Return what mmdebstrap was asked for since the last time."""
        path = self.mirror / "calls"
        if not path.exists():
            return []
        calls = path.read_text().split()
        path.unlink()
        return calls

    def left(self) -> list[Path]:
        """Return what is under way."""
        work = self.state / "images" / "work"
        return list(work.iterdir()) if work.exists() else []


def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Return a world whose builds ask the mirror."""
    mirror = tmp_path / "mirror"
    programs = mirror / "bin"
    programs.mkdir(parents=True)
    program = programs / "mmdebstrap"
    program.write_text(f"#!/bin/sh\nexport {MARK_NAME}={MARK} FAKE={mirror}\n{MMDEBSTRAP}")
    program.chmod(0o755)
    for name in ("newuidmap", "keyring"):
        (programs / name).touch(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(debian, "_KEYRING", programs / "keyring")
    (mirror / "subuid").write_text(f"{os.geteuid()}:100000:65536\n")
    monkeypatch.setattr(debian, "_SUBORDINATE_IDS", (mirror / "subuid",))
    write_archive(mirror / "kernel.tar", kernel_files())
    write_archive(mirror / "root.tar", ROOT)
    directory = tmp_path / "recipes" / "mine"
    (directory / "files" / "etc").mkdir(parents=True)
    (directory / "files" / "etc" / "motd").write_text("hello")
    (directory / "setup.sh").write_text("#!/bin/sh\n")
    (directory / "recipe.toml").write_text(
        'description = "mine"\npackages = ["python3"]\nstrip = ["/usr/share/doc"]\n'
        "[template]\nmemory_mib = 384\n"
    )
    return World(state=tmp_path / "state", mirror=mirror, recipe=recipe.load(directory))
