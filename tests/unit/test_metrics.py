"""What is told shows up, what is asked for is asked when somebody looks, and all is documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vmpool.errors import Fault
from vmpool.lifecycle import EndReason
from vmpool.metrics import Metrics
from vmpool.policy import Census

DOCS = Path(__file__).parents[2] / "docs/metrics.md"


def values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return each sample's value by its name and its labels' values, in the labels' order."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def with_everything() -> Metrics:
    metrics = Metrics()
    metrics.restored("python", {"spawn": 36_000_000, "load": 3_500_000})
    metrics.acquired("python", 2_000_000)
    metrics.request("/v1/sandboxes/{id}", "404", 1_000_000)
    metrics.execution("ok", None)
    metrics.execution("task_timeout", Fault.TASK)
    metrics.sandbox_ended(EndReason.EXPIRED)
    metrics.guest_failed("guest_error")
    metrics.watch_pool(
        "python", lambda: Census(ready=2, waiting=3), lambda: 2, lambda: {"acquired": 7}
    )
    metrics.turned("sandbox.fork", "pool_full", 3_000_000)
    metrics.stopped("pause", 20_000_000)
    metrics.watch_sandboxes(lambda: {"paused": 2}, lambda: {"kept": 5})
    metrics.watch_standby(lambda: 3, lambda: {"waited": 8})
    metrics.watch_network(lambda: {"ready": 1, "taken": 4})
    return metrics


def test_what_is_told_shows_up_in_seconds_and_counts() -> None:
    seen = values(with_everything())
    assert seen["vmpool_network_slots", "taken"] == 4
    assert seen[("vmpool_hypervisors_waiting",)] == 3
    assert seen["vmpool_hypervisors_taken_total", "waited"] == 8
    assert seen["vmpool_restore_seconds_sum", "spawn", "python"] == pytest.approx(0.036)
    assert seen["vmpool_restore_seconds_bucket", "0.004", "load", "python"] == 1
    assert seen["vmpool_restore_seconds_bucket", "0.002", "load", "python"] == 0
    assert seen["vmpool_acquire_seconds_count", "python"] == 1
    assert seen["vmpool_requests_total", "404", "/v1/sandboxes/{id}"] == 1
    assert seen["vmpool_executions_total", "none", "ok"] == 1
    assert seen["vmpool_executions_total", "task", "task_timeout"] == 1
    assert seen["vmpool_sandboxes_ended_total", "expired"] == 1
    assert seen["vmpool_guest_failures_total", "guest_error"] == 1
    assert seen["vmpool_sandbox_operations_total", "sandbox.fork", "pool_full"] == 1
    assert seen["vmpool_sandbox_operation_seconds_sum", "sandbox.fork"] == pytest.approx(0.003)
    assert seen["vmpool_sandbox_stopped_seconds_sum", "pause"] == pytest.approx(0.02)
    assert seen["vmpool_sandboxes", "paused"] == 2
    assert seen["vmpool_checkpoint_bytes", "kept"] == 5


def test_a_pool_is_asked_when_somebody_looks() -> None:
    metrics = Metrics()
    now = Census(ready=1)
    aim = 1
    metrics.watch_pool("python", lambda: now, lambda: aim, dict)
    assert values(metrics)["vmpool_pool_clones", "ready", "python"] == 1
    now, aim = Census(held=4, waiting=2), 6
    seen = values(metrics)
    assert seen["vmpool_pool_aim", "python"] == 6
    assert seen["vmpool_pool_clones", "ready", "python"] == 0
    assert seen["vmpool_pool_clones", "held", "python"] == 4
    assert seen["vmpool_pool_waiting", "python"] == 2


def test_a_forgotten_pool_is_not_shown() -> None:
    metrics = with_everything()
    metrics.forget_pool("python")
    metrics.forget_pool("python")
    assert not [key for key in values(metrics) if key[0].startswith("vmpool_pool")]


def test_two_servers_count_for_themselves() -> None:
    with_everything()
    assert not [value for value in values(Metrics()).values() if value]


def test_every_metric_is_documented_and_no_other() -> None:
    families = text_string_to_metric_families(with_everything().render().decode())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    names = {name for name in names if not name.endswith("_created")}  # the library's own, of each
    lines = DOCS.read_text().splitlines()
    documented = {line.split("`")[1] for line in lines if line.startswith("| `vmpool_")}
    assert documented == names
