"""Measure the store of sessions from inside a cell, beside bare SQLite and Redis, in one run.

    pip install '.[bench]'
    python benchmarks/store.py

Starts a notebook kernel, and in a cell of it measures by turns, round after round: variables
against statements of ``sqlite3`` on the same file (WAL, NORMAL), and against Redis on loopback
(append-only file, always synced) where ``redis-server`` is installed; reads in a worker; four
processes that write at once; ten thousand sessions against ten. Prints medians, and the ratios that
matter with their goals.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cells import run_in_cell, show

RATIOS = [
    ("read", "sqlite3 SELECT", "<=", 2),
    ("write", "sqlite3 upsert", "<=", 3),
    ("batch of 10", "sqlite3 transaction of 10", "<=", 3),
    ("first read in a worker", "no-op call", "<=", 1.5),
    ("repeated read in a worker", "no-op call", "<=", 0.3),
    ("redis GET", "read", ">=", 5),
    ("redis SET", "write", ">=", 2),
    ("open, 10,000 sessions", "open, 10 sessions", "<=", 2),
    ("no-op call p99, listing and sweeping", "no-op call p99", "<=", 2),
]

WRITERS = 4


def us_each(work: Callable[[int], object], count: int) -> float:
    began = time.perf_counter()
    for number in range(count):
        work(number)
    return (time.perf_counter() - began) / count * 1e6


def bare(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE bare (name TEXT PRIMARY KEY, value BLOB)")
    for number in range(20):
        connection.execute("INSERT INTO bare VALUES (?, ?)", (f"v{number}", b"0"))
    return connection


UPSERT = "INSERT INTO bare VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


def variables(folder: Path, count: int) -> dict[str, Callable[[], float]]:
    """One process, one session of 20 variables."""
    from snakepit_kernel import open_session

    path = folder / "one.sqlite"
    session = open_session("bench", store=path)
    session.variables.register_many({f"v{number}": ("float", 0.0) for number in range(20)})
    connection = bare(path)
    held = session.variables

    def transaction(number: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for other in range(10):
            connection.execute(UPSERT, (f"v{other}", b"%d" % number))
        connection.execute("COMMIT")

    names = [f"v{number}" for number in range(10)]
    select = "SELECT value FROM bare WHERE name = ?"
    return {
        "sqlite3 SELECT": lambda: us_each(
            lambda _: connection.execute(select, ("v3",)).fetchone(), count
        ),
        "read": lambda: us_each(lambda _: held["v3"], count),
        "sqlite3 upsert": lambda: us_each(
            lambda number: connection.execute(UPSERT, ("v3", b"%d" % number)), count
        ),
        "write": lambda: us_each(lambda number: held.__setitem__("v3", number), count),
        "sqlite3 transaction of 10": lambda: us_each(transaction, count // 5),
        "batch of 10": lambda: us_each(
            lambda number: held.set_many(dict.fromkeys(names, number)), count // 5
        ),
    }


def redis(folder: Path, count: int) -> dict[str, Callable[[], float]]:
    server = shutil.which("redis-server")
    if server is None:
        print("redis-server is not installed: no comparison with it")
        return {}
    import redis as client_library

    process = subprocess.Popen(
        [
            *(server, "--port", "16379", "--appendonly", "yes", "--appendfsync", "always"),
            *("--dir", str(folder), "--logfile", str(folder / "redis.log")),
        ],
    )
    CLOSERS.append(lambda: (process.terminate(), process.wait()))
    client = client_library.Redis(port=16379)
    while True:
        try:
            client.ping()
            break
        except client_library.ConnectionError:
            time.sleep(0.05)
    client.set("v3", b"0")
    return {
        "redis GET": lambda: us_each(lambda _: client.get("v3"), count),
        "redis SET": lambda: us_each(lambda number: client.set("v3", b"%d" % number), count),
    }


def workers(folder: Path, calls: int) -> dict[str, Callable[[], float]]:
    from snakepit_kernel import Pool

    pool = Pool(1, name="bench-store", store=folder / "workers.sqlite")
    CLOSERS.append(pool.terminate)
    session = pool.session("bench")
    session.variables.register("temperature", "float", 0.5)

    @pool.tool
    def nothing():
        return None

    @pool.tool
    def read():
        import time

        import snakepit_kernel

        held = snakepit_kernel.context().variables
        began = time.perf_counter()
        held["temperature"]
        first = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(100):
            held["temperature"]
        return first * 1e6, (time.perf_counter() - began) / 100 * 1e6

    def median(call: Callable[[], float]) -> float:
        return statistics.median(call() for _ in range(calls))

    def timed() -> float:
        began = time.perf_counter()
        session.call("nothing")
        return (time.perf_counter() - began) * 1e6

    def busy_p99(work: Callable[[], object] | None) -> float:
        done = threading.Event()

        def run() -> None:
            while not done.is_set():
                assert work is not None
                work()
                time.sleep(0.05)

        beside = threading.Thread(target=run, daemon=True)
        if work is not None:
            beside.start()
        taken = sorted(timed() for _ in range(calls * 2))
        done.set()
        if work is not None:
            beside.join()
        return taken[int(len(taken) * 0.99)]

    many = many_sessions(folder)

    def list_and_sweep() -> None:
        many.sessions.all()
        many.sweep()

    return {
        "no-op call": lambda: median(timed),
        "first read in a worker": lambda: median(lambda: session.call("read")[0]),
        "repeated read in a worker": lambda: median(lambda: session.call("read")[1]),
        "no-op call p99": lambda: busy_p99(None),
        "no-op call p99, listing and sweeping": lambda: busy_p99(list_and_sweep),
        "open, 10 sessions": lambda: us_each(
            lambda number: open_one(folder / "ten.sqlite", number % 10), calls
        ),
        "open, 10,000 sessions": lambda: us_each(
            lambda number: open_one(folder / "many.sqlite", number * 7 % 10_000), calls
        ),
    }


def open_one(path: Path, number: int) -> None:
    from snakepit_kernel import open_session

    open_session(f"s{number}", store=path)


def many_sessions(folder: Path):
    """Fill two stores: one with ten sessions, one with ten thousand, each with 20 variables."""
    from snakepit_kernel import open_session
    from snakepit_kernel.store.store import open_store

    spec = {f"v{number}": ("float", 0.5) for number in range(20)}
    for name, count in (("ten", 10), ("many", 10_000)):
        path = folder / f"{name}.sqlite"
        MAX_IDLE.append(open_store(path))
        for number in range(count):
            if number % 2000 == 1999:
                print(f"{number + 1:,} sessions")
            open_session(f"s{number}", store=path).variables.register_many(spec)
    return MAX_IDLE[-1]


WRITER = """
import sys, time
from snakepit_kernel import open_session
held = open_session("shared", store=sys.argv[1]).variables
name, seconds = sys.argv[2], float(sys.argv[3])
held.register(name, "integer", 0)
print("ready", flush=True)
sys.stdin.readline()
count, end = 0, time.perf_counter() + seconds
while time.perf_counter() < end:
    for _ in range(20):
        count += 1
        held[name] = count
