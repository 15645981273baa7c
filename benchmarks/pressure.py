"""Measure a pool under pressure: kills, a crowd of workers, many sessions, replacements under load.

    python benchmarks/pressure.py

Each part is measured in rounds; the medians stand beside what they are compared with in the same
run. ``--only storm`` measures one part.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable

import psutil

from snakepit_kernel import Pool, SnakepitError

CALL_SECONDS = 0.005
SERVING = {"ready", "busy"}


def nap(seconds: float = CALL_SECONDS) -> int:
    import os
    import time

    time.sleep(seconds)
    return os.getpid()


def nothing() -> None:
    return None


def median(values: list[float]) -> float:
    return statistics.median(values)


def show(what: str, value: str, goal: str = "") -> None:
    print(f"{what:<64} {value:>18}  {goal}", flush=True)


# -- storm -----------------------------------------------------------------------------------------


def storm(workers: int = 8, clients: int = 16, pairs: int = 30, pause: float = 0.025) -> None:
    """Kill two workers at a time while clients call; count every outcome."""
    pool = Pool(workers, name="storm")
    pool.tool(nap)
    outcomes: Counter[str] = Counter()
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                pool.call("nap", timeout=30)
                outcomes["ok"] += 1
            except SnakepitError as error:
                outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    dice = random.Random(7)
    kills = 0
    while kills < 2 * pairs:
        time.sleep(pause)
        living = [worker.pid for worker in pool.status().workers if worker.state in SERVING]
        for pid in dice.sample(living, min(2, len(living))):
            try:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            except ProcessLookupError:  # the last one, not noticed yet
                continue
    began = time.monotonic()
    while sum(worker.state in SERVING for worker in pool.status().workers) < workers:
        time.sleep(0.005)
    recovered = time.monotonic() - began
    time.sleep(0.2)
    over.set()
    began = time.monotonic()
    for thread in threads:
        thread.join(30)
    hung = sum(thread.is_alive() for thread in threads)
    stats = pool.stats()
    pool.shutdown()
    lost = stats.submitted - sum(outcomes.values())
    show(f"storm: {kills} kills; full strength after", f"{recovered:.2f} s", "<= 3 s")
    show("storm: outcomes", ", ".join(f"{n} {name}" for name, n in outcomes.items()))
    show("storm: calls that hung / were not counted", f"{hung} / {lost}", "0 / 0")
    with concurrent.futures.ProcessPoolExecutor(workers) as executor:
        os.kill(executor.submit(os.getpid).result(), signal.SIGKILL)
        time.sleep(0.5)
        try:
            executor.submit(os.getpid).result(10)
            after = "works"
        except concurrent.futures.process.BrokenProcessPool:
            after = "broken for good"
    show("storm: ProcessPoolExecutor after one kill", after)


# -- crowd -----------------------------------------------------------------------------------------


def crowd(workers: int = 100) -> None:
    """Start many workers on the cores that there are, and use each."""
    began = time.monotonic()
    pool = Pool(workers, name="crowd")
    started = time.monotonic() - began
    began = time.monotonic()
    used = len(set(pool.map(nap, [0.05] * workers * 4)))
    mapped = time.monotonic() - began
    began = time.monotonic()
    cells = sum(result.ok for result in pool.run_all("1 + 1"))
    ran = time.monotonic() - began
    memory = 0
    for process in psutil.Process().children(recursive=True):
        try:
            memory += process.memory_full_info().pss
        except psutil.Error:
            continue
    began = time.monotonic()
    pool.shutdown()
    ended = time.monotonic() - began
    show(f"crowd: {workers} workers started", f"{started:.1f} s")
    show("crowd: of them used by a map of four naps of 50 ms each", f"{used} in {mapped:.2f} s")
    show("crowd: a cell in each (channels open with the first)", f"{cells} in {ran:.1f} s")
    show("crowd: memory of all processes (PSS)", f"{memory / 2**30:.2f} GiB", "<= 24 GiB")
    show("crowd: ended and verified", f"{ended:.1f} s")


# -- sessions --------------------------------------------------------------------------------------


def sessions(rounds: int, count: int = 1000, workers: int = 8, calls: int = 500) -> None:
    """Compare a call of one of many sessions on several workers with that of one on one worker."""
    one, many = Pool(1, name="one"), Pool(workers, name="many")
    for pool in (one, many):
        pool.tool(nothing)
    alone = one.session("alone")
    crowded = [many.session(f"s{number}") for number in range(count)]
    for session in (alone, *crowded):
        session.call("nothing")
    dice = random.Random(7)
    cases: dict[str, Callable[[], object]] = {
        "one session on one worker": lambda: alone.call("nothing"),
        f"{count} sessions on {workers} workers": lambda: dice.choice(crowded).call("nothing"),
        f"no session on {workers} workers": lambda: many.call("nothing"),
    }
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            times = []
            for _ in range(calls):
                began = time.perf_counter()
                call()
                times.append(time.perf_counter() - began)
            measured[name].append(median(times) * 1e6)
    base, crowd_us, free_us = measured.values()
    for name, values in measured.items():
        show(f"sessions: a call, {name}", f"{median(values):.0f} us")
    ratios = [each / first for each, first in zip(crowd_us, base, strict=True)]
    show("sessions: many / one", f"{median(ratios):.2f} x", "<= 1.3 x")
    ratios = [each / first for each, first in zip(free_us, base, strict=True)]
    show("sessions: the part of it that the number of workers has", f"{median(ratios):.2f} x")
    many.shutdown()
    one.shutdown()


# -- replacements ----------------------------------------------------------------------------------


def replacements(rounds: int, workers: int = 3, clients: int = 4, seconds: float = 3.0) -> None:
    """Compare calls while workers are replaced every second with calls while none is."""

    def run(max_age: float | None) -> tuple[float, float, int, int]:
        pool = Pool(workers, name="swap", max_age=max_age)
        pool.tool(nap)
        times: list[float] = []
        failed: list[Exception] = []
        end = time.monotonic() + seconds

        def client() -> None:
            while time.monotonic() < end:
                began = time.perf_counter()
                try:
                    pool.call("nap", timeout=30)
                except SnakepitError as error:
                    failed.append(error)
                times.append(time.perf_counter() - began)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        recycled = pool.stats().recycled
        pool.shutdown()
        return median(times) * 1e3, max(times) * 1e3, len(failed), recycled

    still, swapped = [], []
    for _ in range(rounds):
        still.append(run(None))
        swapped.append(run(1.0))
    recycled, failed = sum(each[3] for each in swapped), sum(each[2] for each in swapped)
    show("replacements: workers replaced / calls that failed", f"{recycled} / {failed}", "- / 0")
    for number, name in enumerate(("median", "longest")):
        base, other = (median([each[number] for each in runs]) for runs in (still, swapped))
        ratio = other / base
        show(
            f"replacements: {name} call, with / without",
            f"{other:.1f} / {base:.1f} ms",
            f"{ratio:.2f} x",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("storm", "crowd", "sessions", "replacements")
    parser.add_argument("--only", choices=parts, help="measure one part")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    chosen = [options.only] if options.only else parts
    if "storm" in chosen:
        storm()
    if "crowd" in chosen:
        crowd()
    if "sessions" in chosen:
        sessions(options.rounds)
    if "replacements" in chosen:
        replacements(options.rounds)


if __name__ == "__main__":
    main()
