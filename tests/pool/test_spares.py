"""Workers that are kept ready for slots whose worker dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from snakepit_kernel import Pool, context
from snakepit_kernel.pool.workers.worker import Worker

pytestmark = pytest.mark.usefixtures("with_templates")

SOON = 20.0


def whoami() -> str:
    return context().worker


@pytest.fixture
def pool(open_pool: Callable[..., Pool]) -> Pool:
    return open_pool(workers=1, standby=1)


def spares_of(pool: Pool, count: int = 1) -> list[Worker]:
    """Wait until so many are kept ready."""
    until = time.monotonic() + SOON
    while len(ready := pool._engine._crew._spares._ready) < count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return list(ready)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def wait_for(pool: Pool, pid: int | None) -> None:
    until = time.monotonic() + SOON
    while pool.status().workers[0].pid != pid:
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_spare_takes_the_place_of_a_worker_that_died_and_is_replaced(pool):
    (spare,) = spares_of(pool)
    kill(pool.status().workers[0].pid)
    wait_for(pool, spare.pid)
    assert pool.submit(whoami).result() == pool.status().workers[0].name == "default-1.2"
    assert pool.run("6 * 7").value == 42
    assert spares_of(pool) != [spare]
    assert [worker.name for worker in pool.status().workers] == ["default-1.2"]


def test_a_spare_that_died_is_not_taken(pool):
    (spare,) = spares_of(pool)
    kill(spare.pid)
    kill(pool.status().workers[0].pid)
    until = time.monotonic() + SOON
    while pool.status().workers[0].name != "default-1.2":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert pool.submit(whoami).result() == "default-1.2"
    assert spares_of(pool) != [spare]


def test_spares_end_with_the_pool(open_pool, living):
    pool = open_pool(workers=1, standby=2)
    spares_of(pool, 2)
    pool.shutdown()
    assert [str(item) for item in living()] == []
