"""Calls, streams, futures, host tools, large values, cancels, kills, replacements: all mixed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from snakepit_kernel import CallTimeout, Pool, QueueTimeout, StartFailed, ToolError, WorkerDied

CLIENTS = 4

MEMORY_GROWTH = 48 << 20
"""Bytes that the owner may grow between the warm-up and the end, whatever the number of calls."""

LARGE = np.arange(1 << 17, dtype=np.float64)  # 1 MiB

EXPECTED = (WorkerDied, CallTimeout, QueueTimeout, asyncio.CancelledError, TimeoutError)
"""How a piece of work may end beside well, when workers are killed and time is short."""


class Client:
    """Does one thing after the other with a pool, and checks what comes of it."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = pool
        self.outcomes: Counter[str] = Counter()
        kinds: dict[Callable[[], int], int] = {
            self.call: 40,
            self.call_host: 15,
            self.submit: 15,
            self.stream: 6,
            self.leave_stream: 4,
            self.await_some: 4,
            self.large: 3,
            self.cancel: 6,
            self.late: 2,
            self.fail: 5,
        }
        self.kinds = list(kinds)
        self.weights = list(kinds.values())

    def work(self, count: int) -> None:
        while count > 0:
            kind = self.random.choices(self.kinds, self.weights)[0]
            try:
                count -= kind()
                self.outcomes["ok"] += 1
            except EXPECTED as error:
                count -= 1
                self.outcomes[type(error).__name__] += 1

    def call(self) -> int:
        number = self.random.random()
        assert self.pool.call("echo", {"value": number}) == number
        return 1

    def call_host(self) -> int:
        depth = self.random.randrange(3)
        try:
            assert self.pool.call("descend", {"depth": depth}) == depth
        except ToolError as error:
            assert error.type_name in {"ToolError", "WorkerDied"}  # noqa: PT017 - of a nested call
            raise WorkerDied("nested", None) from error
        return 2 * depth + 1

    def submit(self) -> int:
        futures = [self.pool.submit(abs, -n) for n in range(20)]
        for n, future in enumerate(futures):
            with contextlib.suppress(WorkerDied):
                assert future.result(30) == n
        return 20

    def stream(self) -> int:
        assert list(self.pool.stream("count", {"n": 200})) == list(range(200))
        return 1

    def leave_stream(self) -> int:
        for number in self.pool.stream("count", {"n": 10_000}):
            if number == self.random.randrange(300):
                break
        return 1

    def await_some(self) -> int:
        async def several() -> list[object]:
            calls = (self.pool.acall("echo", {"value": n}) for n in range(5))
            return await asyncio.gather(*calls, return_exceptions=True)

        for n, value in enumerate(asyncio.run(several())):
            assert value == n or isinstance(value, EXPECTED), value
        return 5

    def large(self) -> int:
        back = self.pool.call("echo", {"value": LARGE})
        assert (back == LARGE).all()
        return 1

    def cancel(self) -> int:
        futures = [self.pool.submit(time.sleep, 0.02) for _ in range(3)]
        time.sleep(self.random.random() * 0.01)
        cancelled = [future.cancel() for future in futures]
        for future, was_cancelled in zip(futures, cancelled, strict=True):
            assert future.cancelled() == was_cancelled
        return 3

    def late(self) -> int:
        with pytest.raises((CallTimeout, WorkerDied)):
            self.pool.call("nap", {"seconds": 30.0}, timeout=0.02)
        return 1

    def fail(self) -> int:
        try:
            self.pool.call("fail")
        except ToolError as error:
            assert error.type_name == "KeyError"  # noqa: PT017 - others may end it as well
        return 1


def holdings() -> dict[str, int]:
    gc.collect()
    shared = len(os.listdir("/dev/shm"))
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "shared memory": shared,
    }


@pytest.mark.chaos
@pytest.mark.timeout(1700)
def test_a_pool_under_mixed_work_keeps_its_books_and_its_size(request):
    calls = request.config.getoption("--soak-calls")
    seed = request.config.getoption("--chaos-seed") or random.randrange(1 << 32)
    print(f"seed {seed}")  # shown when it fails
    pool = Pool(2, name="soak", max_queue=10_000, queue_timeout=60.0)

    @pool.tool
    def echo(value):
        return value

    @pool.tool
    def nap(seconds: float):
        import time

        time.sleep(seconds)

    @pool.tool
    def fail():
        raise KeyError("always")

    @pool.tool
    def count(n: int):
        yield from range(n)

    @pool.tool
    def descend(depth: int) -> int:
        import snakepit_kernel

        if depth == 0:
            return 0
        return snakepit_kernel.context().host_tools.descend_here(depth=depth)

    @pool.host_tool
    def descend_here(depth: int) -> int:
        return pool.call("descend", {"depth": depth - 1}) + 1

    clients = [Client(pool, seed + number) for number in range(CLIENTS)]

    def run(share: int) -> None:
        threads = [threading.Thread(target=client.work, args=(share,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    over = threading.Event()
    done: Counter[str] = Counter()

    def kill_one(dice: random.Random) -> None:
        victim = dice.choice(pool.status().workers)
        if victim.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGKILL)

    troubles: dict[str, Callable[[random.Random], None]] = {
        "kills": kill_one,
        "recycles": lambda dice: pool.recycle(dice.choice(pool.slots() or [None])),
        "reloads": lambda _: pool.reload(),
        "sizes": lambda dice: pool.resize(dice.randint(1, 4)),
    }

    def make_trouble() -> None:
        dice = random.Random(seed)
        while not over.wait(0.5 + 2 * dice.random()):
            (name,) = dice.choices(list(troubles), [5, 2, 1, 1])
            with contextlib.suppress(StartFailed, ValueError):  # the worker was killed meanwhile
                troubles[name](dice)
                done[name] += 1
        pool.resize(2)

    run(max(200, calls // 40))  # until caches are filled
    before = holdings()
    memory = psutil.Process().memory_info().rss
    killer = threading.Thread(target=make_trouble)
    killer.start()
    run(calls // CLIENTS)
    over.set()
    killer.join()
    for _ in range(4):  # both workers are there again, and serve
        pool.call("echo", {"value": 1}, timeout=30.0)
    grown = psutil.Process().memory_info().rss - memory
    end = time.monotonic() + 10
    while (after := holdings())["descriptors"] > before["descriptors"] + 4:
        if time.monotonic() > end:
            break
        time.sleep(0.1)  # those that the last change of size has retired end by themselves
    stats = pool.stats()
    pool.shutdown()

    outcomes = sum((client.outcomes for client in clients), Counter())
    print(f"{calls} calls, {dict(done)}, {grown >> 10} KiB more, {dict(outcomes)}, {stats}")
    assert stats.queued == stats.running == 0
    ended = (stats.ok, stats.error, stats.cancelled, stats.timeout, stats.saturated, stats.lost)
    assert stats.submitted == sum(ended)
    assert after["shared memory"] == before["shared memory"]
    assert after["descriptors"] <= before["descriptors"] + 4
    assert after["threads"] <= before["threads"] + 2
    assert grown < MEMORY_GROWTH
