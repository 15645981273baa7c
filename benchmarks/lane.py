"""Measure calls, futures, streams and large values from inside a cell, beside peers, in one run.

    pip install '.[bench]'
    python benchmarks/lane.py

Starts a notebook kernel, and in a cell of it measures by turns, round after round, so that a slow
moment of the machine meets them all. Peers are a bare socket pair between two processes (the
floor), ``ProcessPoolExecutor``, ipyparallel, and copies within memory. Prints medians, and the
ratios that matter with their goals.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import multiprocessing
import operator
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cells import run_in_cell, show

MEGABYTE = 1_000_000


def nothing():
    return None


def median_us(call: Callable[[], object], calls: int) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def us_each(work: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / count * 1e6


class Floor:
    """64 bytes to another process and back, both sides blocking."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair()
        self.child = os.fork()
        if self.child == 0:
            self.ours.close()
            while data := theirs.recv(256):
                theirs.send(data)
            os._exit(0)
        theirs.close()

    def __call__(self) -> None:
        """Go there and back."""
        self.ours.send(b"x" * 64)
        self.ours.recv(256)

    def close(self) -> None:
        """End the other process."""
        self.ours.close()
        os.waitpid(self.child, 0)


def executor(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    made = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
    list(made.map(operator.neg, range(workers * 4)))
    return made


def short_calls(calls: int) -> dict[str, Callable[[], float]]:
    """One caller, one worker."""
    from snakepit_kernel import Pool

    pool = Pool(1, name="short")

    @pool.tool
    def typed(item: str, amount: int = 1):  # noqa: ARG001 - checked, not used
        return None

    @pool.host_tool
    def host():
        return None

    @pool.tool
    def call_host(times: int):
        import statistics
        import time

        import snakepit_kernel

        host = snakepit_kernel.context().host_tools.host
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            host()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken) * 1e6

    @pool.tool
    def chunks(count: int):
        for _ in range(count):
            yield b"x" * 100

    async def awaited() -> float:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            await pool.acall("typed", {"item": "tea"})
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1e6

    def run_awaited() -> float:  # in a thread: the cell's own loop is running
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, awaited()).result()

    floor, peer = Floor(), executor(1)
    many = 20 * calls

    def take_chunks() -> None:
        for _ in pool.stream("chunks", {"count": many}):
            pass

    CLOSERS.extend([floor.close, peer.shutdown, pool.shutdown])
    return {
        "socketpair ping-pong": lambda: median_us(floor, calls),
        "call": lambda: median_us(lambda: pool.call("typed", {"item": "tea", "amount": 2}), calls),
        "await acall": run_awaited,
        "host tool, inside a call": lambda: pool.call("call_host", {"times": calls}),
        "a chunk of a stream": lambda: us_each(take_chunks, many),
        "executor submit().result()": lambda: median_us(
            lambda: peer.submit(os.getpid).result(), calls // 4
        ),
    }