print(count)
"""


def write_at_once(folder: Path, seconds: float) -> None:
    """Let four processes write to one file; say how much each has done."""
    from snakepit_kernel import open_session

    path = folder / "four.sqlite"
    open_session("shared", store=path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"w{number}", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(WRITERS)
    ]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    counts = [int(process.stdout.readline()) for process in processes]
    for process in processes:
        process.communicate()
    held = open_session("shared", store=path).variables
    lost = [count - held[f"w{number}"] for number, count in enumerate(counts)]
    total, share = sum(counts) / seconds, min(counts) / max(counts)
    print(f"{WRITERS} processes: {total:,.0f} sets/s (goal >= 10,000), lost {sum(lost)}", end="")
    print(f"; slowest / fastest {share:.2f} (goal >= 0.5)")


CLOSERS: list[Callable[[], object]] = []
MAX_IDLE: list[object] = []


def measure(rounds: int, count: int) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        tasks = variables(folder, count) | redis(folder, count // 5) | workers(folder, count // 5)
        measured: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(rounds):
            for name, task in tasks.items():
                measured[name].append(task())
        show(measured, rounds, RATIOS)
        for _ in range(3):
            write_at_once(folder, 2.0)
    finally:
        for close in CLOSERS:
            close()
        MAX_IDLE.clear()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=2000, help="reads and writes in a round")
    options = parser.parse_args()
    return run_in_cell(Path(__file__), f"measure({options.rounds}, {options.count})")


if __name__ == "__main__":
    sys.exit(main())
