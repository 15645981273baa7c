"""Ending work that runs: by its future, its task, its deadline, or a signal."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from snakepit_kernel import CallTimeout, Pool, ToolError


@pytest.fixture(scope="module")
def opened(open_for_all: Callable[..., Pool]) -> Pool:
    pool = open_for_all(grace=5.0)  # beside a hundred workers of another test one may wait a second
    define_tools(pool)
    return pool


@pytest.fixture
def pool(opened: Pool) -> Iterator[Pool]:
    """A pool whose worker a test must not cost."""
    died = opened.stats().died
    yield opened
    assert opened.call("square", {"x": 3}, timeout=5) == 9
    stats = opened.stats()
    assert (stats.running, stats.queued, stats.died) == (0, 0, died)


def define_tools(pool: Pool) -> None:
    @pool.tool
    def square(x: int) -> int:
        return x * x

    @pool.tool
    def sleep() -> None:
        import time

        time.sleep(60)

    @pool.tool
    async def asleep() -> None:
        import asyncio

        await asyncio.sleep(60)

    @pool.tool
    def loop() -> None:
        while True:
            pass

    @pool.tool
    def matrices() -> None:
        import numpy

        matrix = numpy.ones((200, 200))
        while True:
            matrix @ matrix

    @pool.tool
    def big_int() -> None:
        for _ in range(10_000):
            3 ** (10**5)

    @pool.tool
    def regex() -> None:
        import re

        re.match("(a+)+b", "a" * 40)

    @pool.tool
    def in_subprocess() -> None:
        import subprocess

        subprocess.run(["sleep", "60"], check=True)

    @pool.tool
    def lock() -> None:
        import threading

        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    @pool.tool
    def host() -> None:
        from snakepit_kernel import context

        context().host_tools.stay()

    @pool.tool
    async def ahost() -> None:
        from snakepit_kernel import context

        await context().acall_host_tool("stay")

    @pool.host_tool
    async def stay() -> None:
        await asyncio.sleep(60)

    @pool.tool
    def deaf() -> None:
        """Run in C, with the GIL, and look at no signal."""
        import collections
        import itertools

        collections.deque(itertools.repeat(0, 10**10), maxlen=0)

    @pool.tool
    def masked() -> None:
        import signal
        import time

        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        time.sleep(20)


LONG = ["sleep", "asleep", "loop", "matrices", "big_int", "regex", "in_subprocess", "lock"]


@pytest.mark.parametrize(
    ("name", "awaited"),
    [  # of call() the host tool is the caller's own code, which nobody interrupts
        *((name, False) for name in LONG),
        *((name, True) for name in [*LONG, "host", "ahost"]),
    ],
)
def test_a_deadline_ends_what_looks_at_signals(pool, name, awaited):
    began = time.monotonic()
    with pytest.raises(CallTimeout) as caught:
        asyncio.run(pool.acall(name, timeout=0.2)) if awaited else pool.call(name, timeout=0.2)

    assert time.monotonic() - began < 10
    assert not caught.value.was_replaced


@pytest.mark.parametrize("name", [*LONG, "host", "ahost"])
def test_cancelling_a_task_ends_its_call(pool, name):
    async def main() -> None:
        task = asyncio.create_task(pool.acall(name))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 10


def test_a_task_that_is_cancelled_again_while_it_ends_still_keeps_the_worker(pool):
    """As when a group of tasks ends in the moment of a deadline."""

    async def main() -> None:
        task = asyncio.create_task(pool.acall("sleep", timeout=0.1))
        await asyncio.sleep(0.1)
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, CallTimeout)):
            await task

    for _ in range(10):
        asyncio.run(main())


def test_a_task_that_is_cancelled_again_while_its_call_tidies_up_keeps_the_worker(pool):
    @pool.tool
    def untidy() -> None:
        import time

        from snakepit_kernel import context

        context().host_tools.begin()
        try:
            time.sleep(60)
        finally:
            time.sleep(0.3)

    async def main() -> None:
        begun = asyncio.Event()

        @pool.host_tool
        async def begin() -> None:
            begun.set()

        task = asyncio.create_task(pool.acall("untidy"))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0.1)  # the call has heard of it, and goes on for a moment
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_cancelling_futures_at_any_moment_never_hits_the_next_call(pool):
    dice = random.Random(7)
    wrong = []
    for number in range(150):
        future = pool.submit(time.sleep, dice.choice([0, 0.001, 0.003, 10]))
        time.sleep(dice.uniform(0, 0.004))
        cancelled = future.cancel()
        if not cancelled and future.exception() is not None:
            wrong.append(future.exception())
        if pool.call("square", {"x": number}, timeout=5) != number * number:
            wrong.append(number)
    assert wrong == []


def test_a_future_that_is_cancelled_as_it_begins_gives_its_worker_back(pool):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet in the middle of things
    try:
        dice = random.Random(3)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            future = pool.submit(time.sleep, 10)
            for _ in range(dice.randrange(3000)):
                pass
            future.cancel()
            assert pool.submit(pow, 2, 2).result(5) == 4
    finally:
        sys.setswitchinterval(interval)


def test_cancelling_tasks_at_any_moment_never_hits_the_next_call(pool):
    dice = random.Random(8)

    async def main() -> None:
        for number in range(100):
            task = asyncio.create_task(pool.acall("asleep" if number % 2 else "sleep"))
            await asyncio.sleep(dice.uniform(0, 0.004))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await pool.acall("square", {"x": number}, timeout=5) == number * number

    asyncio.run(main())


def test_a_future_that_is_cancelled_while_it_waits_never_runs(pool, tmp_path):
    blocker = pool.submit(time.sleep, 0.1)
    queued = [pool.submit((tmp_path / str(n)).touch) for n in range(20)]
    assert all(future.cancel() for future in queued)
    blocker.result(5)

    assert pool.submit(pow, 2, 2).result(5) == 4
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CancelledError):
        queued[0].result()


@pytest.mark.parametrize("name", ["deaf", "masked"])
@pytest.mark.parametrize("awaited", [False, True], ids=["call", "acall"])
def test_a_deaf_worker_is_replaced_and_the_error_shows_where_it_was(open_pool, name, awaited):
    pool = open_pool(grace=0.3)
    define_tools(pool)
    pid = pool.submit(os.getpid).result()
    began = time.monotonic()

    with pytest.raises(CallTimeout) as caught:
        asyncio.run(pool.acall(name, timeout=0.3)) if awaited else pool.call(name, timeout=0.3)

    assert 0.5 < time.monotonic() - began < 15
    assert caught.value.was_replaced
    assert f"in {name}" in caught.value.stacks
    by_c = "Current thread" in caught.value.stacks  # faulthandler's words
    assert by_c == (name == "deaf")  # else Python answered by itself
    assert "worker was replaced" in str(caught.value)
    assert pool.submit(os.getpid).result(10) != pid
    stats = pool.stats()
    assert (stats.timeout, stats.died, stats.running) == (1, 1, 0)


@pytest.mark.parametrize("name", ["sleep", "asleep", "loop"])
def test_python_writes_where_it_is_itself_wherever_it_runs(pool, name):
    """From C, in the middle of what Python does, it is not safe to look."""
    with pytest.raises(CallTimeout) as caught:
        pool.call(name, timeout=0.2)

    assert "worker/server.py" in caught.value.stacks or name == "asleep"
    assert "Current thread" not in caught.value.stacks


def test_the_error_shows_where_the_call_was_and_not_the_threads_that_it_has_started(pool):
    def wait_apart() -> None:
        import time

        time.sleep(0.5)

    @pool.tool
    def with_thread() -> None:
        import threading
        import time

        threading.Thread(target=wait_apart).start()
        time.sleep(60)

    with pytest.raises(CallTimeout) as caught:
        pool.call("with_thread", timeout=0.2)

    assert "wait_apart" in caught.value.stacks
    assert "in with_thread" in str(caught.value)
    assert "wait_apart" not in str(caught.value)


def test_a_future_on_a_deaf_worker_is_cancelled_at_once_and_the_slot_works_again(open_pool):
    pool = open_pool(grace=0.3)
    define_tools(pool)

    def deaf() -> None:
        import collections
        import itertools

        collections.deque(itertools.repeat(0, 10**10), maxlen=0)

    first = pool.submit(os.getpid).result()
    future = pool.submit(deaf)
    while not future.running():
        time.sleep(0.005)
    time.sleep(0.1)
    assert future.cancel()
    assert future.cancelled()
    assert pool.status().workers[0].pid == first  # it was not waited for
    assert pool.submit(os.getpid).result(20) != first


def test_a_signal_that_somebody_else_sends_interrupts_what_runs_also_after_a_cancel(pool):
    pid = pool.submit(os.getpid).result()
    with pytest.raises(CallTimeout):
        pool.call("sleep", timeout=0.1)
    time.sleep(1.1)  # until then it could be a repetition of ours

    for name in ("sleep", "asleep"):
        threading.Timer(0.2, os.kill, (pid, signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(ToolError, match="was interrupted in its worker"):
            pool.call(name, timeout=50)
        assert time.monotonic() - began < 20


def test_a_signal_that_somebody_else_sends_to_an_idle_worker_does_no_harm(pool):
    pid = pool.submit(os.getpid).result()
    for _ in range(20):
        os.kill(pid, signal.SIGINT)
        assert pool.submit(os.getpid).result(5) == pid


def test_a_cell_is_interrupted_and_keeps_its_variables(pool):
    """Acceptance case 51."""
    pool.run("kept = 41")
    for code in ("import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"):
        began = time.monotonic()
        with pytest.raises(CallTimeout):
            pool.run(code, timeout=0.3)
        assert time.monotonic() - began < 20
    assert pool.run("kept + 1").value == 42


def test_work_that_passes_its_deadline_leaves_the_worker_to_the_next(pool):
    """Acceptance case 16."""
    blocker = pool.submit(time.sleep, 0.4)
    began = time.monotonic()
    with pytest.raises(CallTimeout):
        pool.call("sleep", timeout=0.6)
    assert 0.5 < time.monotonic() - began < 20
    blocker.result()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sync", "async", "subtask"])
def test_a_tool_that_wants_to_end_its_process_ends_its_call_alone(pool, kind, where):
    @pool.tool
    def leave(kind: object) -> None:
        raise kind

    @pool.tool
    async def aleave(kind: object, deep: bool) -> None:
        import asyncio

        async def sub() -> None:
            raise kind

        if deep:
            await asyncio.gather(sub())
        raise kind

    call = ("leave", {"kind": kind}) if where == "sync" else None
    call = call or ("aleave", {"kind": kind, "deep": where == "subtask"})
    with pytest.raises(ToolError, match=kind.__name__):
        pool.call(*call, timeout=5)
