"""Futures: who waits for one receives its answer; the pool's loop does so for all others."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from snakepit_kernel import Pool, WorkerDied
from snakepit_kernel.pool.dispatcher import Dispatcher
from snakepit_kernel.pool.execution import futures

PATIENCE = 20.0


@pytest.fixture(scope="module")
def pool(open_for_all) -> Pool:
    return open_for_all(2)


@pytest.fixture
def blocked_loop(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the pool's loop thread do nothing, however long an answer takes."""
    monkeypatch.setattr(futures, "SOON", PATIENCE)
    while pool.stats().running:  # what another test has cancelled
        time.sleep(0.01)
    is_blocked, gate = threading.Event(), threading.Event()

    def block() -> None:
        is_blocked.set()
        gate.wait()

    pool._engine._loop_thread.soon(block)
    assert is_blocked.wait(PATIENCE)
    yield
    gate.set()


def test_who_waits_for_a_future_needs_no_other_thread(pool, blocked_loop):
    for number in range(20):
        assert pool.submit(pow, number, 2).result(PATIENCE) == number**2


def test_the_lane_of_such_a_future_is_free_at_once(pool, blocked_loop):
    first = pool.submit(pow, 2, 2)
    second = pool.submit(pow, 3, 2)
    assert [second.result(PATIENCE), first.result(PATIENCE)] == [9, 4]
    assert pool.stats().running == 0
    assert pool.submit(pow, 4, 2).exception(PATIENCE) is None


def test_a_future_that_nobody_waits_for_ends_all_the_same(pool):
    ended = threading.Event()
    pool.submit(pow, 2, 2).add_done_callback(lambda _: ended.set())

    assert ended.wait(PATIENCE)


def test_a_future_whose_call_takes_long_may_be_waited_for_as_well(pool):
    future = pool.submit(time.sleep, 0.1)

    with pytest.raises(TimeoutError):
        future.result(0.02)
    with pytest.raises(TimeoutError):
        future.result(0)
    assert future.running()
    assert future.result(PATIENCE) is None


def test_a_time_to_wait_is_kept(pool):
    future = pool.submit(time.sleep, 2)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        future.result(0.002)

    assert time.monotonic() - began < 1
    future.cancel()


def test_several_threads_may_wait_for_one_future(pool):
    for seconds in (0, 0.003, 0.05):
        future = pool.submit(_sleep_and_say, seconds)
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            waiting = [threads.submit(future.result, PATIENCE) for _ in range(4)]
            assert [each.result(PATIENCE) for each in waiting] == ["said"] * 4


def _sleep_and_say(seconds: float) -> str:
    time.sleep(seconds)
    return "said"


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.05])
def test_who_waits_for_a_future_hears_that_another_thread_cancels_it(pool, delay):
    """At once: the worker is deaf for longer."""
    future = pool.submit(_be_deaf, 1.0)
    canceller = threading.Timer(delay, future.cancel)
    canceller.start()
    began = time.monotonic()
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(PATIENCE)
    took = time.monotonic() - began
    canceller.join()

    assert took < 0.8
    assert pool.submit(pow, 2, 2).result(PATIENCE) == 4


def _be_deaf(seconds: float) -> None:
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    time.sleep(seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def test_what_a_call_does_before_its_answer_is_done(pool, capsys):
    def double(number: int) -> int:
        return number * 2

    pool.host_tool(double)
    future = pool.submit(_print_and_ask, 21)

    assert future.result(PATIENCE) == 42
    assert capsys.readouterr().out == "asking\n"


def _print_and_ask(number: int) -> int:
    import snakepit_kernel

    print("asking")
    return snakepit_kernel.context().host_tools.double(number=number)


def test_an_error_is_the_functions_own(pool):
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result(PATIENCE)


def test_a_worker_that_dies_is_told(open_pool):
    pool = open_pool(workers=1)
    future = pool.submit(os._exit, 3)

    with pytest.raises(WorkerDied):
        future.result(PATIENCE)
    assert pool.submit(pow, 2, 2).result(PATIENCE) == 4


class Stubborn:
    """Cannot be restored here."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("not a number",)


Stubborn.__module__ = "__main__"


def _be_stubborn() -> object:
    return Stubborn()


_be_stubborn.__module__ = "__main__"


def test_a_value_that_cannot_be_restored_is_an_error(pool):
    with pytest.raises(Exception, match="not a number"):
        pool.submit(_be_stubborn).result(PATIENCE)
    assert pool.submit(pow, 2, 2).result(PATIENCE) == 4


def test_large_arguments_and_values_are_no_exception(open_pool):
    pool = open_pool(workers=1)
    array = np.arange(1_000_000)
    text = "x" * 3_000_000

    assert pool.submit(np.sum, array).result(PATIENCE) == array.sum()
    assert (pool.submit(np.arange, 1_000_000).result(PATIENCE) == array).all()
    assert pool.submit(str.upper, text).result(PATIENCE) == text.upper()


def test_a_future_that_waited_in_the_queue_is_sent_once(open_pool, monkeypatch, tmp_path):
    """Also if it gets its lane right after it was queued."""
    pool = open_pool(workers=1)
    admit = Dispatcher.admit

    def admit_slowly(*arguments: object) -> None:
        admit(*arguments)
        time.sleep(0.1)

    first = pool.submit(time.sleep, 0.05)
    monkeypatch.setattr(Dispatcher, "admit", admit_slowly)
    second = pool.submit(_append_to, str(tmp_path / "calls"))

    assert second.result(PATIENCE) == first.result(PATIENCE)
    assert pool.submit(pow, 2, 2).result(PATIENCE) == 4
    assert (tmp_path / "calls").read_text() == "x"


def _append_to(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def test_a_forked_child_is_told_that_it_cannot_wait_and_takes_nothing_from_its_parent(pool):
    future = pool.submit(time.sleep, 0.5)
    child = os.fork()
    if child == 0:
        try:
            future.result()
        finally:
            os._exit(7 if "is a fork" in str(sys.exception()) else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    done, _ = concurrent.futures.wait([future], PATIENCE)
    assert done == {future}