def many_calls(count: int) -> dict[str, Callable[[], float]]:
    """Many calls at once, two workers; and eight callers, four workers."""
    from snakepit_kernel import Pool

    two, peer_two = Pool(2, name="two", max_queue=count), executor(2)
    four, peer_four = Pool(4, name="four"), executor(4)
    four.tool(nothing)
    items = range(count)

    def submit(pool) -> None:
        concurrent.futures.wait([pool.submit(operator.neg, item) for item in items])

    def best_chunks(pool) -> float:
        def work(size: int) -> None:
            for _ in pool.map(operator.neg, items, chunksize=size):
                pass

        return min(us_each(lambda size=size: work(size), count) for size in (100, 500, 2500))

    def threads(call: Callable[[], object]) -> None:
        def work() -> None:
            for _ in range(count // 16):
                call()

        callers = [threading.Thread(target=work) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()

    def from_threads(call: Callable[[], object]) -> float:
        return us_each(lambda: threads(call), count // 2)

    CLOSERS.extend([two.shutdown, peer_two.shutdown, four.shutdown, peer_four.shutdown])
    return {
        "submit": lambda: us_each(lambda: submit(two), count),
        "submit, executor": lambda: us_each(lambda: submit(peer_two), count),
        "map": lambda: us_each(lambda: list(two.map(operator.neg, items)), count),
        "map, executor": lambda: us_each(lambda: list(peer_two.map(operator.neg, items)), count),
        "map in chunks": lambda: best_chunks(two),
        "map in chunks, executor": lambda: best_chunks(peer_two),
        "call from 8 threads": lambda: from_threads(lambda: four.call("nothing")),
        "call from 8 threads, executor": lambda: from_threads(
            lambda: peer_four.submit(nothing_named).result()
        ),
    }


nothing_named = time.tzset  # takes nothing, does next to nothing, and every process knows it


def large_values() -> dict[str, Callable[[], float]]:
    """Arrays there and back; what comes back is a new array."""
    import numpy as np

    from snakepit_kernel import Pool

    pool, peer = Pool(1, name="large"), executor(1)

    @pool.tool
    def positive(value):
        return +value

    arrays = {"100 MB": np.ones(100 * MEGABYTE // 8), "1 MB": np.ones(MEGABYTE // 8)}
    target = np.ones_like(arrays["100 MB"])

    def copy_twice() -> None:
        target[:] = arrays["100 MB"]
        target[:] = arrays["100 MB"]

    rows: dict[str, Callable[[], float]] = {
        "100 MB copied twice": lambda: median_us(copy_twice, 3),
    }
    for name, array in arrays.items():
        calls = 3 if name == "100 MB" else 30
        rows[f"{name} there and back"] = lambda array=array, calls=calls: median_us(
            lambda: pool.call("positive", {"value": array}), calls
        )
        rows[f"{name} there and back, executor"] = lambda array=array, calls=calls: median_us(
            lambda: peer.submit(operator.pos, array).result(), max(1, calls // 3)
        )
    CLOSERS.extend([pool.shutdown, peer.shutdown])
    return rows


def parallel(calls: int) -> dict[str, Callable[[], float]]:
    """Measure ipyparallel."""
    import ipyparallel
    import numpy as np

    os.environ["TQDM_DISABLE"] = "1"
    cluster = ipyparallel.Cluster(n=1, log_level=40)
    view = cluster.start_and_connect_sync(activate=False)[:]
    array = np.ones(100 * MEGABYTE // 8)

    def push_and_pull() -> None:
        view.push({"array": array}, block=True)
        view.pull("array", block=True)

    CLOSERS.append(cluster.stop_cluster_sync)
    return {
        "ipyparallel apply_sync": lambda: median_us(
            lambda: view.apply_sync(nothing), max(10, calls // 40)
        ),
        "100 MB push and pull, ipyparallel": lambda: median_us(push_and_pull, 1),
    }


RATIOS = (  # what is compared, with what, and the goal: at most, or at least, so many times
    ("call", "socketpair ping-pong", "<=", 6),
    ("executor submit().result()", "call", ">=", 4),
    ("ipyparallel apply_sync", "call", ">=", 50),
    ("await acall", "call", "<=", 2),
    ("host tool, inside a call", "call", "<=", 1.5),
    ("call", "a chunk of a stream", ">=", 5),
    ("submit, executor", "submit", ">=", 5),
    ("map, executor", "map", ">=", 5),
    ("map in chunks, executor", "map in chunks", ">=", 2),
    ("call from 8 threads, executor", "call from 8 threads", ">=", 3),
    ("100 MB there and back", "100 MB copied twice", "<=", 2.5),
    ("100 MB push and pull, ipyparallel", "100 MB there and back", ">=", 8),
    ("100 MB there and back, executor", "100 MB there and back", ">=", 10),
    ("1 MB there and back, executor", "1 MB there and back", ">=", 4),
)

CLOSERS: list[Callable[[], object]] = []


def measure(rounds: int, calls: int) -> None:
    """Measure everything, in this kernel."""
    parts = (
        short_calls(calls),
        many_calls(10 * calls),
        large_values(),
        parallel(calls),
    )
    rows = {name: row for part in parts for name, row in part.items()}
    measured: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(rounds + 1):
        for name, row in rows.items():
            taken = row()
            if turn:  # the first round warms up
                measured[name].append(taken)
    for close in CLOSERS:
        close()
    show(measured, rounds, RATIOS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1000, help="calls in a round")
    options = parser.parse_args()
    return run_in_cell(Path(__file__), f"measure({options.rounds}, {options.calls})")


if __name__ == "__main__":
    sys.exit(main())
