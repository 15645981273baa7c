"""Bars of futures, futures in event loops, and what results look like."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from snakepit_kernel import Pool, progress


@pytest.fixture(scope="module")
def pool(open_for_all):
    return open_for_all(name="shop")


def fail():
    raise ValueError("no")


def test_a_bar_moves_with_futures_and_tells_how_many_failed(pool, capsys):
    futures = [pool.submit(pow, n, 2) for n in range(4)] + [pool.submit(fail)]

    assert progress(iter(futures), description="squares") == futures

    assert all(future.done() for future in futures)
    shown = capsys.readouterr().err
    assert "squares" in shown
    assert "5/5" in shown
    assert "1 failed" in shown


def test_a_bar_takes_futures_of_any_executor_cancelled_ones_and_none(capsys):
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(time.sleep, 0.1)
        waiting = threads.submit(time.sleep, 60)
        waiting.cancel()
        assert progress([slow, waiting, slow]) == [slow, waiting, slow]
    assert "2/2" in capsys.readouterr().err
    assert progress([]) == []


def test_a_future_can_be_awaited_and_a_cancelled_task_cancels_its_call(pool):
    async def main():
        assert await pool.submit(pow, 2, 10) == 1024
        with pytest.raises(ValueError, match="no"):
            await pool.submit(fail)
        slow = pool.submit(time.sleep, 60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow, 0.3)
        assert slow.cancelled()
        return await asyncio.gather(*(pool.submit(pow, n, 2) for n in range(3)))

    assert asyncio.run(main()) == [0, 1, 4]


def test_results_of_cells_and_streams_tell_what_they_are(pool):
    assert repr(pool.run("print('hello'); 6 * 7")) == (
        "<CellResult ok, of shop-1.1, value 42, stdout 'hello\\n'>"
    )
    failed = repr(pool.run("1 / 0"))
    assert failed == "<CellResult failed, of shop-1.1, ZeroDivisionError: division by zero>"
    assert len(repr(pool.run("'x' * 10_000"))) < 200

    @pool.tool
    def count():
        yield 1

    stream = pool.tools.count()
    assert repr(stream) == "<Stream, not begun: iterate over it, or show() it>"
    assert list(stream) == [1]
    assert "at its end" in repr(stream)


def test_a_pool_shows_its_status_in_a_notebook_until_it_is_closed():
    with Pool(workers=1, name="one") as pool:
        assert repr(pool) == "<Pool 'one': 1 worker, open>"
        assert "one-1.1" in pool._repr_html_()
    assert repr(pool) == "<Pool 'one': 1 worker, closed>"
    assert pool._repr_html_() is None
