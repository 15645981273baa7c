"""A pool that is restarted: the same object, with nothing left of the old workers."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psutil
import pytest

from snakepit_kernel import Pool, PoolClosed, SessionLost, StartFailed, ToolError
from snakepit_kernel.pool.pool import compare_options, open_pools

pytestmark = pytest.mark.usefixtures("by_value")


@pytest.fixture
def pool(open_pool):
    return open_pool(2, name="again")


def pids(pool: Pool) -> set[int | None]:
    return {worker.pid for worker in pool.status().workers}


def test_a_restart_ends_all_that_the_workers_started_and_keeps_tools_and_sessions(pool):
    @pool.tool
    def double(x: int) -> int:
        return 2 * x

    @pool.host_tool
    def ask() -> str:
        return "asked"

    @pool.tool
    def read() -> tuple[object, object]:
        import snakepit_kernel

        context = snakepit_kernel.context()
        return context.variables["x"], context.host_tools.ask()

    session = pool.session("s")
    session.variables.register("x", "integer", 3)
    before = pids(pool)
    child = pool.run(
        "import subprocess\nn = 1\nsubprocess.Popen(['setsid', 'sleep', '600']).pid"
    ).value

    pool.restart()

    assert not any(map(psutil.pid_exists, [child, *before]))
    assert pool.is_open
    assert pool.tools.double(x=4) == 8
    assert session.call("read") == (3, "asked")
    assert pool.run("n").error.type_name == "NameError"
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
    assert pool.stats().died == 0


def test_a_restarted_pool_has_the_number_of_workers_that_it_had(pool):
    pool.resize(1)
    pool.restart()
    assert len(pool.slots()) == 1

    pool.resize(2)
    pool.restart()
    assert len(pool.slots()) == 2


def test_what_was_begun_before_a_restart_ends_with_the_old_workers(pool):
    @pool.tool
    def count():
        yield from range(1000)

    @pool.tool
    def wait() -> None:
        import time

        time.sleep(600)

    stream = pool.stream("count", buffer=1)
    next(stream)
    began = threading.Event()
    raised: list[BaseException] = []

    def call() -> None:
        began.set()
        try:
            pool.call("wait")
        except PoolClosed as error:
            raised.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    began.wait()
    pool.restart()
    caller.join(20)

    assert [str(error) for error in raised] == ["pool 'again' is closed: it was restarted"]
    with pytest.raises(PoolClosed, match="it was restarted"):
        list(stream)


def test_a_strict_session_has_lost_its_home_until_it_is_opened_again(pool):
    used = pool.session("used", affinity="strict_queue")
    fresh = pool.session("fresh", affinity="strict_queue")
    used.run("x = 1")

    pool.restart()

    with pytest.raises(SessionLost):
        used.run("x")
    assert pool.session("used", affinity="strict_queue").run("1").value == 1
    fresh.run("y = 2")
    assert all(fresh.run("y").value == 2 for _ in range(5))


def test_a_host_tool_cannot_restart_the_pool_that_waits_for_it(pool):
    @pool.host_tool
    def again() -> None:
        pool.restart()

    @pool.tool
    def ask() -> None:
        import snakepit_kernel

        snakepit_kernel.context().host_tools.again()

    with pytest.raises(ToolError, match="the pool waits for the code that would restart it"):
        pool.call("ask")


def test_a_pool_whose_workers_cannot_start_again_is_closed_until_they_can(shop, open_pool):
    pool = open_pool(adapter=shop)
    source = Path("shop.py").read_text()
    Path("shop.py").write_text("1 / 0\n")

    with pytest.raises(StartFailed, match="ZeroDivisionError"):
        pool.restart()
    assert not pool.is_open
    with pytest.raises(PoolClosed, match="it could not be started again"):
        pool.call("price", {"item": "tea"})

    Path("shop.py").write_text(source)
    pool.restart()
    assert pool.call("price", {"item": "tea"}) == 2.5
    pool.terminate()
    with pytest.raises(PoolClosed, match="it was shut down"):
        pool.call("price", {"item": "tea"})


def test_a_pool_that_is_closed_while_it_restarts_stays_closed(shop, open_pool, until):
    pool = open_pool(adapter=shop)
    source = Path("shop.py").read_text()
    Path("shop.py").write_text(
        f"open('begun', 'w').close(); import time; time.sleep(600)\n{source}"
    )
    raised: list[BaseException] = []

    def restart() -> None:
        try:
            pool.restart()
        except (PoolClosed, StartFailed) as error:
            raised.append(error)

    restarting = threading.Thread(target=restart)
    restarting.start()
    until(Path("begun").exists)
    pool.terminate()
    restarting.join(20)

    assert len(raised) == 1
    assert not pool.is_open
    assert not pool.status().workers


def test_open_pools_are_known_by_their_names_and_not_to_a_forked_child(pool):
    assert open_pools()["again"] is pool

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, repr(list(open_pools())).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader, "rb") as answer:
        assert answer.read() == b"[]"


def test_options_are_compared_as_a_pool_would_check_them(pool):
    assert compare_options(pool, {"workers": 2, "name": "again", "env": {}, "preload": []}) == {}
    assert compare_options(pool, {"workers": 3, "grace": 1, "adapter": "shop:Shop"}) == {
        "workers": (2, 3),
        "grace": (2.0, 1.0),
        "adapter": (None, "shop:Shop"),
    }
    assert compare_options(pool, {"workers": "auto"})["workers"] == (2, "auto")
    with pytest.raises(ValueError, match="workers must be between 1 and 150, not 0"):
        compare_options(pool, {"workers": 0})
