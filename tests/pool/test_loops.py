"""The event loops that a call finds, and leaves."""

from __future__ import annotations

import sys

import pytest

from snakepit_kernel import Pool

MAKES_LOOPS = sys.version_info < (3, 14)
"""Whether `asyncio.get_event_loop` makes a loop in the main thread of a fresh process."""


@pytest.fixture(scope="module")
def pool(open_for_all) -> Pool:
    return open_for_all(name="loops")


@pytest.fixture(scope="module")
def threads(open_for_all) -> Pool:
    return open_for_all(profile="thread", threads_per_worker=2, name="threads")


def of_main(function):
    """Have a function travel by value, as one of the notebook does."""
    function.__module__ = "__main__"
    return function


@of_main
def state() -> tuple[str, str]:
    """Tell what there is, as a fresh process would."""
    import asyncio
    import sys
    import warnings

    try:
        running = repr(asyncio.get_running_loop())
    except RuntimeError as error:
        running = str(error)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            current = str(asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "ran")))
        except RuntimeError as error:
            current = str(error)
        if sys.version_info < (3, 14):
            current += type(asyncio.get_event_loop_policy()).__name__
    return running, current


@of_main
def stop() -> None:
    import asyncio

    try:
        asyncio.get_event_loop().stop()
    except RuntimeError:  # there is none
        pass


@of_main
def leave_a_closed_loop() -> None:
    import asyncio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.close()


@of_main
def leave_none() -> None:
    import asyncio

    asyncio.set_event_loop(None)


@of_main
def leave_a_policy() -> None:
    import asyncio
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        class Policy(asyncio.DefaultEventLoopPolicy):
            pass

        asyncio.set_event_loop_policy(Policy())


@of_main
def run() -> str:
    import asyncio

    return asyncio.run(asyncio.sleep(0, "ran"))


@of_main
async def leave_as_a_coroutine() -> None:
    import asyncio

    asyncio.set_event_loop(asyncio.new_event_loop())
    leave_a_policy()


@of_main
def as_a_generator():
    import asyncio

    asyncio.set_event_loop(None)
    yield 1


LEAVES = [
    stop,
    leave_a_closed_loop,
    leave_none,
    leave_a_policy,
    run,
    state,
    leave_as_a_coroutine,
]


@pytest.mark.parametrize("leave", LEAVES, ids=lambda f: f.__name__)
def test_a_call_finds_what_a_fresh_process_has_whatever_ran_before(leave, pool):
    fresh = pool.submit(state).result()
    assert fresh[0] == "no running event loop"
    assert ("ran" in fresh[1]) == MAKES_LOOPS

    pool.submit(leave).result()

    assert pool.submit(state).result() == fresh
    assert pool.run("import asyncio; asyncio.get_running_loop().is_running()").value is True


@pytest.mark.parametrize("leave", LEAVES, ids=lambda f: f.__name__)
def test_a_call_in_a_thread_finds_what_a_fresh_thread_has(leave, threads):
    fresh = threads.submit(state).result()
    assert fresh[0] == "no running event loop"
    assert "no current event loop" in fresh[1]

    threads.submit(leave).result()

    assert threads.submit(state).result() == fresh


def test_a_stream_and_a_call_inside_a_host_call_find_it_too(pool):
    pool.tool(as_a_generator)
    pool.tool(state)
    fresh = pool.call("state")

    @pool.host_tool
    def back() -> tuple[str, str]:
        return pool.call("state")

    @of_main
    def outer() -> list[object]:
        import snakepit_kernel

        return [snakepit_kernel.context().host_tools.back(), state()]

    assert list(pool.stream("as_a_generator")) == [1]
    assert pool.submit(outer).result() == [fresh, fresh]


@pytest.mark.skipif(not MAKES_LOOPS, reason="asyncio.get_event_loop makes no loops there")
def test_tasks_on_the_loop_of_a_call_end_with_the_call(pool, capsys):
    @of_main
    def leave() -> None:
        import asyncio
        import warnings

        async def work() -> None:
            print("it ran")

        warnings.simplefilter("ignore")
        loop = asyncio.get_event_loop()
        loop.of_call = loop.create_task(work())

    pool.submit(leave).result()
    pool.submit(state).result()
    pool.run("1")

    assert "it ran" not in capsys.readouterr().out


def test_a_coroutine_cannot_stop_the_workers_own_loop(pool):
    @of_main
    async def stop_own() -> str:
        import asyncio

        try:
            asyncio.get_running_loop().stop()
        except RuntimeError as error:
            return str(error)
        return "stopped"

    assert "cannot stop the event loop" in pool.submit(stop_own).result()
    assert pool.submit(abs, -1).result() == 1


def test_an_adapters_own_policy_is_kept(open_pool, tmp_path, monkeypatch):
    if not MAKES_LOOPS:
        return
    (tmp_path / "policed.py").write_text(
        "import asyncio\n"
        "from snakepit_kernel import tool\n"
        "class Policy(asyncio.DefaultEventLoopPolicy): pass\n"
        "asyncio.set_event_loop_policy(Policy())\n"
        "@tool\n"
        "def policy() -> str:\n"
        "    asyncio.set_event_loop(asyncio.new_event_loop())\n"
        "    return type(asyncio.get_event_loop_policy()).__name__\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = open_pool(adapter="policed")

    assert [pool.call("policy") for _ in range(2)] == ["Policy"] * 2


@pytest.mark.skipif(not MAKES_LOOPS, reason="policies are going away there")
def test_a_policy_that_the_first_call_sets_is_its_own(open_pool):
    @of_main
    def set_one() -> str:
        import asyncio

        class Policy(asyncio.DefaultEventLoopPolicy):
            pass

        asyncio.set_event_loop_policy(Policy())
        return type(asyncio.get_event_loop_policy()).__name__

    @of_main
    def policy() -> str:
        import asyncio

        return type(asyncio.get_event_loop_policy()).__name__

    pool = open_pool(1)
    for _ in range(2):
        assert pool.submit(set_one).result() == "Policy"
        assert pool.submit(policy).result() == "_UnixDefaultEventLoopPolicy"
