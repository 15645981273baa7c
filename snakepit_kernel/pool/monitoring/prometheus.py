"""Metrics of pools in the text format of Prometheus. Only this module imports its client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..status import OUTCOMES, PoolStatus, WorkerStatus
from ..workers.lifecycle import SHOWN_STATES

POOL = ("pool", "owner")
"""Labels of all metrics: the pool's name, and the pid of its owner, since two processes may have
pools of the same name."""

_COUNTERS = (
    ("snakepit_pool_worker_starts", "started", "Workers that were started."),
    ("snakepit_pool_worker_deaths", "died", "Workers that ended unasked."),
    ("snakepit_pool_worker_recycled", "recycled", "Workers that were replaced on purpose."),
    ("snakepit_pool_retries", "retried", "Attempts that failed and were made again."),
)
_GAUGES = (
    ("snakepit_pool_queue_length", "queued", "Calls that wait for a worker."),
    ("snakepit_pool_running_calls", "running", "Calls that workers run."),
)


def exposition(pools: Iterable[PoolStatus]) -> str:
    """Return the metrics of pools in the text format of Prometheus.

    The number of series depends only on the numbers of workers and states: no name of the user's
    but the pool's is a label, and a worker that replaces another one continues its series.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Pools(list(pools)))
    return generate_latest(registry).decode()


class _Pools(Collector):
    def __init__(self, pools: Sequence[PoolStatus]) -> None:
        self._pools = pools

    def collect(self) -> Iterator[Metric]:
        for name, field, about in _GAUGES:
            gauge = GaugeMetricFamily(name, about, labels=POOL)
            for pool in self._pools:
                gauge.add_metric(_labels(pool), getattr(pool.stats, field))
            yield gauge
        for name, field, about in _COUNTERS:
            counter = CounterMetricFamily(name, about, labels=POOL)
            for pool in self._pools:
                counter.add_metric(_labels(pool), getattr(pool.stats, field))
            yield counter
        yield self._calls()
        yield self._workers()
        yield self._memory()
        yield self._shells("shells", "Shells of sessions that are open.")
        yield self._shells("processes", "Background processes of sessions that run.")

    def _calls(self) -> Metric:
        about = "Calls, cells and futures that have ended, by how."
        family = CounterMetricFamily("snakepit_pool_calls", about, labels=(*POOL, "outcome"))
        for pool in self._pools:
            for outcome in OUTCOMES:
                family.add_metric([*_labels(pool), outcome], getattr(pool.stats, outcome))
        return family

    def _workers(self) -> Metric:
        about = "Workers, by their state."
        family = GaugeMetricFamily("snakepit_pool_workers", about, labels=(*POOL, "state"))
        for pool in self._pools:
            states = Counter(worker.state for worker in pool.workers)
            for state in SHOWN_STATES:
                family.add_metric([*_labels(pool), state], states[state])
        return family

    def _memory(self) -> Metric:
        about = "Resident memory of a worker's process, by the slot that it fills."
        family = GaugeMetricFamily("snakepit_worker_memory_bytes", about, labels=(*POOL, "slot"))
        for pool in self._pools:
            for worker in pool.workers:
                if worker.memory_bytes is not None:
                    family.add_metric([*_labels(pool), _slot(worker)], worker.memory_bytes)
        return family

    def _shells(self, field: str, about: str) -> Metric:
        family = GaugeMetricFamily(f"snakepit_pool_{field}", about, labels=POOL)
        for pool in self._pools:
            family.add_metric(_labels(pool), getattr(pool, field))
        return family


def _labels(pool: PoolStatus) -> list[str]:
    return [pool.name, str(pool.owner_pid)]


def _slot(worker: WorkerStatus) -> str:
    """Return the slot number from a worker's name, ``POOL-SLOT.INCARNATION``."""
    return worker.name.rpartition("-")[2].partition(".")[0]
