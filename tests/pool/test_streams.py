"""Streams: chunks of a generator in a worker, as they come."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snakepit_kernel import Adapter, CallTimeout, Pool, PoolClosed, ToolError, WorkerDied, tool
from snakepit_kernel.pool.execution.calls import CLOSE_PATIENCE


@pytest.fixture(scope="module")
def opened(open_for_all: Callable[..., Pool]) -> Pool:
    pool = open_for_all()
    define_tools(pool)
    return pool


@pytest.fixture
def pool(opened: Pool) -> Iterator[Pool]:
    died = opened.stats().died
    yield opened
    stats = opened.stats()
    assert (stats.running, stats.queued, stats.died) == (0, 0, died)


def define_tools(pool: Pool) -> None:
    @pool.tool
    def count(n: int, file: str = ""):
        """Write down each number before it is yielded."""
        for number in range(n):
            if file:
                with open(file, "w") as out:
                    out.write(str(number + 1))
            yield number

    @pool.tool
    async def acount(n: int):
        import asyncio

        for number in range(n):
            await asyncio.sleep(0)
            yield number

    @pool.tool
    def linger(file: str, seconds: float = 30.0):
        """Sleep after the first chunk; tell when it ends."""
        import pathlib
        import time

        try:
            yield 1
            time.sleep(seconds)
            yield 2
        finally:
            pathlib.Path(file).write_text("closed")

    @pool.tool
    async def alinger(file: str):
        import asyncio
        import pathlib

        try:
            yield 1
            await asyncio.sleep(30)
            yield 2
        finally:
            pathlib.Path(file).write_text("closed")

    @pool.tool
    def fail_at(n: int):
        yield from range(n)
        raise KeyError("at the end")

    @pool.tool
    def whole() -> list:
        return [1, 2]

    @pool.tool
    def square(x: int) -> int:
        return x * x


def wait_for(file: Path, seconds: float = 1.0) -> bool:
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.005)  # another process writes it
    return file.exists()


async def collect(stream: AsyncIterator[Any]) -> list[Any]:
    return [chunk async for chunk in stream]


# -- chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["count", "acount"])
@pytest.mark.parametrize("n", [0, 1, 99, 100, 101, 1000])
@pytest.mark.parametrize("buffer", [1, 2, 100])
def test_chunks_come_in_order_and_all_of_them(pool, name, n, buffer):
    assert list(pool.stream(name, {"n": n}, buffer=buffer)) == list(range(n))
    assert asyncio.run(collect(pool.astream(name, {"n": n}, buffer=buffer))) == list(range(n))
    assert list(getattr(pool.tools, name)(n)) == list(range(n))


def test_a_hundred_thousand_small_chunks_are_no_burden(pool):
    began = time.monotonic()
    assert sum(pool.stream("count", {"n": 100_000})) == sum(range(100_000))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("buffer", [1, 7, 100])
def test_the_producer_is_ahead_by_the_buffer_at_most(pool, tmp_path, buffer):
    """Acceptance case 45."""
    file = tmp_path / "produced"
    most = 0
    for taken, chunk in enumerate(
        pool.stream("count", {"n": 400, "file": str(file)}, buffer=buffer), 1
    ):
        assert chunk == taken - 1
        if taken % 50 == 0:
            time.sleep(0.02)  # a slow consumer
        text = file.read_text()
        most = max(most, int(text or 0) - taken)
    # One more is under way in the generator, before the worker sees that there is no room.
    assert most <= buffer + 1


def test_large_chunks_stay_valid_while_they_are_kept_and_memory_is_given_back(pool):
    @pool.tool
    def frames(n: int):
        import numpy

        for number in range(n):
            yield numpy.full(5 << 17, number, dtype=float)  # 5 MB

    kept = []
    for number, chunk in enumerate(pool.stream("frames", {"n": 60}, buffer=4)):
        if number % 10 == 0:
            kept.append(chunk)
    assert [int(chunk[0]) for chunk in kept] == [0, 10, 20, 30, 40, 50]
    assert all((chunk == chunk[0]).all() for chunk in kept)
    kept[0][:] = 7
    assert (kept[1] == 10).all()
    held = pool.submit(_held_bytes).result()
    assert held < 20 * (5 << 20), "room of what nobody refers to is used again"


def _held_bytes() -> int:
    import gc as collector

    from snakepit_kernel.lane.shared_memory import ArenaWriter

    return sum(each.held_bytes for each in collector.get_objects() if type(each) is ArenaWriter)


_held_bytes.__module__ = "__main__"


def test_memory_stays_flat_while_a_slow_consumer_takes_a_thousand_chunks(pool):
    @pool.tool
    def blocks():
        for _ in range(1000):
            yield b"x" * 100_000

    def usage() -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError

    stream = pool.stream("blocks", buffer=10)
    next(stream)
    before, most = usage(), 0
    for number, _ in enumerate(stream):
        if number % 100 == 0:
            most = max(most, usage() - before)
    assert most < 20_000, "KiB; all chunks together are 100 MB"


# -- early ends ------------------------------------------------------------------------------------


def leave_by_break(pool: Pool, name: str, file: str) -> None:
    for _ in pool.stream(name, {"file": file}):
        break


def leave_by_close(pool: Pool, name: str, file: str) -> None:
    stream = pool.stream(name, {"file": file})
    next(stream)
    stream.close()


def leave_by_with(pool: Pool, name: str, file: str) -> None:
    with pool.stream(name, {"file": file}) as stream:
        next(stream)


def leave_by_del(pool: Pool, name: str, file: str) -> None:
    stream = pool.stream(name, {"file": file})
    next(stream)
    del stream


def leave_by_an_error(pool: Pool, name: str, file: str) -> None:
    with pytest.raises(ZeroDivisionError):
        _ = [1 / 0 for _ in pool.stream(name, {"file": file})]


def leave_by_collection_in_another_thread(pool: Pool, name: str, file: str) -> None:
    cycle: list[Any] = [pool.stream(name, {"file": file})]
    next(cycle[0])
    cycle.append(cycle)
    del cycle
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()


def leave_by_aclose(pool: Pool, name: str, file: str) -> None:
    async def main() -> None:
        stream = pool.astream(name, {"file": file})
        await anext(stream)
        await stream.aclose()

    asyncio.run(main())


def leave_by_async_break(pool: Pool, name: str, file: str) -> None:
    async def main() -> None:
        async for _ in pool.astream(name, {"file": file}):
            break

    asyncio.run(main())


def leave_to_the_end_of_the_loop(pool: Pool, name: str, file: str) -> None:
    kept = []

    async def main() -> None:
        kept.append(pool.astream(name, {"file": file}))
        await anext(kept[0])

    asyncio.run(main())


def leave_by_cancel(pool: Pool, name: str, file: str) -> None:
    async def main() -> None:
        got = asyncio.Event()

        async def take() -> None:
            async for _ in pool.astream(name, {"file": file}):
                got.set()

        task = asyncio.create_task(take())
        await got.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def leave_by_timeout(pool: Pool, name: str, file: str) -> None:
    async def main() -> None:
        async with asyncio.timeout(0.2):
            await collect(pool.astream(name, {"file": file}))

    with pytest.raises(TimeoutError):
        asyncio.run(main())


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_close,
        leave_by_with,
        leave_by_del,
        leave_by_an_error,
        leave_by_collection_in_another_thread,
        leave_by_aclose,
        leave_by_async_break,
        leave_to_the_end_of_the_loop,
        leave_by_cancel,
        leave_by_timeout,
    ],
    ids=lambda leave: leave.__name__,
)
@pytest.mark.parametrize("name", ["linger", "alinger"])
def test_leaving_a_stream_closes_its_generator_within_a_second(pool, tmp_path, caplog, leave, name):
    """Also when it sleeps in the middle."""
    file = tmp_path / "closed"
    leave(pool, name, str(file))

    assert wait_for(file)
    assert pool.call("square", {"x": 3}, timeout=2) == 9
    assert caplog.text == ""


@pytest.mark.parametrize("awaited", [False, True])
def test_a_stream_whose_generator_waits_for_its_consumer_is_left_at_once(pool, awaited):
    async def leave() -> float:
        stream = pool.astream("count", {"n": 1_000_000})
        await anext(stream)
        began = time.monotonic()
        await stream.aclose()
        return time.monotonic() - began

    def close() -> float:
        stream = pool.stream("count", {"n": 1_000_000})
        next(stream)
        began = time.monotonic()
        stream.close()
        return time.monotonic() - began

    # The least: the machine may be busy. One that has to be interrupted takes longer each time.
    assert min(asyncio.run(leave()) if awaited else close() for _ in range(5)) < CLOSE_PATIENCE


def test_a_stream_that_was_left_counts_as_cancelled(pool):
    before = pool.stats()
    stream = pool.stream("count", {"n": 1000})
    next(stream)
    stream.close()

    assert pool.stats().cancelled == before.cancelled + 1


def test_ctrl_c_while_a_stream_is_left_leaves_the_worker_free(pool, tmp_path):
    stream = pool.stream("linger", {"file": str(tmp_path / "f")})
    next(stream)
    time.sleep(0.05)  # it sleeps by now: nobody hears that the consumer leaves
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        stream.close()

    assert pool.call("square", {"x": 3}, timeout=1) == 9


def test_cleanup_of_an_adapter_comes_exactly_once_however_a_stream_ends(open_pool, tmp_path):
    class Source(Adapter):
        def cleanup(self) -> None:
            with open(self.file, "a") as out:
                out.write("x")

        @tool
        def count(self, file: str, n: int, fail: bool = False):
            self.file = file
            yield from range(n)
            if fail:
                raise ValueError(n)

        @tool
        async def acount(self, file: str, n: int, fail: bool = False):
            self.file = file
            for number in range(n):
                yield number
            if fail:
                raise ValueError(n)

    pool = open_pool(adapter=Source)
    for name in ("count", "acount"):
        for way in ("end", "fail", "leave"):
            file = tmp_path / f"{name} {way}"
            arguments = {"file": str(file), "n": 4, "fail": way == "fail"}
            stream = pool.stream(name, arguments)
            got = [next(stream)]
            if way == "leave":
                stream.close()
            elif way == "end":
                got += list(stream)
            else:
                with pytest.raises(ToolError, match="ValueError"):
                    got.extend(stream)
            assert file.read_text() == "x", (name, way)
            assert got == ([0] if way == "leave" else [0, 1, 2, 3])


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 100])
def test_an_error_comes_behind_the_chunks_before_it(pool, buffer):
    """Acceptance case 46."""
    got = []
    with pytest.raises(ToolError, match="KeyError: 'at the end'"):
        _ = [got.append(chunk) for chunk in pool.stream("fail_at", {"n": 4}, buffer=buffer)]
    assert got == [0, 1, 2, 3]

    async def main() -> None:
        async for chunk in pool.astream("fail_at", {"n": 4}, buffer=buffer):
            got.append(chunk)

    with pytest.raises(ToolError, match="KeyError: 'at the end'"):
        asyncio.run(main())
    assert got == [0, 1, 2, 3] * 2


def test_a_generator_that_lets_stop_iteration_out_has_failed(pool):
    @pool.tool
    def stops():
        yield 1
        next(iter(()))

    with pytest.raises(ToolError, match="RuntimeError: generator raised StopIteration"):
        list(pool.stream("stops"))


@pytest.mark.parametrize("how", ["swallows", "yields in finally"])
def test_a_generator_that_does_not_let_itself_be_closed_does_no_harm(pool, how):
    @pool.tool
    def stubborn(how: str):
        try:
            for number in range(1000):
                try:
                    yield number
                except GeneratorExit:
                    if how != "swallows":
                        raise
        finally:
            if how != "swallows":
                yield "more"

    stream = pool.stream("stubborn", {"how": how})
    assert next(stream) == 0
    stream.close()

    assert pool.call("square", {"x": 3}, timeout=2) == 9


def test_a_tool_is_called_in_the_way_it_answers(pool):
    with pytest.raises(TypeError, match=r"tool 'count' streams; call it by stream\(\)"):
        pool.call("count", {"n": 1})
    with pytest.raises(TypeError, match=r"tool 'whole' does not stream.*call\(\)"):
        pool.stream("whole")
    with pytest.raises(TypeError, match=r"tool 'whole' does not stream.*call\(\)"):
        pool.astream("whole")
    with pytest.raises(TypeError, match=r"tool 'count' streams; call it by stream\(\)"):
        asyncio.run(pool.acall("count", {"n": 1}))
    assert pool.stats().queued == 0


def test_the_deadline_of_a_stream_covers_all_of_it(pool, tmp_path):
    stream = pool.stream("linger", {"file": str(tmp_path / "f")}, timeout=0.3)
    began = time.monotonic()
    assert next(stream) == 1
    with pytest.raises(CallTimeout) as caught:
        next(stream)
    assert time.monotonic() - began < 10
    assert "in linger" in caught.value.stacks
    with pytest.raises(CallTimeout):
        asyncio.run(collect(pool.astream("linger", {"file": str(tmp_path / "g")}, timeout=0.3)))
    assert wait_for(tmp_path / "f")
    assert wait_for(tmp_path / "g")


@pytest.mark.parametrize("awaited", [False, True])
def test_a_worker_that_dies_in_a_stream_is_said_to_have_died(open_pool, awaited):
    pool = open_pool()

    @pool.tool
    def die():
        import os
        import signal

        yield 1
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied, match="SIGKILL"):
        asyncio.run(collect(pool.astream("die"))) if awaited else list(pool.stream("die"))


@pytest.mark.parametrize("awaited", [False, True])
def test_a_pool_that_ends_in_a_stream_is_said_to_have_ended(open_pool, awaited):
    pool = open_pool()
    define_tools(pool)
    threading.Timer(0.3, pool.terminate).start()
    arguments = {"file": os.devnull}

    with pytest.raises(PoolClosed):
        asyncio.run(collect(pool.astream("linger", arguments))) if awaited else list(
            pool.stream("linger", arguments)
        )


# -- beside other work -----------------------------------------------------------------------------


def test_a_stream_waits_in_the_queue_like_a_call(pool):
    """Acceptance case 20."""
    blocker = pool.submit(time.sleep, 0.3)
    began = time.monotonic()

    assert list(pool.stream("count", {"n": 3})) == [0, 1, 2]

    assert time.monotonic() - began > 0.15
    blocker.result()


def test_two_streams_of_two_workers_are_taken_in_turn_in_one_thread(open_pool):
    pool = open_pool(2)
    define_tools(pool)
    pairs = list(
        zip(pool.stream("count", {"n": 300}), pool.stream("acount", {"n": 300}), strict=True)
    )

    assert pairs == [(n, n) for n in range(300)]


def test_a_stream_can_be_taken_on_in_another_thread(pool):
    stream = pool.stream("count", {"n": 300})
    first = [next(stream) for _ in range(10)]
    rest: list[int] = []
    thread = threading.Thread(target=lambda: rest.extend(stream))
    thread.start()
    thread.join(5)

    assert first + rest == list(range(300))


def test_two_threads_that_take_from_one_stream_get_each_chunk_once_or_a_clear_error(pool):
    stream = pool.stream("acount", {"n": 3000})
    got: list[int] = []
    errors: list[str] = []

    def take() -> None:
        while True:
            try:
                got.append(next(stream))
            except StopIteration:
                return
            except ValueError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(got) == list(range(3000))
    assert set(errors) <= {"generator already executing"}


def test_what_a_stream_prints_is_printed_where_it_is_taken(pool, capsys):
    @pool.tool
    def loud():
        for number in range(3):
            print("chunk", number)
            yield number

    assert list(pool.stream("loud")) == [0, 1, 2]
    assert capsys.readouterr().out == "chunk 0\nchunk 1\nchunk 2\n"


def test_a_chunk_that_is_too_large_or_cannot_travel_is_an_error_that_names_it(open_pool):
    pool = open_pool(max_value_bytes=10_000, unserializable="error")

    @pool.tool
    def large():
        yield 1
        yield b"x" * 20_000

    @pool.tool
    def lock():
        import threading

        yield 1
        yield threading.Lock()

    for name in ("large", "lock"):
        stream = pool.stream(name)
        assert next(stream) == 1
        with pytest.raises(ToolError, match="chunk 2, a .*, cannot travel"):
            next(stream)
    assert pool.submit(pow, 2, 2).result(2) == 4


def test_a_stream_that_was_never_begun_takes_no_worker(pool):
    submitted = pool.stats().submitted
    stream = pool.stream("count", {"n": 3})
    del stream
    pool.astream("count", {"n": 3})

    assert pool.stats().submitted == submitted


def test_arrays_of_a_stream_equal_what_was_yielded(pool):
    @pool.tool
    def arrays():
        import numpy

        for size in (0, 1, 1000, 40_000, 400_000):
            yield numpy.arange(size)

    for chunk, size in zip(pool.stream("arrays"), (0, 1, 1000, 40_000, 400_000), strict=True):
        np.testing.assert_array_equal(chunk, np.arange(size))
