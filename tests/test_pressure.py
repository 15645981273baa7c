"""A pool under pressure: a storm of kills, a crowd of workers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

import psutil
import pytest

from snakepit_kernel import Pool, SnakepitError, WorkerDied

SERVING = {"ready", "busy"}


def nap(seconds: float = 0.005) -> int:
    time.sleep(seconds)
    return os.getpid()


nap.__module__ = "__main__"  # by value: this module is no module of the workers


def serving(pool: Pool) -> list[int]:
    return [worker.pid for worker in pool.status().workers if worker.state in SERVING]


def test_a_storm_of_kills_costs_the_calls_that_it_hits_and_nothing_else():
    with Pool(8, name="storm") as pool:
        pool.tool(nap)
        outcomes: Counter[type] = Counter()
        over = threading.Event()

        def client() -> None:
            while not over.is_set():
                try:
                    pool.call("nap", timeout=60)
                except SnakepitError as error:
                    outcomes[type(error)] += 1
                else:
                    outcomes[int] += 1

        clients = [threading.Thread(target=client) for _ in range(16)]
        for each in clients:
            each.start()
        dice = random.Random(1)
        for _ in range(30):
            while len(living := serving(pool)) < 2:
                time.sleep(0.005)
            for pid in dice.sample(living, 2):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # it is being buried
                    continue
            time.sleep(0.025)
        began = time.monotonic()
        while len(serving(pool)) < 8:
            assert time.monotonic() < began + 30, pool.status()
            time.sleep(0.02)
        over.set()
        for each in clients:
            each.join(60)

        assert not any(each.is_alive() for each in clients)
        assert set(outcomes) == {int, WorkerDied}
        stats = pool.stats()
        assert (stats.ok, stats.lost) == (outcomes[int], outcomes[WorkerDied])
        assert stats.submitted == stats.ok + stats.lost
        assert stats.died <= 60
        assert len(set(pool.map(nap, [0.1] * 16))) == 8


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_a_hundred_workers_on_the_cores_that_there_are():
    with Pool(100, name="crowd") as pool:
        pids = set(pool.map(nap, [0.05] * 400))
        assert len(pids) == 100
        assert all(result.ok for result in pool.run_all("1 + 1"))
        memory = sum(
            process.memory_full_info().pss for process in psutil.Process().children(recursive=True)
        )
        assert memory < 24 * 2**30
        print(f"{memory / 2**30:.2f} GiB")
    assert not any(map(psutil.pid_exists, pids))
