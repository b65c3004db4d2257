"""What test runs keep for each other is kept, shared and pruned."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from typing import TYPE_CHECKING

from tests import kept
from tests.api.conftest import place_image
from vmpool.image import Library, signature
from vmpool.trust import Keyring

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def image(cache: Path, number: int, *, age: float = 0.0, name: str | None = None) -> Path:
    directory = cache / "images" / f"{number:064}"
    directory.mkdir(parents=True)
    if name is not None:
        (cache / "images/names").mkdir(exist_ok=True)
        (cache / "images/names" / name).write_text(directory.name)
    os.utime(directory, (time.time() - age,) * 2)
    return directory


def snapshot(parent: Path, name: str, *, of: Path | None = None) -> Path:
    directory = parent / "snapshots" / name
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(f'{{"root": "{of.name if of else ""}/root.erofs"}}')
    (directory / "memory").write_bytes(name.encode())
    return directory


def state(tmp_path: Path, name: str = "state") -> Path:
    directory = tmp_path / name
    directory.mkdir()
    return directory


def test_a_run_finds_what_an_earlier_one_made(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with kept.lent(cache, state(tmp_path), "images", "snapshots"):
        snapshot(tmp_path / "state", "made")
        (tmp_path / "state/images/built").mkdir()
    with kept.lent(cache, state(tmp_path, "later"), "images", "snapshots"):
        assert (tmp_path / "later/snapshots/made/memory").read_bytes() == b"made"
        assert (tmp_path / "later/images/built").is_dir()


def test_images_of_a_cache_are_signed_by_whoever_it_is_lent_to(tmp_path: Path) -> None:
    made, cache = state(tmp_path, "made"), tmp_path / "cache"
    place_image(made)
    shutil.copytree(made / "images", cache / "images")  # signed by a host of another cache
    with kept.lent(cache, state(tmp_path), "images"):
        own = Keyring.open(tmp_path / "state")
        for image in Library(tmp_path / "state").list():
            signature.require(image, own)
    assert not list(cache.glob(".signing-*"))


def test_a_run_cannot_sweep_what_another_has_half_made(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with kept.lent(cache, state(tmp_path), "snapshots"):
        half = snapshot(tmp_path / "state", ".partial-x")
        with kept.lent(cache, state(tmp_path, "other"), "snapshots"):
            assert not list((tmp_path / "other/snapshots").iterdir())
            snapshot(tmp_path / "other", "made")
            snapshot(tmp_path / "other", ".partial-y")
        half.rename(half.with_name("made"))
    assert [path.name for path in (cache / "snapshots").iterdir()] == ["made"]


def test_what_is_old_goes_and_what_was_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "NEWEST", 3)
    named = image(tmp_path, 0, age=90 * 86400, name="python")
    images = [image(tmp_path, number, age=number * 60) for number in range(1, 5)]
    old = image(tmp_path, 9, age=15 * 86400)
    (tmp_path / "images/cache").mkdir()
    young = snapshot(tmp_path, "young", of=images[0])
    orphan = snapshot(tmp_path, "orphan", of=images[3])
    half = snapshot(tmp_path, ".partial-x")
    kept.prune(tmp_path)
    assert [path.exists() for path in (named, *images, old)] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert [path.exists() for path in (young, orphan, half)] == [True, False, False]
    assert (tmp_path / "images/cache").exists()


def test_nothing_is_pruned_while_another_run_uses_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    old = image(cache, 1, age=15 * 86400)
    with (cache / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with kept.lent(cache, state(tmp_path), "images"):
            pass
        assert old.exists()
    with kept.lent(cache, state(tmp_path, "alone"), "images"):
        pass
    assert not old.exists()
