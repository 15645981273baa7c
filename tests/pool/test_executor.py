"""The pool as an executor: what the standard library's executors do, and in the same way."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from snakepit_kernel import Pool, PoolClosed, PoolSaturated, QueueTimeout, WorkerDied
from snakepit_kernel.lane.control_page import RECALL_SIGNAL
from snakepit_kernel.pool.execution.pipeline import LanePipeline


def square(x: int) -> int:
    return x * x


def fail(text: str) -> None:
    raise ValueError(text)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


async def answer(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


def test_a_submitted_function_gives_its_value(open_pool):
    pool = open_pool()

    assert pool.submit(pow, 2, 10).result() == 1024
    assert pool.submit(int, "ff", base=16).result() == 255
    assert pool.submit(lambda x: x + 1, 1).result() == 2
    assert pool.submit(answer, 1).result() == 2


def test_an_exception_is_the_original_with_the_workers_traceback_as_its_cause(open_pool):
    future = open_pool().submit(fail, "no")

    with pytest.raises(ValueError, match="no") as caught:
        future.result()

    assert "in fail" in str(caught.value.__cause__)
    assert isinstance(future.exception(), ValueError)


def test_map_gives_values_in_order_and_takes_several_iterables(open_pool):
    pool = open_pool(2)

    assert list(pool.map(square, range(20))) == [x * x for x in range(20)]
    assert list(pool.map(pow, [2, 3], [3, 2])) == [8, 9]
    assert list(pool.map(square, range(10), chunksize=4)) == [x * x for x in range(10)]
    assert list(pool.map(square, [])) == []


def test_map_of_more_items_than_the_queue_holds_works(open_pool):
    pool = open_pool(max_queue=3, queue_timeout=0.1)

    assert len(list(pool.map(square, range(200)))) == 200


def test_map_pickles_its_function_once_and_sends_it_once_to_each_worker(open_pool):
    pool = open_pool(2)
    pickled: list[object] = []

    class Costly:
        made = 0

        def __reduce__(self):
            pickled.append(self)
            return Costly.make, ()

        @staticmethod
        def make():
            Costly.made += 1
            return object.__new__(Costly)

    costly = Costly()

    def count(_: int) -> tuple[int, int]:
        time.sleep(0.01)
        assert isinstance(costly, Costly)
        return os.getpid(), Costly.made

    counts = dict(pool.map(count, range(20)))

    assert len(pickled) == 1
    assert sorted(counts.values()) == [1, 1]
    assert pool._apply(_alive, worker=1) == 0, "the worker keeps the function no longer"


def _alive() -> int:
    return sum(type(item).__name__ == "Costly" for item in gc.get_objects())


_alive.__module__ = "__main__"


def test_map_raises_the_first_error_and_cancels_the_rest(open_pool):
    pool = open_pool()

    with pytest.raises(ZeroDivisionError):
        list(pool.map(lambda x: time.sleep(0.005) or 1 / x, [1, 0, *range(1, 200)]))

    stats = pool.stats()
    assert stats.cancelled > 0
    assert stats.ok < 100


def test_map_keeps_its_deadline(open_pool):
    with pytest.raises(TimeoutError):
        list(open_pool().map(time.sleep, [5], timeout=0.2))


def test_map_refuses_a_chunksize_below_one(open_pool):
    with pytest.raises(ValueError, match="chunksize must be at least 1"):
        open_pool().map(square, [1], chunksize=0)


def test_map_with_a_buffersize_reads_no_further_ahead_and_takes_what_has_no_end(open_pool):
    pool = open_pool(2)
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    squares = pool.map(square, numbers(), chunksize=3, buffersize=2)
    assert len(read) == 6
    assert list(itertools.islice(squares, 20)) == [x * x for x in range(20)]
    assert len(read) <= 20 + 9
    assert list(Pool(1).map(square, range(9), buffersize=2)) == [x * x for x in range(9)]


@pytest.mark.parametrize(
    ("buffersize", "error", "said"),
    [
        (0, ValueError, "buffersize must be None or > 0, not 0"),
        (2.0, TypeError, "buffersize must be an integer or None, not float"),
    ],
)
def test_map_refuses_a_buffersize_that_is_no_number_of_chunks(open_pool, buffersize, error, said):
    with pytest.raises(error, match=said):
        open_pool().map(square, [1], buffersize=buffersize)


def test_map_keeps_no_value_that_was_taken(open_pool):
    for value in open_pool().map(lambda _: {1}, range(6), chunksize=3):
        taken = weakref.ref(value)
        del value
        gc.collect()
        assert taken() is None


def test_two_workers_share_the_work(open_pool):
    """Acceptance case 18: at most 1.5 times the ideal."""
    pool = open_pool(2)
    for _ in range(3):  # the machine may be busy
        began = time.monotonic()
        list(pool.map(time.sleep, [0.5] * 8))
        if (took := time.monotonic() - began) < 3.0:
            break

    assert took < 3.0


def test_a_queued_future_that_is_cancelled_never_runs(open_pool, tmp_path):
    """Acceptance case 17."""
    pool = open_pool()
    blocker = pool.submit(time.sleep, 0.5)
    queued = pool.submit((tmp_path / "ran").touch)

    assert queued.cancel() is True
    assert queued.cancelled()
    blocker.result()
    assert pool.submit(square, 3).result() == 9
    assert not (tmp_path / "ran").exists()
    assert pool.stats().cancelled == 1


def test_a_running_future_that_is_cancelled_is_interrupted_and_the_worker_stays(open_pool):
    pool = open_pool()
    pid = pool.submit(os.getpid).result()
    future = pool.submit(time.sleep, 30)
    while not future.running():
        time.sleep(0.005)

    assert future.cancel() is True
    assert future.cancelled()
    assert pool.submit(os.getpid).result(timeout=2) == pid


def test_a_future_that_has_ended_cannot_be_cancelled(open_pool):
    future = open_pool().submit(square, 2)
    future.result()

    assert future.cancel() is False
    assert not future.running()


def test_wait_as_completed_and_callbacks_work(open_pool):
    pool = open_pool(2)
    futures = [pool.submit(square, n) for n in range(5)]
    blocker = pool.submit(time.sleep, 30)
    seen: list[concurrent.futures.Future] = []
    blocker.add_done_callback(seen.append)

    done, _ = concurrent.futures.wait(futures, timeout=10)
    assert {future.result() for future in done} == {0, 1, 4, 9, 16}
    blocker.cancel()
    assert list(concurrent.futures.as_completed([blocker], timeout=2)) == [blocker]
    assert seen == [blocker]


def test_an_event_loop_runs_functions_in_it(open_pool):
    pool = open_pool(2)

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        values = [loop.run_in_executor(pool, square, n) for n in range(10)]
        with pytest.raises(ValueError, match="no"):
            await loop.run_in_executor(pool, fail, "no")
        slow = loop.run_in_executor(pool, time.sleep, 30)
        await asyncio.sleep(0.2)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        return await asyncio.gather(*values)

    assert asyncio.run(main()) == [n * n for n in range(10)]


def test_with_waits_for_what_was_submitted(tmp_path):
    with Pool(1) as pool:
        futures = [pool.submit(square, n) for n in range(5)]

    assert [future.result(timeout=0) for future in futures] == [0, 1, 4, 9, 16]
    with pytest.raises(PoolClosed):
        pool.submit(square, 1)


def test_shutdown_can_cancel_what_waits(open_pool):
    pool = open_pool()
    running = pool.submit(time.sleep, 0.5)
    queued = [pool.submit(square, n) for n in range(5)]
    while not running.running():
        time.sleep(0.005)

    pool.shutdown(cancel_futures=True)

    assert running.done()
    assert running.exception() is None
    assert all(future.cancelled() for future in queued)


@pytest.mark.parametrize("dies", [False, True])
def test_shutdown_does_everything_that_was_accepted(open_pool, dies):
    pool = open_pool()
    list(pool.map(abs, range(500)))  # so fast that a worker gets several at a time
    before = [pool.submit(abs, -1) for _ in range(40)]
    slow = pool.submit(os._exit, 1) if dies else pool.submit(time.sleep, 0.4)
    behind = [pool.submit(abs, -2) for _ in range(300)]

    pool.shutdown()

    assert isinstance(slow.exception(), WorkerDied if dies else type(None))
    assert [future.result() for future in before + behind] == [1] * 40 + [2] * 300


def test_answers_that_came_before_the_death_count_though_a_write_is_the_first_to_fail(
    open_pool, monkeypatch, process_of
):
    pool = open_pool(workers=1)
    list(pool.map(abs, range(500)))  # so fast that a worker gets several at a time
    worker = process_of(pool.status().workers[0].pid)
    first, is_late, last = threading.Event(), threading.Event(), threading.Event()
    prefetch = LanePipeline._prefetch

    def prefetch_late(pipeline):
        """Send more when the worker has answered, and died, and nothing of that was read."""
        if any(item.name == "_exit" for item in pipeline._in_flight.values()):
            is_late.set()
            assert last.wait(10)
            assert worker.wait_gone()
        else:
            assert first.wait(10)
        prefetch(pipeline)

    monkeypatch.setattr(LanePipeline, "_prefetch", prefetch_late)
    before = [pool.submit(abs, -1) for _ in range(3)]
    dying = pool.submit(os._exit, 1)
    first.set()
    assert is_late.wait(10)
    behind = [pool.submit(abs, -2) for _ in range(10)]
    last.set()

    assert isinstance(dying.exception(), WorkerDied)
    assert [future.result() for future in before + behind] == [1] * 3 + [2] * 10


def test_shutdown_without_waiting_returns_and_the_work_still_ends(open_pool, tmp_path):
    pool = open_pool()
    goes_on = tmp_path / "goes on"
    future = pool.submit(wait_for, goes_on)

    pool.shutdown(wait=False)

    assert not future.done()
    goes_on.touch()
    assert future.result(timeout=20) is None


def test_futures_wait_for_ever_unless_the_pool_was_told_otherwise(open_pool):
    patient, hasty = open_pool(name="patient"), open_pool(name="hasty", queue_timeout=0.1)
    blockers = [pool.submit(time.sleep, 0.6) for pool in (patient, hasty)]
    futures = [pool.submit(square, 2) for pool in (patient, hasty)]

    assert futures[0].result() == 4
    with pytest.raises(QueueTimeout, match="the call did not run"):
        futures[1].result()
    for blocker in blockers:
        blocker.result()


def test_a_full_queue_refuses_a_future_at_once(open_pool):
    pool = open_pool(max_queue=0, max_futures=1)
    blocker = pool.submit(time.sleep, 0.3)
    queued = pool.submit(square, 2)

    with pytest.raises(PoolSaturated, match=r"1 call waiting already \(max_futures\)"):
        pool.submit(square, 3)
    with pytest.raises(PoolSaturated, match=r"0 calls waiting already \(max_queue\)"):
        pool.run("1")
    assert (blocker.result(), queued.result()) == (None, 4)


def test_futures_and_calls_of_event_loops_are_not_refused_however_many(open_pool):
    pool = open_pool(2, max_queue=1)
    many = 20_000

    futures = [pool.submit(square, number) for number in range(many)]
    assert sum(future.result() for future in futures) == sum(n * n for n in range(many))

    pool = open_pool(2, max_queue=1)
    pool.tool(square)

    async def gather() -> list[int]:
        return await asyncio.gather(*(pool.acall("square", {"x": n}) for n in range(3000)))

    assert asyncio.run(gather()) == [n * n for n in range(3000)]


def test_a_future_whose_worker_dies_says_so(open_pool):
    pool = open_pool()

    with pytest.raises(WorkerDied, match="exited with status 3"):
        pool.submit(os._exit, 3).result(timeout=10)
    assert pool.submit(square, 2).result(timeout=20) == 4


@pytest.mark.parametrize("work", [(3,), (square, open)], ids=["no function", "a file's opener"])
def test_what_cannot_travel_is_refused_at_once(open_pool, work, tmp_path):
    pool = open_pool()
    if work[0] is square:
        with (tmp_path / "f").open("w") as file, pytest.raises(TypeError, match="cannot travel"):
            pool.submit(square, file)
    else:
        with pytest.raises(TypeError, match="takes a function first, not int"):
            pool.submit(*work)


def test_a_forked_child_cannot_use_the_pool_and_does_it_no_harm(open_pool):
    pool = open_pool()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pool.submit(square, 2)
        except PoolClosed as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert "a forked child cannot use it" in said.read()
    os.waitpid(child, 0)

    assert pool.submit(square, 3).result() == 9


@pytest.mark.parametrize("method", ["terminate", "shutdown"])
def test_a_pool_can_be_ended_from_the_callback_of_a_future(open_pool, method):
    pool = open_pool()
    called = threading.Event()

    def end(_: object) -> None:
        getattr(pool, method)()
        called.set()

    future = pool.submit(time.sleep, 0.1)
    future.add_done_callback(end)

    assert called.wait(5)
    assert not pool.is_open
    assert future.result() is None


def test_a_pool_that_nobody_holds_finishes_what_it_was_given():
    assert list(Pool(1).map(square, range(5))) == [0, 1, 4, 9, 16]


def test_a_session_holds_its_pool():
    session = Pool(1).session("abc")
    gc.collect()

    assert session.submit(square, 3).result() == 9


def test_a_forked_child_does_not_wait_for_the_work_of_its_parent(open_pool):
    pool = open_pool()
    future = pool.submit(time.sleep, 1.0)
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        pool.shutdown()
        os._exit(0)

    assert os.waitpid(child, 0)[1] == 0
    assert future.result() is None


def test_a_recall_that_comes_late_takes_back_no_other_call(pool):
    lane = pool._engine.supervisor.workers[1].main_lane
    over = threading.Event()

    def recall_what_has_ended() -> None:
        while not over.is_set():
            lane.control.recalled_call = max(0, lane.last_call_id - 1)
            lane.worker.process.signal(RECALL_SIGNAL)

    thread = threading.Thread(target=recall_what_has_ended)
    thread.start()
    try:
        for _ in range(300):
            assert pool.call("echo", {"value": 1}, timeout=10.0) == 1
    finally:
        over.set()
        thread.join()


def test_short_calls_behind_a_long_one_go_to_another_worker(open_pool):
    pool = open_pool(2, max_queue=1000)
    list(pool.map(abs, range(200)))  # it is known that they are short: several go at a time

    futures = [pool.submit(time.sleep, 30.0), *(pool.submit(abs, -n) for n in range(200))]
    assert [future.result() for future in futures[1:]] == list(range(200))

    assert not futures[0].done()
    assert futures[0].cancel()


def test_calls_that_a_worker_had_not_begun_survive_its_death(open_pool):
    pool = open_pool(1, max_queue=1000)
    list(pool.map(abs, range(200)))

    futures = [pool.submit(os._exit, 3), *(pool.submit(abs, -n) for n in range(100))]

    with pytest.raises(WorkerDied):
        futures[0].result()
    assert [future.result(30) for future in futures[1:]] == list(range(100))
    stats = pool.stats()
    assert (stats.lost, stats.queued, stats.running) == (1, 0, 0)


def test_a_future_that_was_sent_ahead_and_is_cancelled_never_runs(open_pool, tmp_path):
    pool = open_pool(1, max_queue=1000)
    list(pool.map(abs, range(200)))
    marker = tmp_path / "it ran"

    blocking = pool.submit(time.sleep, 0.5)
    ahead = [pool.submit(abs, -n) for n in range(10)]
    unwanted = pool.submit(marker.write_text, "yes")
    assert unwanted.cancel()

    assert [future.result() for future in ahead] == list(range(10))
    blocking.result()
    assert not marker.exists()
    assert pool.stats().cancelled == 1
