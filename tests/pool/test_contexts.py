"""Whose context threads, executors and callbacks of calls have."""

from __future__ import annotations

import pytest

from snakepit_kernel import Pool


@pytest.fixture(scope="module")
def pool(open_for_all) -> Pool:
    pool = open_for_all(name="contexts")
    pool.session("stranger").run("1")  # the last cell
    return pool


@pytest.fixture(scope="module")
def threads(open_for_all) -> Pool:
    return open_for_all(profile="thread", threads_per_worker=2, name="threads")


def of_main(function):
    """Have a function travel by value, as one of the notebook does."""
    function.__module__ = "__main__"
    return function


@of_main
def everywhere() -> dict[str, str]:
    import asyncio
    import concurrent.futures
    import multiprocessing.pool
    import threading

    import snakepit_kernel

    found = {}

    def look(where: str) -> None:
        context = snakepit_kernel.context()
        context.variables.get("x", 0)
        context.emit("looked", where=where)
        found[where] = (context.session_id, context.host_tools.who())

    thread = threading.Thread(target=look, args=("thread",))
    thread.start()
    thread.join()
    timer = threading.Timer(0.01, look, ["timer"])
    timer.start()
    timer.join()
    nested = threading.Thread(
        target=lambda: (
            (inner := threading.Thread(target=look, args=("inner",))).start() or inner.join()
        )
    )
    nested.start()
    nested.join()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        future = executor.submit(look, "executor")
        future.add_done_callback(lambda _: look("callback"))
    with multiprocessing.pool.ThreadPool(1) as others:
        others.apply(look, ("pool",))

    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(None, look, "run_in_executor")
        await asyncio.to_thread(look, "to_thread")

    asyncio.run(main())
    return found


PLACES = {
    "thread",
    "timer",
    "inner",
    "executor",
    "callback",
    "pool",
    "run_in_executor",
    "to_thread",
}


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_threads_executors_and_callbacks_have_the_context_of_their_call(profile, pool, threads):
    used = pool if profile == "process" else threads
    sessions = [used.session(name) for name in ("vs", "ws")]

    @used.host_tool
    def who() -> str:
        return "host"

    for session in sessions:
        assert session.submit(everywhere).result() == dict.fromkeys(
            PLACES, (session.session_id, "host")
        )


def test_what_an_executor_runs_is_of_the_call_that_gave_it_there(pool):
    @of_main
    def give() -> str | None:
        import concurrent.futures
        import sys

        import snakepit_kernel

        executor = vars(sys).setdefault("_kept_executor", concurrent.futures.ThreadPoolExecutor(1))
        return executor.submit(lambda: snakepit_kernel.context().session_id).result()

    assert [pool.session(name).submit(give).result() for name in "abc"] == ["a", "b", "c"]


def test_a_thread_that_outlives_its_call_is_told_how_to_have_a_context(pool, tmp_path):
    @of_main
    def leave(gate: str) -> None:
        import os
        import sys
        import threading
        import time

        import snakepit_kernel

        said = vars(sys).setdefault("_said", [])

        def look() -> None:
            while not os.path.exists(gate):
                time.sleep(0.01)
            try:
                said.append(snakepit_kernel.context().session_id)
            except RuntimeError as error:
                said.append(str(error))

        thread = vars(sys)["_thread"] = threading.Thread(target=look)
        thread.start()

    @of_main
    def hear(gate: str) -> list[str]:
        import sys

        open(gate, "w").close()
        vars(sys)["_thread"].join()
        return vars(sys)["_said"]

    gate = str(tmp_path / "gate")
    pool.session("mine").submit(leave, gate).result()
    (said,) = pool.session("other").submit(hear, gate).result()

    assert "has ended" in said
    assert "hand it to the thread" in said


def test_a_thread_of_nobody_has_the_context_of_the_one_call_that_runs(pool):
    @of_main
    def look() -> str | None:
        import _thread
        import queue

        import snakepit_kernel

        found: queue.Queue[str | None] = queue.Queue()
        _thread.start_new_thread(lambda: found.put(snakepit_kernel.context().session_id), ())
        return found.get(timeout=10)

    assert pool.session("only").submit(look).result() == "only"


def test_in_threads_a_thread_of_nobody_is_told_how_to_have_a_context(threads):
    @of_main
    def look(parties: int) -> str:
        import _thread
        import queue
        import sys
        import threading

        import snakepit_kernel

        barrier = vars(sys).setdefault("_meeting", threading.Barrier(parties))
        found: queue.Queue[str] = queue.Queue()

        def ask() -> None:
            try:
                found.put(repr(snakepit_kernel.context()))
            except RuntimeError as error:
                found.put(str(error))

        barrier.wait(10)
        _thread.start_new_thread(ask, ())
        said = found.get(timeout=10)
        barrier.wait(10)
        return said

    futures = [threads.submit(look, 2) for _ in range(2)]

    assert all("2 calls run" in future.result() for future in futures)


def test_threads_of_calls_leave_no_cyclic_garbage(pool):
    @of_main
    def count() -> int:
        import gc
        import threading

        def nothing() -> None:
            pass

        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                thread = threading.Thread(target=nothing)
                thread.start()
                thread.join()
            del thread
            return gc.collect()
        finally:
            gc.enable()

    assert pool.submit(count).result() == 0
