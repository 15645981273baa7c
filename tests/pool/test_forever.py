"""Durations without a limit, and waits that could never end."""

from __future__ import annotations

import asyncio
import builtins
import math
import threading
import time

import pytest

from snakepit_kernel import Adapter, Pool, tool

pytestmark = pytest.mark.usefixtures("by_value")

LONG = [1e9, 1e18, math.inf, 10**400]
IDS = ["1e9", "1e18", "inf", "10**400"]


class Patient(Adapter):
    @tool(timeout=10**400)
    def one(self) -> int:
        return 1

    @tool(timeout=math.inf)
    def ones(self):
        yield 1


@pytest.fixture(scope="module")
def shared(open_for_all) -> Pool:
    return open_for_all(adapter=Patient)


USES = {
    "call": lambda pool, long: pool.call("one", timeout=long) == 1,
    "tools": lambda pool, _: pool.tools.one() == 1,
    "run": lambda pool, long: pool.run("1", timeout=long).value == 1,
    "run_all": lambda pool, long: pool.run_all("1", timeout=long)[0].value == 1,
    "stream": lambda pool, long: list(pool.stream("ones", timeout=long)) == [1],
    "map": lambda pool, long: list(pool.map(abs, [1], timeout=long)) == [1],
    "result": lambda pool, long: pool.submit(abs, 1).result(long) == 1,
    "exception": lambda pool, long: pool.submit(abs, 1).exception(long) is None,
    "acall": lambda pool, long: asyncio.run(pool.acall("one", timeout=long)) == 1,
    "arun": lambda pool, long: asyncio.run(pool.arun("1", timeout=long)).value == 1,
    "drain": lambda pool, long: pool.drain(timeout=long) and pool.resume() is None,
    "session": lambda pool, long: pool.session("long", ttl=long).call("one", timeout=long) == 1,
}


@pytest.mark.parametrize("long", LONG, ids=IDS)
@pytest.mark.parametrize("name", USES)
def test_a_timeout_may_be_as_long_as_one_likes(shared, name, long):
    assert USES[name](shared, long)


@pytest.mark.parametrize("long", LONG, ids=IDS)
def test_the_durations_of_a_pool_may_be_as_long_as_one_likes(open_pool, long):
    pool = open_pool(
        timeout=long,
        queue_timeout=long,
        grace=long,
        start_timeout=long,
        max_age=long,
        heartbeat={"interval": long, "timeout": long},
        retry={"attempts": 2, "backoff": long},
    )

    assert pool.submit(pow, 2, 3).result(5) == 8
    assert pool.run("1").value == 1


@pytest.mark.parametrize("bad", [-1, math.nan, "soon"])
def test_a_pool_is_not_drained_by_a_timeout_that_is_none(shared, bad):
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        shared.drain(bad)

    assert shared.call("one", timeout=5) == 1


# -- what can only block for ever ------------------------------------------------------------------

WAITS = {
    "result": lambda pool: pool.submit(time.sleep, 0.01).result(),
    "result(timeout)": lambda pool: pool.submit(time.sleep, 0.01).result(5),
    "exception": lambda pool: pool.submit(time.sleep, 0.01).exception(),
    "map": lambda pool: list(pool.map(time.sleep, [0.01])),
    "run_all": lambda pool: pool.run_all("1"),
    "call": lambda pool: (pool.submit(time.sleep, 0.1), pool.call("one")),
    "run": lambda pool: (pool.submit(time.sleep, 0.1), pool.run("1")),
    "stream": lambda pool: (pool.submit(time.sleep, 0.1), list(pool.stream("ones"))),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_callback_that_would_wait_for_ever_hears_so(shared, name):
    heard: list[BaseException] = []
    over = threading.Event()

    def call_back(_: object) -> None:
        try:
            WAITS[name](shared)
        except BaseException as error:
            heard.append(error)
        over.set()

    future = shared.submit(time.sleep, 0.05)
    future.add_done_callback(call_back)

    assert over.wait(5)
    assert [type(error) for error in heard] == [RuntimeError]
    assert "another thread" in str(heard[0])
    assert shared.call("one", timeout=5) == 1


def test_a_callback_may_do_what_does_not_wait(shared):
    heard: list[object] = []
    over = threading.Event()
    first = shared.submit(abs, -1)
    first.result(5)

    def call_back(future) -> None:
        heard.append(first.result())
        heard.append(future.result())
        heard.append(shared.call("one"))
        shared.submit(abs, -4).add_done_callback(
            lambda last: (heard.append(last.result()), over.set())
        )

    shared.submit(time.sleep, 0.05).add_done_callback(call_back)

    assert over.wait(5)
    assert heard == [1, None, 1, 4]


class Probe:
    """Calls back when it is restored."""

    def __reduce__(self):
        return eval, ("__import__('builtins').probe_of_a_test()",)


Probe.__module__ = "__main__"


def test_a_result_that_waits_for_another_one_as_it_is_restored_fails(shared, monkeypatch):
    other = shared.submit(abs, -1)
    monkeypatch.setattr(
        builtins, "probe_of_a_test", lambda: shared.submit(abs, 1).result(), raising=False
    )

    with pytest.raises(Exception, match=r"cannot be restored here.*pool's own thread"):
        shared.submit(Probe).result(5)

    assert other.result(5) == 1
    assert shared.call("one", timeout=5) == 1
