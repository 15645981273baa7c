"""Calls between two attempts, and what counts as a failure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from snakepit_kernel import BreakerOpen, Pool, PoolClosed, ToolError

FICKLE = """
import asyncio, time
from pathlib import Path
from snakepit_kernel import Adapter, tool

class Fickle(Adapter):
    @tool(idempotent=True)
    def second_time(self) -> str:
        if not Path("begun").exists():
            Path("begun").touch()
            raise ConnectionError("refused")
        return "done"

    @tool
    async def anap(self, seconds: float):
        await asyncio.sleep(seconds)

    @tool
    def count(self):
        for number in range(1000):
            yield number
            time.sleep(0.01)

    @tool
    def ask_host(self):
        return self.context.call_host_tool("end_of_work", {})

    @tool(idempotent=True)
    def fail(self):
        raise ConnectionError("refused")
"""

REFUSED = {"on": ["ConnectionError"], "attempts": 2}


@pytest.fixture
def fickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fickle.py").write_text(FICKLE)
    monkeypatch.chdir(tmp_path)
    return "fickle:Fickle"


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)


def begin(pool: Pool, way: str) -> Future[str]:
    """Begin a call that fails the first time; return when it waits for its second attempt."""
    calls = {
        "call": lambda: pool.call("second_time"),
        "acall": lambda: asyncio.run(pool.acall("second_time")),
    }
    threads = ThreadPoolExecutor(1)
    running = threads.submit(calls[way])
    threads.shutdown(wait=False)
    wait_until(lambda: pool.stats().retried)
    return running


@pytest.mark.parametrize("way", ["call", "acall"])
@pytest.mark.parametrize("end", [Pool.drain, Pool.shutdown])
def test_a_call_that_is_to_be_made_again_belongs_to_what_was_accepted(fickle, open_pool, way, end):
    pool = open_pool(1, adapter=fickle, retry={**REFUSED, "backoff": 0.5})
    running = begin(pool, way)

    end(pool)

    assert running.result(timeout=5) == "done"
    stats = pool.stats()
    assert (stats.submitted, stats.ok, stats.running, stats.queued) == (1, 1, 0, 0)


@pytest.mark.parametrize("way", ["call", "acall"])
def test_a_call_that_is_to_be_made_again_hears_at_once_that_its_pool_ends(fickle, open_pool, way):
    pool = open_pool(1, adapter=fickle, retry={**REFUSED, "backoff": 60.0})
    running = begin(pool, way)

    pool.terminate()

    with pytest.raises(PoolClosed):
        running.result(timeout=2)
    wait_until(lambda: pool.stats().lost == 1)
    assert pool.stats().running == 0


def test_a_task_that_is_cancelled_between_two_attempts_is_counted_once(fickle, open_pool):
    pool = open_pool(1, adapter=fickle, retry={**REFUSED, "backoff": 60.0})

    async def main() -> None:
        call = asyncio.ensure_future(pool.acall("second_time"))
        while not pool.stats().retried:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())

    stats = pool.stats()
    assert (stats.submitted, stats.cancelled, stats.running, stats.queued) == (1, 1, 0, 0)


def test_work_that_nobody_wants_any_more_is_no_failure(fickle, open_pool):
    pool = open_pool(1, adapter=fickle, breaker={"failures": 1, "seconds": 60})

    async def main() -> None:
        call = asyncio.ensure_future(pool.acall("anap", {"seconds": 30}))
        while not pool.stats().running:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    chunks = pool.stream("count")
    next(chunks)
    chunks.close()

    assert pool.submit(pow, 2, 3).result() == 8
    assert pool.stats().cancelled == 2


def test_what_an_open_breaker_refuses_is_not_asked_for_again(fickle, open_pool):
    pool = open_pool(
        1,
        adapter=fickle,
        breaker={"failures": 1, "seconds": 60},
        retry={"on": ["tool"], "attempts": 3, "backoff": 0.01},
    )
    with pytest.raises(ToolError, match="refused"):
        pool.call("fail")
    calls = pool.status().workers[0].calls

    with pytest.raises(BreakerOpen):
        pool.call("fail")

    assert pool.status().workers[0].calls == calls == 3
    assert pool.stats().retried == 2


def test_one_of_many_threads_makes_the_trial_of_a_breaker(fickle, open_pool):
    pool = open_pool(2, adapter=fickle, breaker={"failures": 1, "seconds": 0.5})
    outcomes = []
    start = threading.Barrier(8)

    def call() -> None:
        start.wait()
        try:
            pool.call("fail")
        except (ToolError, BreakerOpen) as error:
            outcomes.append(type(error))

    with pytest.raises(ToolError):
        pool.call("fail")
    time.sleep(0.6)
    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count(ToolError) == 1
    assert outcomes.count(BreakerOpen) == 7
    stats = pool.stats()
    assert stats.submitted == stats.error + stats.lost == 9


def test_whom_a_pool_waits_for_cannot_drain_it(fickle, open_pool):
    pool = open_pool(1, adapter=fickle)
    said: list[str] = []

    def drain(*_: object) -> None:
        try:
            pool.drain()
        except RuntimeError as error:
            said.append(str(error))

    pool.submit(time.sleep, 0.1).add_done_callback(drain)
    wait_until(lambda: said)

    @pool.host_tool
    def end_of_work() -> None:
        drain()

    assert pool.call("ask_host", timeout=10) is None

    assert len(said) == 2
    assert all("use another thread" in each for each in said)
    assert pool.submit(pow, 2, 3).result() == 8
