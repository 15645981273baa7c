"""The numbers of a pool, read by Prometheus's own parser."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snakepit_kernel import Pool, PoolStats, PoolStatus, open_session
from snakepit_kernel.pool.monitoring.prometheus import exposition
from snakepit_kernel.pool.status import WorkerStatus
from snakepit_kernel.shells.manager import manager


def samples(text):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**more):
    return tuple(sorted({"pool": "shop", "owner": str(os.getpid()), **more}.items()))


def test_a_pool_tells_of_calls_workers_and_memory():
    with Pool(2, name="shop") as pool:
        pool.submit(pow, 2, 3).result()
        pool.submit(pow, 2, 4).result()
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        found = samples(pool.prometheus())

    assert found["snakepit_pool_calls_total", labels(outcome="ok")] == 2
    assert found["snakepit_pool_calls_total", labels(outcome="error")] == 1
    assert found["snakepit_pool_calls_total", labels(outcome="lost")] == 0
    assert found["snakepit_pool_queue_length", labels()] == 0
    assert found["snakepit_pool_running_calls", labels()] == 0
    assert found["snakepit_pool_workers", labels(state="ready")] == 2
    assert found["snakepit_pool_workers", labels(state="busy")] == 0
    assert found["snakepit_pool_worker_starts_total", labels()] == 2
    assert found["snakepit_pool_worker_deaths_total", labels()] == 0
    assert found["snakepit_pool_worker_recycled_total", labels()] == 0
    assert found["snakepit_pool_retries_total", labels()] == 0
    assert found["snakepit_worker_memory_bytes", labels(slot="1")] > 2**20
    assert ("snakepit_worker_memory_bytes", labels(slot="2")) in found


def test_a_pool_tells_of_the_shells_and_processes_of_its_sessions_and_of_no_others(tmp_path):
    store = tmp_path / "sessions.sqlite"
    try:
        with Pool(1, name="shop", store=store) as pool:
            before = samples(pool.prometheus())
            session = pool.session("build")
            session.shell.run("true")
            session.processes.start("sleep 60")
            session.processes.start("true").wait()
            open_session("of-no-pool", store=store).shell.run("true")
            during = samples(pool.prometheus())
            session.delete()
            after = samples(pool.prometheus())
    finally:
        manager.close()

    for found, shells, processes in ((before, 0, 0), (during, 1, 1), (after, 0, 0)):
        assert found["snakepit_pool_shells", labels()] == shells
        assert found["snakepit_pool_processes", labels()] == processes


def test_names_are_escaped_and_pools_of_one_name_are_told_apart():
    name = 'a"b\\c\nd'
    pools = [
        PoolStatus(name=name, owner_pid=pid, adapter="none", stats=PoolStats(ok=pid))
        for pid in (1, 2)
    ]

    found = samples(exposition(pools))

    for pid in (1, 2):
        key = tuple(sorted({"pool": name, "owner": str(pid), "outcome": "ok"}.items()))
        assert found["snakepit_pool_calls_total", key] == pid


def test_a_worker_that_replaces_another_goes_on_with_its_series():
    def pool(incarnation):
        worker = WorkerStatus(
            name=f"my-shop-3.{incarnation}",
            pid=1,
            state="ready",
            seconds=0.0,
            calls=0,
            memory_bytes=7,
            running=None,
            run_id="",
        )
        return PoolStatus(name="my-shop", owner_pid=1, adapter="none", workers=[worker])

    assert samples(exposition([pool(1)])) == samples(exposition([pool(12)]))
    assert 'slot="3"' in exposition([pool(1)])


def test_without_pools_there_are_no_samples():
    assert samples(exposition([])) == {}


def test_nothing_is_registered_globally_or_imported_before_it_is_asked_for():
    code = """
import sys
from snakepit_kernel import Pool
assert "prometheus_client" not in sys.modules
from snakepit_kernel.pool.monitoring.prometheus import exposition
from prometheus_client import REGISTRY
exposition([])
assert not any(name.startswith("snakepit") for name in REGISTRY._names_to_collectors)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
