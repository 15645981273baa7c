"""Workers that their own code tells to end: they get no more work, and none is lost."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from snakepit_kernel import Adapter, Pool, SessionLost, WorkerEnd, tool
from snakepit_kernel.kernel.kernel import QUITTING

pytestmark = pytest.mark.usefixtures("by_value")


class Quitter(Adapter):
    @tool
    def leave(self):
        from IPython import get_ipython

        get_ipython().ask_exit()
        return "asked"

    @tool
    def leave_in_stream(self):
        from IPython import get_ipython

        yield 1
        get_ipython().ask_exit()
        yield 2

    @tool
    def sys_exit(self):
        raise SystemExit(3)


@pytest.fixture
def pool(open_pool) -> Pool:
    return open_pool(adapter=Quitter)


def pid_of(pool: Pool) -> int:
    return pool.submit(os.getpid).result(20)


def last_end(pool: Pool) -> WorkerEnd:
    """Wait until a worker has ended; a successor serves before that."""
    until = time.monotonic() + 20
    while not (ends := pool.status().ends):
        assert time.monotonic() < until
        time.sleep(0.02)  # the end of a worker that was replaced is no event for us
    return ends[-1]


@pytest.mark.parametrize(
    "cell",
    [
        "exit",
        "exit()",
        "quit()",
        "get_ipython().ask_exit()",
        "get_ipython().kernel.do_shutdown(False)",
        "import asyncio\nawait asyncio.sleep(0)\nexit()",
        "print('before')\nexit()\nprint('after')",
    ],
)
def test_a_cell_that_tells_its_worker_to_end_says_so_and_no_call_is_lost(pool, cell):
    before, died = pid_of(pool), pool.stats().died
    pool.run("left = 1")

    result = pool.run(cell)

    assert result.ok
    assert result.stderr == f"{QUITTING}\n"
    pids = {pid_of(pool) for _ in range(6)}
    assert len(pids) == 1
    assert before not in pids
    assert pool.run("left").error.type_name == "NameError"
    assert pool.stats().died == died
    assert "told it to end" in last_end(pool).reason


@pytest.mark.parametrize("cell", ["raise SystemExit", "import sys; sys.exit(3)", "exit(True)"])
def test_a_cell_that_ends_itself_alone_keeps_its_worker(pool, cell):
    before = pid_of(pool)

    result = pool.run(cell)

    assert QUITTING not in result.stderr
    assert {pid_of(pool) for _ in range(6)} == {before}


def test_a_tool_that_tells_its_worker_to_end_returns_and_says_so(pool, capsys):
    before = pid_of(pool)

    assert pool.call("leave") == "asked"

    assert capsys.readouterr().err == f"{QUITTING}\n"
    assert before not in {pid_of(pool) for _ in range(6)}


def test_a_stream_that_tells_its_worker_to_end_comes_to_its_end(pool, capsys):
    before = pid_of(pool)

    assert list(pool.stream("leave_in_stream")) == [1, 2]

    assert capsys.readouterr().err == f"{QUITTING}\n"
    assert before not in {pid_of(pool) for _ in range(6)}


def leave() -> Any:
    from IPython import get_ipython

    get_ipython().ask_exit()
    time.sleep(0.2)
    return "asked"


leave.__module__ = "__main__"


def test_futures_behind_one_that_tells_its_worker_to_end_are_all_done(pool):
    before = pid_of(pool)

    futures = [pool.submit(leave), *(pool.submit(os.getpid) for _ in range(50))]

    assert futures[0].result(20) == "asked"
    assert before not in {future.result(20) for future in futures[1:]}


@pytest.mark.parametrize("leaves", ["sys_exit", "function"])
def test_a_call_that_raises_system_exit_raises_it_here_and_keeps_its_worker(pool, leaves):
    before = pid_of(pool)
    if leaves == "function":
        with pytest.raises(SystemExit) as caught:
            pool.submit(lambda: exit(3)).result(20)
        assert caught.value.code == 3
    else:
        with pytest.raises(Exception, match="SystemExit") as told:
            pool.call("sys_exit")
        assert told.value.type_name == "SystemExit"

    assert {pid_of(pool) for _ in range(6)} == {before}


def test_a_strict_session_loses_its_home_when_that_was_told_to_end(pool):
    session = pool.session("strict-quitter", affinity="strict_queue")
    session.run("kept = 1")

    session.run("exit()")

    with pytest.raises(SessionLost, match="told it to end"):
        session.run("kept", timeout=20)
    assert pool.run("1").value == 1


def test_a_client_that_shuts_a_worker_down_loses_no_call_of_the_pool(open_pool):
    pool = open_pool()
    pool.run("1")
    before = pid_of(pool)
    connection = pool._engine.supervisor.workers[1].process.manager.get_connection_info()

    async def shut_down() -> None:
        client = AsyncKernelClient()
        client.load_connection_info(connection)
        client.start_channels()
        try:
            reply = await client.shutdown(reply=True, timeout=10)
            assert reply["content"]["status"] == "ok"
        finally:
            client.stop_channels()

    asyncio.run(shut_down())

    assert [pool.run("1 + 1", timeout=20).value for _ in range(4)] == [2] * 4
    while pid_of(pool) == before:
        time.sleep(0.02)  # the replacement of a worker that idles is no event for us
    assert pool.stats().died == 0
