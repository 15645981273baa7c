"""Who is served first by real workers, in the order in which work ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from snakepit_kernel import Pool
from snakepit_kernel.pool.caller import Caller

GREEDY = 40
"""Pieces of work that the greedy one asks for at once."""

PATIENCE = 60.0

Begin = Callable[[Caller, float, Callable[[], object]], None]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def by_call(caller: Caller, seconds: float, note: Callable[[], object]) -> None:
    _in_thread(lambda: caller.call("nap", {"seconds": seconds}, timeout=PATIENCE), note)


def by_future(caller: Caller, seconds: float, note: Callable[[], object]) -> None:
    caller.submit(time.sleep, seconds).add_done_callback(lambda _: note())


def by_cell(caller: Caller, seconds: float, note: Callable[[], object]) -> None:
    code = f"import time; time.sleep({seconds})"
    _in_thread(lambda: caller.run(code, timeout=PATIENCE), note)


def _in_thread(work: Callable[[], object], note: Callable[[], object]) -> None:
    def run() -> None:
        work()
        note()

    threading.Thread(target=run).start()


class Race:
    """Notes in which order work of a pool ends.

    Parameters
    ----------
    pool
        The pool.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.order: list[str] = []
        self.begun = 0

    def begin(self, name: str, caller: Caller, count: int, way: Begin, seconds: float) -> None:
        """Ask for some work; return when the pool has taken it in."""
        submitted = self.pool.stats().submitted + count
        self.begun += count
        for _ in range(count):
            way(caller, seconds, lambda: self.order.append(name))
        wait_until(lambda: self.pool.stats().submitted == submitted)

    def ahead_of(self, name: str) -> int:
        """Wait until all is done; return how much other work ended before the last of a name."""
        wait_until(lambda: len(self.order) == self.begun)
        last = max(index for index, each in enumerate(self.order) if each == name)
        return sum(each != name for each in self.order[:last])


@pytest.mark.parametrize("modest", [by_call, by_future, by_cell])
@pytest.mark.parametrize("greedy", [by_call, by_future, by_cell])
def test_a_session_waits_for_what_runs_and_not_for_what_another_one_has_waiting(
    shop, open_pool, greedy, modest
):
    pool = open_pool(2, adapter=shop)
    race = Race(pool)
    race.begin("greedy", pool.session("greedy"), GREEDY, greedy, 0.03)
    done = len(race.order)

    race.begin("modest", pool.session("modest"), 1, modest, 0.0)

    # What runs on the two workers, and what they begin while it is being asked for; a busy machine
    # takes its time for that. Behind all that waits, it would be nearly all of them.
    assert race.ahead_of("modest") - done <= GREEDY // 2


@pytest.mark.parametrize("way", [by_call, by_future, by_cell])
def test_work_without_a_session_is_one_more_session(shop, open_pool, way):
    pool = open_pool(2, adapter=shop)
    race = Race(pool)
    race.begin("anonymous", pool, GREEDY, way, 0.03)
    done = len(race.order)

    race.begin("session", pool.session("s"), 4, way, 0.03)

    assert race.ahead_of("session") - done <= GREEDY // 2  # they take turns


def test_short_work_that_a_worker_gets_many_of_at_a_time_lets_a_session_in(open_pool):
    pool = open_pool(1)
    list(pool.map(abs, range(2000)))  # they are known to be short
    count = 20_000
    session = pool.session("s")
    futures = [pool.submit(abs, -1) for _ in range(900)]
    values = pool.map(abs, range(count))

    before = pool.stats().queued
    assert session.submit(abs, -1).result(timeout=PATIENCE) == 1
    after = pool.stats().queued

    assert sum(future.result() for future in futures) == 900
    assert list(values) == list(range(count))
    assert before - after < count / 8, "most of what waited still does"


def test_work_of_a_higher_priority_overtakes_all_that_waits(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    race = Race(pool)
    race.begin("low", pool.session("a"), GREEDY, by_future, 0.03)
    race.begin("low", pool.session("b"), GREEDY, by_future, 0.03)
    done = len(race.order)

    race.begin("high", pool.session("c", priority=1), 10, by_call, 0.03)

    assert race.ahead_of("high") - done <= GREEDY // 2


def test_sessions_share_the_threads_of_a_worker(open_pool):
    pool = open_pool(1, profile="thread", threads_per_worker=4)
    race = Race(pool)
    race.begin("greedy", pool.session("greedy"), GREEDY, by_future, 0.05)
    done = len(race.order)

    race.begin("modest", pool.session("modest"), 4, by_future, 0.05)

    assert race.ahead_of("modest") - done <= 3 * 4


def test_a_session_that_is_bound_to_a_busy_worker_keeps_nobody_from_the_others(open_pool):
    pool = open_pool(2)
    bound = pool.session("bound", affinity="strict_queue")
    race = Race(pool)
    race.begin("bound", bound, GREEDY, by_future, 0.03)

    race.begin("free", pool.session("free"), 10, by_future, 0.03)

    # It may use one worker only, so the others have the second one for themselves.
    assert race.ahead_of("free") <= 10 + 2 * 2 + 4


def test_what_is_cancelled_while_it_waits_leaves_nothing_in_the_queue(open_pool):
    pool = open_pool(1, max_queue=5000)
    first = pool.submit(time.sleep, 0.5)
    futures: list[Future[int]] = [
        pool.session(f"s{number % 7}").submit(abs, number) for number in range(700)
    ]
    for future in futures:
        assert future.cancel()

    queue = pool._engine.dispatcher.scheduler._queue
    assert len(queue) == pool.stats().queued == 0
    assert not queue._levels
    first.result()
    wait_until(lambda: not queue._held)
    assert pool.stats().cancelled == 700
