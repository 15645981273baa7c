"""Which worker does a session's work."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import wait

import pytest

from snakepit_kernel import CallTimeout, SessionLost, ToolError, WorkerBusy, WorkerDied


def until(condition, seconds=10.0):
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def kill_home(pool, session):
    """End the worker that a session is bound to, and wait until the pool knows."""
    died = pool.stats().died
    pid = session.call("whoami")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: pool.stats().died > died)
    return pid


def keep_home_busy(session, seconds=0.5):
    """Make a session's home busy; return the future of that."""
    future = session.submit(time.sleep, seconds)
    until(future.running)
    return future


def collect(stream):
    return list(stream)


async def acollect(stream):
    return [chunk async for chunk in stream]


ASKING = """
    import os
    from snakepit_kernel import Adapter, tool

    class Asking(Adapter):
        @tool
        def pid(self) -> int:
            return os.getpid()

        @tool
        def pids(self):
            yield os.getpid()

        @tool
        def ask(self, name: str):
            return os.getpid(), self.context.call_host_tool(name)

        @tool
        async def aask(self, name: str):
            return os.getpid(), await self.context.acall_host_tool(name)
"""


@pytest.fixture
def asking(tmp_path, monkeypatch):
    (tmp_path / "asking.py").write_text("\n".join(line[4:] for line in ASKING.splitlines()))
    monkeypatch.chdir(tmp_path)
    return "asking:Asking"


