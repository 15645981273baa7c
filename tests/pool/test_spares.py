"""Workers that are kept ready for slots whose worker dies."""

from __future__ import annotations

import os
import select
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
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
    while len(ready := pool._engine._standby._ready) < count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return list(ready)


def kill(pid: int | None) -> None:
    """Kill a process, and wait until it is gone with all its threads."""
    assert pid is not None
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([descriptor], [], [], SOON)[0]
    finally:
        os.close(descriptor)


def wait_for(pool: Pool, pid: int | None) -> None:
    until = time.monotonic() + SOON
    while pool.status().workers[0].pid != pid:
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_spare_takes_the_place_of_a_worker_that_died_and_is_replaced(pool):
    (spare,) = spares_of(pool)
    kill(pool.status().workers[0].pid)
    wait_for(pool, spare.process.pid)
    assert pool.submit(whoami).result() == pool.status().workers[0].name == "default-1.2"
    assert pool.run("6 * 7").value == 42
    wait_for_another_spare(pool, spare)
    assert [worker.name for worker in pool.status().workers] == ["default-1.2"]


def test_a_spare_that_died_is_not_taken(pool):
    (spare,) = spares_of(pool)
    kill(spare.process.pid)
    kill(pool.status().workers[0].pid)
    until = time.monotonic() + SOON
    while pool.status().workers[0].name != "default-1.2":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert pool.submit(whoami).result() == "default-1.2"
    wait_for_another_spare(pool, spare)


def test_spares_end_with_the_pool(open_pool, living):
    pool = open_pool(workers=1, standby=2)
    spares_of(pool, 2)
    pool.shutdown()
    assert [str(item) for item in living()] == []


def test_a_spare_that_was_stopped_is_not_taken_and_is_replaced(pool, process_of):
    (spare,) = spares_of(pool)
    process = process_of(spare.process.pid)
    os.kill(spare.process.pid, signal.SIGSTOP)
    while psutil.Process(spare.process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.001)

    kill(pool.status().workers[0].pid)
    wait_for_another(pool, "default-1.1")

    assert pool.submit(whoami).result(SOON) == "default-1.2"
    assert process.wait_gone()
    wait_for_another_spare(pool, spare)


def wait_for_another_spare(pool: Pool, spare: Worker) -> None:
    until = time.monotonic() + SOON
    while spares_of(pool) == [spare]:
        assert time.monotonic() < until
        time.sleep(0.01)


def wait_for_another(pool: Pool, name: str) -> None:
    until = time.monotonic() + SOON
    while pool.status().workers[0].name == name:
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_spare_whose_main_thread_has_ended_is_replaced(write_adapter, open_pool, process_of):
    pool = open_pool(workers=1, standby=1, adapter=write_adapter)
    (spare,) = spares_of(pool)

    os.kill(spare.process.pid, signal.SIGVTALRM)

    assert process_of(spare.process.pid).wait_gone()
    assert pool.submit(pow, 2, 3).result(SOON) == 8
    wait_for_another_spare(pool, spare)


@pytest.fixture
def write_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write an adapter whose workers end their main thread by a signal."""
    code = """
        import ctypes, signal
        from snakepit_kernel import Adapter, tool
        signal.signal(signal.SIGVTALRM, lambda *_: ctypes.CDLL(None).pthread_exit(0))
        class Little(Adapter):
            @tool
            def well(self):
                return "well"
    """
    (tmp_path / "ending.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "ending:Little"
