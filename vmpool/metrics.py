"""Metrics: what the server counts and times, for Prometheus.

Others tell it what happened, in nanoseconds and codes; it keeps no state but the sums. The pools'
gauges are read when somebody asks, so that they never lie. A registry of its own: two servers in
one process, and every test, count for themselves.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client.core import Metric

    from vmpool.errors import Fault
    from vmpool.lifecycle import EndReason
    from vmpool.policy import Census

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What `Metrics.render` returns."""

_NS = 1e-9

_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08),
    *(0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds; close together where a restore and its phases are, from half a millisecond on."""


class Metrics:
    """All metrics of one server; `docs/metrics.md` says what each means."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._pools = _Pools()
        self._registry.register(self._pools)
        self._restore = self._timing(
            "vmpool_restore_seconds", "Restore of a clone, by phase.", ["template", "phase"]
        )
        self._acquire = self._timing(
            "vmpool_acquire_seconds", "Wait for a clone, queue and activation.", ["template"]
        )
        self._request = self._timing(
            "vmpool_request_seconds", "HTTP requests until the last byte.", ["route"]
        )
        self._requests = self._count(
            "vmpool_requests", "HTTP requests, by route and by status or error.", ["route", "code"]
        )
        self._executions = self._count(
            "vmpool_executions", "Executions, by outcome and by whose fault.", ["outcome", "fault"]
        )
        self._ended = self._count(
            "vmpool_sandboxes_ended", "Sandboxes that ended, by reason.", ["reason"]
        )
        self._turn = self._timing(
            "vmpool_sandbox_operation_seconds", "What was done to a sandbox.", ["operation"]
        )
        self._turns = self._count(
            "vmpool_sandbox_operations", "What was done to a sandbox.", ["operation", "outcome"]
        )
        self._stopped = self._timing(
            "vmpool_sandbox_stopped_seconds", "How long a guest stood still.", ["operation"]
        )
        self._guest_failures = self._count(
            "vmpool_guest_failures", "Guests that died, hung or broke the protocol.", ["code"]
        )
        self._quota_refusals = self._count(
            "vmpool_quota_refusals", "Requests over a tenant's quota.", ["resource"]
        )
        self._denials = self._count(
            "vmpool_network_denials", "What guests were denied on the network.", ["rule"]
        )

    def watch_pool(
        self,
        template: str,
        census: Callable[[], Census],
        aim: Callable[[], int],
        counters: Callable[[], Mapping[str, int]],
    ) -> None:
        """Show a pool's census and counters from now on, asked for at each `render`.

        Args:
            aim: Tells how many spares it keeps.
        """
        self._pools.sources[template] = (census, aim, counters)

    def forget_pool(self, template: str) -> None:
        """Show a pool no more. *Idempotent.*"""
        self._pools.sources.pop(template, None)

    def restored(self, template: str, phases_ns: Mapping[str, int]) -> None:
        """Record one restore: the duration of each phase by its name."""
        for phase, took_ns in phases_ns.items():
            self._restore.labels(template, phase).observe(took_ns * _NS)

    def acquired(self, template: str, waited_ns: int) -> None:
        """Record that a caller got a clone after so long."""
        self._acquire.labels(template).observe(waited_ns * _NS)

    def request(self, route: str, code: str, took_ns: int) -> None:
        """Record one HTTP request.

        Args:
            route: The route's pattern, never the path: one that a caller can choose freely would
                make as many series as there are paths.
            code: Status, or the error's code.
            took_ns: Until the last byte of the answer.
        """
        self._requests.labels(route, code).inc()
        self._request.labels(route).observe(took_ns * _NS)

    def execution(self, outcome: str, fault: Fault | None) -> None:
        """Record the end of one execution.

        Args:
            outcome: `ok`, or the error's code.
            fault: Whose it was; `None` for `ok`.
        """
        self._executions.labels(outcome, "none" if fault is None else fault.value).inc()

    def sandbox_ended(self, reason: EndReason) -> None:
        """Record the end of one sandbox."""
        self._ended.labels(reason.value).inc()

    def turned(self, operation: str, outcome: str, took_ns: int) -> None:
        """Record what was done to a sandbox, or to a checkpoint.

        Args:
            outcome: `ok`, `cancelled`, or the error's code.
        """
        self._turns.labels(operation, outcome).inc()
        self._turn.labels(operation).observe(took_ns * _NS)

    def stopped(self, operation: str, took_ns: int) -> None:
        """Record for how long a guest's virtual CPUs were stopped for an operation."""
        self._stopped.labels(operation).observe(took_ns * _NS)

    def watch_sandboxes(
        self,
        sandboxes: Callable[[], Mapping[str, int]],
        checkpoints: Callable[[], Mapping[str, int]],
    ) -> None:
        """Show from now on how many sandboxes are in each state, and what checkpoints take.

        Args:
            checkpoints: Bytes, by purpose.
        """
        self._registry.register(_Sandboxes(sandboxes, checkpoints))

    def guest_failed(self, code: str) -> None:
        """Record a guest that was lost, by its error's code."""
        self._guest_failures.labels(code).inc()

    def quota_refused(self, resource: str) -> None:
        """Record that a tenant was refused for having as much of something as it may."""
        self._quota_refusals.labels(resource).inc()

    def network_denied(self, rule: str) -> None:
        """Record a denial, by the rule as its event has it; the rules of callers count as one."""
        self._denials.labels(rule.partition(" ")[0]).inc()

    def watch_network(self, slots: Callable[[], Mapping[str, int]]) -> None:
        """Show from now on how many network slots are in each state."""
        self._registry.register(_Slots(slots))

    def watch_standby(
        self, waiting: Callable[[], int], taken: Callable[[], Mapping[str, int]]
    ) -> None:
        """Show from now on how many hypervisors wait, and how those that were needed were had."""
        self._registry.register(_Standby(waiting, taken))

    def render(self) -> bytes:
        """Return everything in Prometheus's text format, of `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _timing(self, name: str, text: str, labels: list[str]) -> Histogram:
        return Histogram(name, text, labels, registry=self._registry, buckets=_BUCKETS)

    def _count(self, name: str, text: str, labels: list[str]) -> Counter:
        return Counter(name, text, labels, registry=self._registry)


class _Pools(Collector):
    """Reads the pools when somebody asks."""

    def __init__(self) -> None:
        self.sources: dict[
            str, tuple[Callable[[], Census], Callable[[], int], Callable[[], Mapping[str, int]]]
        ] = {}

    def collect(self) -> Iterator[Metric]:
        clones = GaugeMetricFamily(
            "vmpool_pool_clones", "Clones, by what they are doing.", labels=["template", "state"]
        )
        waiting = GaugeMetricFamily(
            "vmpool_pool_waiting", "Callers who wait for a clone.", labels=["template"]
        )
        aims = GaugeMetricFamily(
            "vmpool_pool_aim", "Spare clones that a pool keeps now.", labels=["template"]
        )
        events = CounterMetricFamily(
            "vmpool_pool_events", "What happened in a pool.", labels=["template", "event"]
        )
        for template, (census, aim, counters) in self.sources.items():
            counts = asdict(census())
            waiting.add_metric([template], counts.pop("waiting"))
            aims.add_metric([template], aim())
            for state, number in counts.items():
                clones.add_metric([template, state], number)
            for event, number in counters().items():
                events.add_metric([template, event], number)
        yield from (clones, waiting, aims, events)


class _Sandboxes(Collector):
    """Counts the sandboxes when somebody asks."""

    def __init__(
        self,
        sandboxes: Callable[[], Mapping[str, int]],
        checkpoints: Callable[[], Mapping[str, int]],
    ) -> None:
        self._sandboxes = sandboxes
        self._checkpoints = checkpoints

    def collect(self) -> Iterator[Metric]:
        there = GaugeMetricFamily(
            "vmpool_sandboxes", "Sandboxes, by their state.", labels=["state"]
        )
        for state, number in self._sandboxes().items():
            there.add_metric([state], number)
        kept = GaugeMetricFamily(
            "vmpool_checkpoint_bytes", "Files of checkpoints, by purpose.", labels=["purpose"]
        )
        for purpose, size_bytes in self._checkpoints().items():
            kept.add_metric([purpose], size_bytes)
        yield from (there, kept)


class _Slots(Collector):
    """Network slots of this host."""

    def __init__(self, slots: Callable[[], Mapping[str, int]]) -> None:
        self._slots = slots

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "vmpool_network_slots", "Network slots, by state.", labels=["state"]
        )
        for state, number in self._slots().items():
            gauge.add_metric([state], number)
        yield gauge


class _Standby(Collector):
    """Hypervisors that wait for a state."""

    def __init__(self, waiting: Callable[[], int], taken: Callable[[], Mapping[str, int]]) -> None:
        self._waiting = waiting
        self._taken = taken

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "vmpool_hypervisors_waiting", "Hypervisors that wait for a state.", self._waiting()
        )
        taken = CounterMetricFamily(
            "vmpool_hypervisors_taken", "Hypervisors that a state was loaded into.", labels=["how"]
        )
        for how, number in self._taken().items():
            taken.add_metric([how], number)
        yield taken