WORK = {
    "call": lambda session: session.call("pid"),
    "acall": lambda session: asyncio.run(session.acall("pid")),
    "stream": lambda session: collect(session.stream("pids"))[0],
    "astream": lambda session: asyncio.run(acollect(session.astream("pids")))[0],
    "cell": lambda session: session.run("import os; os.getpid()").value,
    "acell": lambda session: asyncio.run(session.arun("import os; os.getpid()")).value,
    "future": lambda session: session.submit(os.getpid).result(),
    "pull": lambda session: session.push({"a": 1}) or session.call("pid"),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_strict_work_waits_for_its_busy_home_while_another_worker_is_idle(open_pool, asking, work):
    """Acceptance case 31."""
    pool = open_pool(2, adapter=asking)
    session = pool.session("s", affinity="strict_queue")
    home = session.call("pid")
    napping = keep_home_busy(session)

    began = time.monotonic()
    assert work(session) == home
    assert time.monotonic() - began > 0.2
    napping.result(5)


def test_a_strict_call_that_waits_too_long_does_not_run(open_pool, shop):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s", affinity="strict_queue")
    napping = keep_home_busy(session, 1.0)

    with pytest.raises(CallTimeout, match="did not start"):
        session.call("whoami", timeout=0.1)

    assert not napping.done()


def test_strict_sessions_do_not_hold_up_others(open_pool, shop):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s", affinity="strict_queue")
    home = session.call("whoami")["pid"]
    napping = keep_home_busy(session, 1.0)
    queued = [session.submit(os.getpid) for _ in range(3)]

    others = {pool.submit(os.getpid).result() for _ in range(20)}

    assert not napping.done()
    assert home not in others
    assert {future.result() for future in queued} == {home}


def test_a_session_that_fails_fast_does_not_wait_for_its_busy_home(open_pool, shop):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s", affinity="strict_fail_fast")
    home = session.call("whoami")
    napping = keep_home_busy(session)

    with pytest.raises(WorkerBusy, match="'s' is busy.*'strict_fail_fast'") as caught:
        session.call("whoami")
    for work in (lambda: session.submit(os.getpid), lambda: session.run("1")):
        with pytest.raises(WorkerBusy):
            work()

    assert (caught.value.session_id, caught.value.workers) == ("s", (home["worker"],))
    assert not napping.done()
    napping.result(5)
    assert session.call("whoami")["pid"] == home["pid"]
    assert pool.stats().lost == 3


def test_a_session_that_fails_fast_waits_for_its_first_worker(pool):
    napping = keep_home_busy(pool, 0.3)

    assert pool.session("s", affinity="strict_fail_fast").call("whoami")["session"] == "s"
    napping.result(5)


def test_a_pools_affinity_is_that_of_its_sessions(open_pool):
    pool = open_pool(affinity="strict_queue")

    assert pool.session("s").affinity == "strict_queue"
    assert pool.session("s", affinity="hint").affinity == "hint"


@pytest.mark.parametrize("value", ["strict", "", None, 3])
def test_an_unknown_affinity_is_refused_with_the_three_modes(open_pool, value):
    pool = open_pool()
    value = value if value is not None else ["hint"]

    with pytest.raises(ValueError, match="'hint', 'strict_queue', 'strict_fail_fast'"):
        pool.session("s", affinity=value)


def test_two_who_have_a_session_open_have_one_home(open_pool, shop):
    pool = open_pool(3, adapter=shop)
    sessions = [pool.session("s", affinity="strict_queue") for _ in range(6)]

    futures = [session.submit(os.getpid) for session in sessions]

    assert len({future.result() for future in futures}) == 1


def test_a_strict_session_whose_worker_died_is_lost_until_it_is_opened_anew(open_pool, shop):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s", affinity="strict_queue")
    worker = session.call("whoami")["worker"]
    gone = kill_home(pool, session)

    for work in (
        lambda: session.call("whoami"),
        lambda: session.run("1"),
        lambda: session.submit(os.getpid),
        lambda: asyncio.run(session.acall("whoami")),
        lambda: session.run("1", worker=1),
    ):
        with pytest.raises(SessionLost) as caught:
            work()
        assert (caught.value.session_id, caught.value.worker) == ("s", worker)

    again = pool.session("s", affinity="strict_queue")
    home = again.call("whoami")["pid"]
    assert home != gone
    assert {again.submit(os.getpid).result() for _ in range(5)} == {home}
    with pytest.raises(SessionLost, match="variables, programs and metadata .* still there"):
        session.call("whoami")
    assert pool.stats().lost == 6


def test_a_session_that_only_prefers_its_worker_is_never_lost(open_pool, shop):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s")
    gone = kill_home(pool, session)

    assert session.call("whoami")["pid"] != gone


def test_strict_work_that_waits_when_its_home_dies_is_lost_and_what_runs_there_died(
    open_pool, shop
):
    pool = open_pool(2, adapter=shop)
    session = pool.session("s", affinity="strict_queue")
    home = session.call("whoami")["pid"]
    running = keep_home_busy(session, 30.0)
    queued = session.submit(os.getpid)

    os.kill(home, signal.SIGKILL)

    wait([running, queued], 10)
    assert isinstance(running.exception(), WorkerDied)
    assert isinstance(queued.exception(), SessionLost)


def test_a_home_that_was_replaced_because_it_did_not_listen_is_lost(open_pool, shop):
    pool = open_pool(2, adapter=shop, grace=0.2)
    session = pool.session("s", affinity="strict_queue")
    session.call("whoami")
    deaf = "import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"

    with pytest.raises(CallTimeout):
        session.run(deaf + "time.sleep(30)", timeout=0.3)

    with pytest.raises(SessionLost):
        session.call("whoami")


@pytest.mark.parametrize("tool", ["ask", "aask"])
def test_a_strict_session_called_from_its_own_home_runs_in_the_worker_that_waits(
    open_pool, asking, tool
):
    pool = open_pool(2, adapter=asking)
    session = pool.session("s", affinity="strict_queue")
    pool.host_tool(lambda_named("again", lambda: session.call("pid")))

    outer, inner = session.call(tool, {"name": "again"}, timeout=10)

    assert inner == outer


def test_a_strict_session_called_by_way_of_another_worker_runs_in_its_home(open_pool, asking):
    pool = open_pool(2, adapter=asking)
    here, there = (pool.session(name, affinity="strict_queue") for name in "ab")
    napping = keep_home_busy(here)
    other = there.call("pid")
    napping.result()
    pool.host_tool(lambda_named("again", lambda: here.call("pid")))
    pool.host_tool(lambda_named("by_way", lambda: there.call("ask", {"name": "again"})))

    outer, (between, inner) = here.call("ask", {"name": "by_way"}, timeout=10)

    assert between == other
    assert inner == outer != between


def test_a_cell_of_a_strict_session_is_refused_while_its_home_waits_for_it(open_pool, asking):
    pool = open_pool(2, adapter=asking)
    session = pool.session("s", affinity="strict_queue")
    pool.host_tool(lambda_named("again", lambda: session.run("1").value))

    with pytest.raises(ToolError, match="WorkerBusy"):
        session.call("ask", {"name": "again"}, timeout=10)


def test_strict_sessions_that_are_called_from_each_others_homes_do_not_wait_for_ever(
    open_pool, asking
):
    pool = open_pool(2, adapter=asking)
    first, second = (pool.session(name, affinity="strict_queue") for name in "ab")
    napping = keep_home_busy(first)
    assert second.call("pid") != first.call("pid")
    napping.result()
    both = threading.Barrier(2)

    def ask(session):
        both.wait(5)
        return session.call("pid")

    pool.host_tool(lambda_named("ask_first", lambda: ask(first)))
    pool.host_tool(lambda_named("ask_second", lambda: ask(second)))
    began = time.monotonic()

    futures = [
        first.submit(asker("ask_second")),
        second.submit(asker("ask_first")),
    ]
    wait(futures, 10)

    refused = [future.exception() for future in futures if future.exception() is not None]
    assert time.monotonic() - began < 5
    assert [type(error) for error in refused] == [ToolError]
    assert "WorkerBusy" in str(refused[0])


def asker(name):
    def ask():
        from snakepit_kernel import context

        return context().call_host_tool(name)

    ask.__module__ = "__main__"
    return ask


def test_a_session_that_fails_fast_is_served_in_its_home_while_that_waits_for_it(open_pool, asking):
    pool = open_pool(2, adapter=asking)
    session = pool.session("s", affinity="strict_fail_fast")
    pool.host_tool(lambda_named("again", lambda: session.call("pid")))

    outer, inner = session.call("ask", {"name": "again"}, timeout=10)

    assert inner == outer


def test_a_strict_session_takes_any_seat_of_its_home(open_pool, tmp_path, monkeypatch):
    (tmp_path / "web.py").write_text(
        "import os, time\nfrom snakepit_kernel import Adapter, tool\n"
        "class Web(Adapter):\n    thread_safe = True\n    @tool\n"
        "    def pid(self, nap: float) -> int:\n"
        "        time.sleep(nap)\n        return os.getpid()\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = open_pool(2, adapter="web:Web", profile="thread", threads_per_worker=3)
    session = pool.session("s", affinity="strict_fail_fast")
    home = session.call("pid", {"nap": 0.0})
    napping = keep_home_busy(session, 1.0)

    assert [session.call("pid", {"nap": 0.0}) for _ in range(3)] == [home] * 3
    assert session.run("import os; os.getpid()").value == home
    assert not napping.done()


def lambda_named(name, function):
    function.__name__ = function.__qualname__ = name
    return function
