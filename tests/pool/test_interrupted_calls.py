"""Ctrl-C at each moment of a call at which Python can hear it: nothing is lost by it.

Python runs signal handlers when a function begins and when one returns, C functions included. A
profile function is called at the same moments, and may raise what the handler would.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

import snakepit_kernel
from snakepit_kernel import Pool, ToolError

PACKAGE = Path(snakepit_kernel.__file__).parent

ON_THE_WAY = tuple(f"{PACKAGE / folder}/" for folder in ("pool", "lane", "protocol", "tools"))

MOMENTS = frozenset({"call", "return", "c_return"})

MOST = 2000
"""Moments in one call; there are some hundred."""


@pytest.fixture
def pool(open_pool) -> Pool:
    pool = open_pool(workers=1)
    for function in (nothing, add, same, fail):
        pool.tool(function)
    return pool


def nothing() -> None:
    return None


def add(one: int, two: list[int]) -> list[int]:
    return [one, *two]


def same(value: object) -> object:
    return value


def fail() -> None:
    raise ValueError("on purpose")


for _function in (nothing, add, same, fail):
    _function.__module__ = "__main__"  # by value: this module is no module of the workers


def interrupted_at(moment: int, work: Callable[[], object]) -> bool:
    """Do some work, and interrupt it at a moment; say whether it took that long."""
    left = moment

    def hear(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        if event in MOMENTS and frame.f_code.co_filename.startswith(ON_THE_WAY):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(hear)
    try:
        work()
    except KeyboardInterrupt:
        return True
    except ToolError as error:
        return error.type_name == "KeyboardInterrupt"  # the worker had heard of it, too
    finally:
        sys.setprofile(None)
    return left <= 0


def settled(pool: Pool) -> bool:
    """Whether all work is counted, and nothing runs."""
    stats = pool.stats()
    ends = stats.ok + stats.error + stats.cancelled + stats.timeout + stats.saturated + stats.lost
    return stats.running == stats.queued == 0 and stats.submitted == ends


def fails(pool: Pool) -> None:
    with contextlib.suppress(ToolError):
        pool.call("fail")


WAYS: dict[str, Callable[[Pool], Callable[[], object]]] = {
    "call": lambda pool: lambda: pool.call("nothing"),
    "arguments": lambda pool: lambda: pool.call("add", {"one": 1, "two": [2]}),
    "deadline": lambda pool: lambda: pool.call("nothing", timeout=30),
    "session": lambda pool: partial(pool.session("s").call, "nothing"),
    "strict session": lambda pool: partial(
        pool.session("s", affinity="strict_queue").call, "nothing"
    ),
    "large values": lambda pool: lambda: pool.call("same", {"value": bytearray(100_000)}),
    "an error": lambda pool: partial(fails, pool),
    "a future": lambda pool: lambda: pool.submit(add, 1, [2]).result(),
    "a future of a session": lambda pool: lambda: pool.session("s").submit(add, 1, [2]).result(),
    "a future with large values": lambda pool: (
        lambda: pool.submit(same, bytearray(100_000)).result()
    ),
    "futures in a queue": lambda pool: (
        lambda: [future.result() for future in [pool.submit(add, 1, [2]) for _ in range(3)]]
    ),
    "a future that takes long": lambda pool: lambda: pool.submit(time.sleep, 0.01).result(),
    "a future, for some time": lambda pool: lambda: pool.submit(add, 1, [2]).result(timeout=30),
}


# A generator that ends keeps an exception to itself.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_any_moment_loses_no_worker_and_no_count(pool, way):
    worker = pool.status().workers[0]
    work = WAYS[way](pool)
    work()
    for moment in range(1, MOST):
        if not interrupted_at(moment, work):
            break
        until = time.monotonic() + 5
        while not settled(pool):
            assert time.monotonic() < until, f"moment {moment}: {pool.stats()}"
            time.sleep(0.001)
        assert pool.call("add", {"one": moment, "two": []}) == [moment], f"moment {moment}"
        assert pool.status().workers[0].name == worker.name, f"moment {moment}"
    else:
        pytest.fail(f"a call of more than {MOST} moments")
    assert moment > 50
