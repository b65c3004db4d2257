"""Over HTTP, a server on KVM and vsock keeps what one under emulation keeps."""

from __future__ import annotations

import pytest

from tests.tcg.test_run import (
    test_a_guest_that_panics_is_infrastructure_with_its_own_code,
    test_a_request_runs_python_in_a_machine_that_is_gone_afterwards,
    test_a_timeout_kills_the_whole_group_and_is_the_tasks,
    test_files_go_in_and_come_out,
    test_there_is_no_network,
)
from tests.tcg.test_sandbox import (
    test_a_client_that_leaves_takes_its_process_with_it,
    test_a_flood_on_one_execution_does_not_block_another,
    test_a_hypervisor_that_dies_ends_its_sandbox_at_once,
    test_a_sandbox_ends_at_its_deadline_and_is_told_from_one_that_never_was,
    test_output_streams_while_the_program_runs,
    test_stdin_goes_through_a_websocket,
    test_what_one_clone_writes_to_disk_and_memory_no_other_sees,
)

__all__ = [
    "test_a_client_that_leaves_takes_its_process_with_it",
    "test_a_flood_on_one_execution_does_not_block_another",
    "test_a_guest_that_panics_is_infrastructure_with_its_own_code",
    "test_a_hypervisor_that_dies_ends_its_sandbox_at_once",
    "test_a_request_runs_python_in_a_machine_that_is_gone_afterwards",
    "test_a_sandbox_ends_at_its_deadline_and_is_told_from_one_that_never_was",
    "test_a_timeout_kills_the_whole_group_and_is_the_tasks",
    "test_files_go_in_and_come_out",
    "test_output_streams_while_the_program_runs",
    "test_stdin_goes_through_a_websocket",
    "test_there_is_no_network",
    "test_what_one_clone_writes_to_disk_and_memory_no_other_sees",
]

pytestmark = [pytest.mark.kvm, pytest.mark.shares_host]
