"""The contract of an engine, held by QEMU on KVM with its agents on vsock."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.contract.benches import Bench, opened
from tests.contract.test_engine import (
    goes_on_under_another,
    test_a_booted_machine_runs_until_it_is_killed,
    test_a_cancelled_load_leaves_nothing,
    test_a_crash_ends_every_wait_at_once,
    test_a_machine_runs_on_after_its_checkpoint_which_shells_load,
    test_a_shell_dies_alone_and_says_so,
    test_a_state_that_is_none_is_refused_and_leaves_nothing,
    test_a_stranger_to_the_template_is_refused,
    test_clones_are_restored_paused_from_what_was_saved,
    test_only_a_paused_machine_is_saved,
    test_pause_resume_and_kill_are_idempotent,
)
from tests.lost_manager import Point
from vmpool.engine.qemu import QemuEngine
from vmpool.model import Accelerator, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = [
    "test_a_booted_machine_runs_until_it_is_killed",
    "test_a_cancelled_load_leaves_nothing",
    "test_a_crash_ends_every_wait_at_once",
    "test_a_machine_runs_on_after_its_checkpoint_which_shells_load",
    "test_a_shell_dies_alone_and_says_so",
    "test_a_state_that_is_none_is_refused_and_leaves_nothing",
    "test_a_stranger_to_the_template_is_refused",
    "test_clones_are_restored_paused_from_what_was_saved",
    "test_only_a_paused_machine_is_saved",
    "test_pause_resume_and_kill_are_idempotent",
]

pytestmark = pytest.mark.kvm


ON_EVERY_BOARD = {
    "test_clones_are_restored_paused_from_what_was_saved",
    "test_a_machine_runs_on_after_its_checkpoint_which_shells_load",
}
"""What depends on the board; for all else one will do: an emulated host has time for no more."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the machines of each test."""
    if "bench" in metafunc.fixturenames:
        every = metafunc.definition.originalname in ON_EVERY_BOARD
        shapes = ("q35-disk", "microvm") if every else ("q35-disk",)
        metafunc.parametrize("bench", shapes, indirect=True)


@pytest.fixture
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Stand in for the contract's own bench."""
    engine = await QemuEngine.detect()
    with opened(engine, request.param, Accelerator.KVM, Transport.VSOCK, tmp_path) as bench:
        yield bench
    engine.close()


async def test_a_machine_on_kvm_is_adopted_in_the_middle_of_a_capture(bench: Bench) -> None:
    await goes_on_under_another(bench, Point.TAKEN)
