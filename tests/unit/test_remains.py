"""What a host leaves on a machine is found by the names that it gives things."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.ballast import GROWTH_BYTES, LEAST, WARM, Ballast
from tests.remains import Remains
from tests.seclusion import NAMES
from tests.serving import Ground
from vmpool.network import firewall
from vmpool.network.namespace import Namespace
from vmpool.store import Store

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make")


@pytest.fixture
async def ground(tmp_path: Path) -> Ground:
    async with Store(tmp_path / "vmpool.db"):
        return Ground(tmp_path)


@pytest.fixture
def home() -> Iterator[Namespace]:
    with netns.made() as made:
        yield made


def tag_of(ground: Ground) -> str:
    return hashlib.sha256(os.fsencode(ground.state.resolve())).hexdigest()[:6]


def left_by(ground: Ground, home: Namespace, deed: Callable[[], object]) -> list[str]:
    before = Remains.of(ground, home)
    deed()
    return Remains.of(ground, home).beyond(before)


@as_root
def test_a_host_that_left_nothing_has_no_remains(ground: Ground, home: Namespace) -> None:
    assert left_by(ground, home, lambda: None) == []


@as_root
def test_a_file_a_namespace_and_rules_are_found(ground: Ground, home: Namespace) -> None:
    name = f"vmpool-{tag_of(ground)}-7"

    def leave() -> None:
        (ground.state / "overlay").touch()
        (NAMES / name).touch()
        firewall.apply(home, f"table inet vmpool_{tag_of(ground)}\n")
        firewall.apply(home, "table inet vmpool_another\n")

    left = left_by(ground, home, leave)
    (NAMES / name).unlink()
    assert left == [
        "file overlay",
        f"namespace {name}",
        f"rule table inet vmpool_{tag_of(ground)}",
    ]


@as_root
def test_a_process_is_found_by_what_it_was_told(ground: Ground, home: Namespace) -> None:
    line = [sys.executable, "-c", "input()", str(ground.state / "run/clones/x")]
    with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
        assert process.pid in Remains.of(ground, home).processes
        process.communicate(b"\n")


def grown(bytes_per_thousand: int) -> Ballast:
    ballast = Ballast()
    ballast.weights = [
        (
            made,
            (50 << 20) + (30 << 20) * min(made, WARM) // WARM + bytes_per_thousand * made // 1000,
        )
        for made in range(0, WARM + 2 * LEAST, 10)
    ]
    return ballast


def test_a_server_that_only_warms_up_is_flat() -> None:
    grown(GROWTH_BYTES // 2).require_flat()


def test_a_server_that_grows_is_not() -> None:
    with pytest.raises(AssertionError, match="for each thousand"):
        grown(2 * GROWTH_BYTES).require_flat()


def test_of_a_short_life_nothing_is_told() -> None:
    ballast = grown(2 * GROWTH_BYTES)
    ballast.weights = [each for each in ballast.weights if each[0] < WARM + LEAST // 2]
    ballast.require_flat()
