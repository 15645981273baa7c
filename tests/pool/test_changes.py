"""Changes of a pool that meet each other, its end, or the death of workers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest

from snakepit_kernel import Pool, PoolClosed, StartFailed

PATIENCE = 20.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)


def again_and_again(steps: Iterable[Callable[[], object]], seconds: float) -> list[BaseException]:
    """Do each step in a thread of its own without pause; return what they raised."""
    is_over = threading.Event()
    failures: list[BaseException] = []

    def repeat(step: Callable[[], object]) -> None:
        while not is_over.is_set():
            try:
                step()
            except ValueError as error:
                if "there is no worker" not in str(error):
                    failures.append(error)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=repeat, args=[step]) for step in steps]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    is_over.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return failures


def make_starts_slow(seconds: float) -> None:
    source = Path("shop.py").read_text()
    Path("shop.py").write_text(f"import time; time.sleep({seconds})\n{source}")


def in_thread(function: Callable[..., object], *args: object) -> tuple[threading.Thread, list]:
    """Begin something that may fail in a thread; return that, and where its error will be."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function(*args)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_changes_from_many_threads_do_not_disturb_each_other(open_pool):
    pool = open_pool(2)

    failures = again_and_again(
        [
            lambda: pool.resize(random.randint(1, 4)),
            lambda: pool.resize(random.randint(1, 4)),
            pool.recycle,
            lambda: pool.recycle(random.choice(pool.slots())),
            pool.reload,
            lambda: pool.submit(pow, 2, 3).result(timeout=PATIENCE),
        ],
        seconds=3,
    )

    assert failures == []
    pool.resize(2)
    assert len(pool.slots()) == 2
    wait_until(lambda: len(_workers_of(pool)) == 2)
    stats = pool.stats()
    assert (stats.died, stats.lost, stats.ok) == (0, 0, stats.submitted)


def test_changes_go_on_while_workers_are_killed(open_pool):
    pool = open_pool(2)

    def kill() -> None:
        time.sleep(0.2)
        for worker in random.sample(pool.status().workers, 1):
            if worker.pid and worker.state in {"ready", "busy"}:
                os.kill(worker.pid, signal.SIGKILL)

    failures = again_and_again(
        [
            lambda: pool.resize(random.randint(1, 4)),
            pool.recycle,
            pool.reload,
            kill,
        ],
        seconds=3,
    )

    assert {type(error) for error in failures} <= {StartFailed, ProcessLookupError}
    pool.resize(2)
    wait_until(lambda: len(pool.slots()) == len(_workers_of(pool)) == 2)
    assert pool.submit(pow, 2, 3).result(timeout=PATIENCE) == 8


@pytest.mark.parametrize("change", [Pool.reload, Pool.recycle, lambda pool: pool.resize(3)])
def test_a_pool_ends_in_the_middle_of_a_change(shop, open_pool, process_of, change):
    pool = open_pool(2, adapter=shop)
    make_starts_slow(0.6)
    changing, errors = in_thread(change, pool)
    time.sleep(0.3)
    children = [process_of(pid) for pid in _workers_of(pool)]

    pool.terminate()

    changing.join(PATIENCE)
    assert not changing.is_alive()
    assert [type(error) for error in errors] == [PoolClosed]
    assert all(child.wait_gone(5) for child in children)
    assert _workers_of(pool) == []


def test_a_slot_that_goes_while_its_worker_is_replaced_stays_gone(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    make_starts_slow(0.6)
    recycling, errors = in_thread(pool.recycle, 2)
    time.sleep(0.2)

    pool.resize(1)

    recycling.join(PATIENCE)
    assert errors == []
    assert pool.slots() == [1]
    wait_until(lambda: len(_workers_of(pool)) == 1)
    assert pool.call("price", {"item": "tea"}) == 2.5


def test_no_two_workers_of_a_pool_have_the_same_name(open_pool):
    pool = open_pool(2)
    busy = pool.session("s").submit(time.sleep, 1.0), pool.submit(time.sleep, 1.0)
    names = {worker.name for worker in pool.status().workers}

    pool.resize(1)
    pool.resize(2)

    new = {worker.name for worker in pool.status().workers} - names
    assert len(new) == 1
    for future in busy:
        future.result(timeout=10)
    assert pool.run("1 + 1", worker=2).value == 2


def test_shrinking_takes_the_slots_first_that_are_empty(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    source = Path("shop.py").read_text()
    Path("shop.py").write_text("raise RuntimeError('burnt down')")
    os.kill(pool.status().workers[0].pid, signal.SIGKILL)
    wait_until(lambda: pool.slots() == [2])

    pool.resize(1)

    assert pool.slots() == [2]
    assert pool.call("price", {"item": "tea"}) == 2.5
    assert pool.status().problem is None
    Path("shop.py").write_text(source)


def test_reloads_at_the_same_time_leave_all_workers_with_the_same_tools(shop, open_pool):
    pool = open_pool(3, adapter=shop)
    source = Path("shop.py").read_text()
    for name in ("north", "south"):
        Path(f"{name}.py").write_text(source.replace("def price", f"def {name}"))

    threads = [in_thread(pool.reload, f"{name}:Shop") for name in ("north", "south")]
    for thread, errors in threads:
        thread.join(PATIENCE)
        assert errors == []

    (last,) = {"north", "south"} & set(pool.tool_names())
    assert pool.status().adapter == f"{last}:Shop"
    for _ in range(12):
        assert pool.call(last, {"item": "tea"}) == 2.5


@pytest.mark.parametrize("standby", [0, 1])
def test_a_worker_that_starts_during_a_reload_has_the_new_tools(shop, open_pool, standby):
    pool = open_pool(2, adapter=shop, standby=standby)
    source = Path("shop.py").read_text()
    Path("other.py").write_text(source.replace("def price", "def cost"))
    make_starts_slow(1.0)
    os.kill(pool.status().workers[0].pid, signal.SIGKILL)
    wait_until(lambda: pool.status().workers[0].state == "starting" or pool.stats().started > 2)
    time.sleep(0.3)

    pool.reload("other:Shop")

    assert pool.call("cost", {"item": "tea"}, timeout=PATIENCE) == 2.5
    wait_until(lambda: _are_ready(pool))
    for _ in range(4):
        assert pool.call("cost", {"item": "tea"}, timeout=PATIENCE) == 2.5
    before = _pids(pool)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _are_ready(pool) and not set(before) & set(_pids(pool)))
    for _ in range(4):
        assert pool.call("cost", {"item": "tea"}, timeout=PATIENCE) == 2.5


def _pids(pool: Pool) -> list[int | None]:
    return [worker.pid for worker in pool.status().workers]


def _are_ready(pool: Pool) -> bool:
    return all(worker.state == "ready" for worker in pool.status().workers)


def _workers_of(pool: Pool) -> list[int]:
    """Return the pids of the guardians of a pool's workers: one each, from its start to its end."""
    folder = str(pool._engine._folder.path)
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0] == "snakepit-guardian" and any(folder in word for word in words):
            found.append(process.info["pid"])
    return found
