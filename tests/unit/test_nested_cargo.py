"""What goes into the nested host, and when its image is made anew."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.kvm.nested import cargo, image, wheels
from tests.kvm.nested.place import ROOT
from tests.unit.test_nested_machine import image_in
from vmpool.image import recipe

if TYPE_CHECKING:
    from pathlib import Path

PROJECT = b"""
[project]
dependencies = ["b>=2", "a>=1"]
[project.optional-dependencies]
tests = ["c"]
dev = ["d"]
"""


def test_the_checkout_goes_in_as_it_is_and_nothing_that_git_ignores(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in ("kept.py", "gone.py", "with space.py"):
        (tmp_path / name).touch()
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    (tmp_path / "gone.py").unlink()
    (tmp_path / ".gitignore").write_text("*.pyc\n")
    (tmp_path / "ignored.pyc").touch()
    (tmp_path / "uncommitted.py").touch()
    (tmp_path / "link").symlink_to("/nowhere")
    names = [str(path) for path in cargo.checkout_files(tmp_path)]
    assert names == [".gitignore", "kept.py", "link", "uncommitted.py", "with space.py"]


def test_the_disk_holds_the_guests_image_where_a_library_looks(tmp_path: Path) -> None:
    guest = tmp_path / "guest"
    guest.mkdir()
    (guest / "root.erofs").write_bytes(b"root")
    disk = cargo.pack(
        replace(image_in(guest), name="base", digest="0123"), ["-k", "a or b"], at=tmp_path
    )
    images = "/root/root/.cache/vmpool/tests/images"
    assert read(disk, f"{images}/names/base") == b"0123"
    assert read(disk, f"{images}/0123/root.erofs") == b"root"
    assert read(disk, "/root/srv/arguments.json") == b'["-k", "a or b"]'
    assert read(disk, "/root/srv/vmpool/pyproject.toml") == (ROOT / "pyproject.toml").read_bytes()


def read(disk: Path, path: str) -> bytes:
    """Return the content of a file in an ext4 file system."""
    argv = ["/usr/sbin/debugfs", "-R", f"cat {path}", os.fspath(disk)]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def test_the_wheels_are_what_vmpool_and_its_tests_need() -> None:
    assert wheels.read_requirements(PROJECT) == ("a>=1", "b>=2", "c")


def test_another_list_of_requirements_is_another_layer() -> None:
    names = {wheels.name_of(one) for one in (("a", "b"), ("a",), ("ab",), ())}
    assert len(names) == 4


def test_a_layer_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / wheels.name_of(("no-such-package",))
    kept.mkdir(parents=True)
    found = wheels.layer(("no-such-package",), kept=tmp_path / "kept", work=tmp_path)
    assert found == kept


def test_a_layer_that_pip_cannot_make_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(subprocess.CalledProcessError):
        wheels.layer(("no-such-package",), kept=tmp_path / "kept", work=tmp_path)
    assert not (tmp_path / "kept").exists()


def test_the_hosts_recipe_is_sound_and_has_what_a_host_needs() -> None:
    found = recipe.load(image.HOST)
    assert {"qemu-system-x86", "seabios", "linux-image-cloud-amd64"} <= set(found.packages)


@pytest.mark.parametrize(("release", "fits"), [("6.12.1", True), ("6.12.2", False)])
def test_an_image_without_the_modules_of_its_kernel_is_told(
    tmp_path: Path, release: str, fits: bool
) -> None:
    found = image_in(tmp_path)
    manifest = msgspec.structs.replace(
        found.manifest, kernel_release=release, packages={"linux-image-6.12.1": "6.12.1-1"}
    )
    assert image.has_its_modules(replace(found, manifest=manifest)) is fits
