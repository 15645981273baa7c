"""What a call leaves is freed when it ends, not when the garbage collector comes."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import snakepit_kernel
from snakepit_kernel import Pool, ToolError

TIMES = 1000


@pytest.fixture(scope="module")
def pool(open_for_all) -> Pool:
    pool = open_for_all(1)

    @pool.host_tool
    def answer() -> int:
        return 42

    for function in (nothing, fail, count, ask, chatter):
        function.__module__ = "__main__"
        pool.tool(function)
    return pool


def nothing() -> None:
    return None


def fail() -> None:
    raise ValueError("sold out")


def count(n: int) -> Iterator[int]:
    yield from range(n)


def ask() -> int:
    return snakepit_kernel.context().host_tools.answer()


def chatter() -> None:
    print("said")


def _fail(pool: Pool) -> None:
    with pytest.raises(ToolError):
        pool.call("fail")


async def _stream(pool: Pool) -> list[int]:
    return [chunk async for chunk in pool.astream("count", {"n": 3})]


WAYS: dict[str, tuple[int, Callable[[Pool], object]]] = {
    "call": (TIMES, lambda pool: pool.call("nothing")),
    "call with a timeout": (TIMES, lambda pool: pool.call("nothing", timeout=30)),
    "call of a session": (TIMES, lambda pool: pool.session("s").call("nothing")),
    "call that prints": (TIMES, lambda pool: pool.call("chatter")),
    "call that calls back": (TIMES, lambda pool: pool.call("ask")),
    "call that fails": (200, _fail),
    "future": (TIMES, lambda pool: pool.submit(nothing).result()),
    "future that fails": (TIMES, lambda pool: pool.submit(fail).exception()),
    "future that is cancelled": (TIMES, lambda pool: pool.submit(nothing).cancel()),
    "map": (200, lambda pool: list(pool.map(abs, range(5)))),
    "stream": (TIMES, lambda pool: list(pool.stream("count", {"n": 3}))),
    "stream that is left": (200, lambda pool: next(pool.stream("count", {"n": 3}))),
    "cell": (200, lambda pool: pool.run("1 + 1")),
    "push and pull": (TIMES // 4, lambda pool: (pool.push({"x": 1}), pool.pull(["x"]))),
}
ASYNC_WAYS = {
    "acall": lambda pool: pool.acall("nothing"),
    "acall with a timeout": lambda pool: pool.acall("nothing", timeout=30),
    "astream": _stream,
}


def garbage_of(work: Callable[[], object]) -> Counter[str]:
    """Count, by type, what only the garbage collector frees of what some work leaves."""
    gc.collect()
    gc.disable()
    try:
        work()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return Counter(type(item).__name__ for item in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def settled(pool: Pool) -> None:
    """Wait until the pool's own thread has nothing to do: it lets go of futures after they end."""
    while pool.stats().running or pool.stats().queued:
        time.sleep(0.01)  # nobody tells
    pool.submit(nothing).result()


@pytest.mark.parametrize("name", WAYS)
def test_no_work_leaves_cyclic_garbage(pool, name):
    times, work = WAYS[name]
    work(pool)

    def repeat() -> None:
        for _ in range(times):
            work(pool)
        settled(pool)

    # What pools of other tests leave is not this work's, and comes once.
    found = min((garbage_of(repeat) for _ in range(2)), key=Counter.total)
    assert found.total() < times // 20, found


@pytest.mark.parametrize("name", ASYNC_WAYS)
def test_no_work_of_an_event_loop_leaves_cyclic_garbage(pool, name):
    with asyncio.Runner() as runner:

        async def repeat() -> None:
            for _ in range(300):
                await ASYNC_WAYS[name](pool)

        runner.run(repeat())
        # As above.
        each = (garbage_of(lambda: runner.run(repeat())) for _ in range(2))
        found = min(each, key=Counter.total)
        assert found.total() < 300 // 20, found


@pytest.mark.parametrize("name", WAYS)
def test_no_work_leaves_cyclic_garbage_in_the_worker(pool, name):
    times, work = WAYS[name]
    work(pool)
    code = "import gc; {}".format
    pool.run(code("_ = gc.collect(); gc.disable()"))
    for _ in range(times // 10):
        work(pool)
    settled(pool)
    found = pool.submit(_collect).result()
    assert found < times // 10, "less than one object each"


def _collect() -> int:
    found = gc.collect()
    gc.enable()
    return found


_collect.__module__ = "__main__"


def test_a_large_result_is_freed_when_nobody_refers_to_it(pool):
    gc.disable()
    try:
        for get in (
            lambda: pool.submit(np.zeros, 10**7).result(),
            lambda: next(pool.map(np.zeros, [10**7])),
        ):
            result = get()
            alive = weakref.ref(result)
            del result
            assert alive() is None
    finally:
        gc.enable()
