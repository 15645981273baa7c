"""Calling tools."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from snakepit_kernel import (
    Adapter,
    CallTimeout,
    InvalidArguments,
    PoolClosed,
    PoolSaturated,
    QueueTimeout,
    ToolError,
    ToolNotFound,
    WorkerDied,
    tool,
)


def test_a_tool_is_called_by_name_or_as_a_method(pool):
    assert pool.call("price", {"item": "tea", "amount": 2}) == 5.0
    assert pool.tools.price(item="tea") == 2.5
    assert pool.tools.price("tea", 3) == 7.5


def test_tools_complete_by_tab_and_show_their_signatures(pool):
    assert {"price", "fail", "nap"} <= set(dir(pool.tools))
    assert "price(item: str, amount: int = 1) -> float" in repr(pool.tools)
    assert "What it costs." in pool.tools.price.__doc__
    assert pool.tools["price"].schema["required"] == ["item"]


def test_an_unknown_tool_is_named_with_the_nearest_known_one(pool):
    with pytest.raises(ToolNotFound, match="no tool 'prize'; did you mean 'price'"):
        pool.call("prize")
    with pytest.raises(AttributeError, match="did you mean 'price'"):
        _ = pool.tools.prize
    assert pool.stats().submitted == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"item": 3}, "argument 'item': Expected `str`, got `int`"),
        ({}, "missing argument 'item'"),
        ({"item": "tea", "colour": 1}, "unknown argument 'colour'"),
    ],
)
def test_wrong_arguments_are_named_and_the_tool_does_not_run(pool, arguments, said):
    with pytest.raises(InvalidArguments) as caught:
        pool.call("price", arguments)

    assert said in str(caught.value)
    assert caught.value.tool == "price"


def test_an_argument_that_cannot_travel_is_named_before_a_worker_is_taken(pool):
    with pytest.raises(TypeError, match="argument 'value' of echo cannot travel to a worker"):
        pool.call("echo", {"value": threading.Lock()})

    assert pool.stats().submitted == 0


def test_a_remote_error_has_type_text_traceback_notes_and_itself_as_cause(pool):
    with pytest.raises(ToolError) as caught:
        pool.call("fail", {"text": "no tea"})

    error = caught.value
    assert (error.type_name, error.message) == ("KeyError", "'no tea'")
    assert "raise error" in error.remote_traceback
    assert "shop.py" in error.remote_traceback
    assert "try tomorrow" in error.remote_traceback
    assert isinstance(error.__cause__, KeyError)
    assert error.__notes__ == ["try tomorrow"]


def test_an_exception_that_cannot_be_pickled_arrives_as_text(pool):
    @pool.tool
    def fail():
        import threading

        class Odd(Exception):
            def __init__(self):
                super().__init__("odd one")
                self.lock = threading.Lock()

        raise Odd

    with pytest.raises(ToolError) as caught:
        pool.call("fail")

    assert (caught.value.type_name, caught.value.message) == ("Odd", "odd one")
    assert caught.value.__cause__ is None


def test_what_a_tool_prints_is_printed_here(pool, capsys):
    pool.call("say", {"text": "hello"})

    assert capsys.readouterr() == ("hello\n", "oops\n")


def test_values_keep_value_and_type_there_and_back(pool):
    for value in (None, True, 2**70, (1, [2]), {1, 2}, b"x", {"a": (None,)}, 1.5):
        returned = pool.call("echo", {"value": value})
        assert returned == value
        assert type(returned) is type(value)


def test_a_large_array_survives_there_and_back(pool):
    array = np.random.default_rng(1).random((2000, 2000))  # 32 MB

    returned = pool.call("echo", {"value": array})

    np.testing.assert_array_equal(returned, array)


def test_the_session_that_the_caller_names_is_the_one_the_tool_sees(pool):
    assert pool.session("abc").call("whoami")["session"] == "abc"
    assert pool.call("whoami")["session"] is None


def test_a_session_prefers_the_worker_that_served_it_last(shop, open_pool):
    pool = open_pool(3, adapter=shop)
    session = pool.session("abc")
    home = session.call("whoami")["worker"]

    assert {session.call("whoami")["worker"] for _ in range(5)} == {home}
    assert len({pool.call("whoami")["worker"] for _ in range(6)}) == 3


def test_a_function_of_the_notebook_becomes_a_tool_and_can_be_replaced(pool):
    factor = 2

    @pool.tool
    def scale(x: int) -> int:
        return factor * x

    assert pool.call("scale", {"x": 4}) == 8

    @pool.tool
    @tool(description="Larger.")
    def scale(x: int) -> int:
        return 10 * x

    assert pool.call("scale", {"x": 4}) == 40
    assert pool.tools["scale"].description == "Larger."


def test_a_class_of_the_notebook_can_be_the_adapter(open_pool):
    class Local(Adapter):
        @tool
        def double(self, x: int) -> int:
            return 2 * x

    assert open_pool(adapter=Local).call("double", {"x": 4}) == 8


def test_what_is_no_function_cannot_be_a_tool(pool):
    with pytest.raises(TypeError, match="decorates functions, not int"):
        pool.tool(3)


@pytest.mark.parametrize("name", ["nap", "anap"])
def test_a_call_that_passes_its_deadline_is_interrupted_and_the_worker_stays(pool, name):
    pid = pool.call("whoami")["pid"]
    began = time.monotonic()

    with pytest.raises(CallTimeout) as caught:
        pool.call(name, {"seconds": 30.0}, timeout=0.3)

    assert 0.25 < time.monotonic() - began < 20
    assert caught.value.worker is not None
    assert pool.call("whoami")["pid"] == pid


def test_a_tool_brings_its_own_timeout(pool):
    with pytest.raises(CallTimeout, match="0.2 s"):
        pool.call("hurried")


def test_the_deadline_covers_the_wait_in_the_queue(pool):
    blocker = pool.submit(time.sleep, 60.0)
    while not blocker.running():
        time.sleep(0.005)
    began = time.monotonic()

    with pytest.raises(CallTimeout, match="did not start within"):
        pool.call("nap", {"seconds": 0.0}, timeout=0.3)

    assert time.monotonic() - began < 30
    assert blocker.cancel()


@pytest.mark.parametrize("awaited", [False, True])
def test_an_interrupt_that_a_call_did_not_hear_is_repeated(open_pool, awaited):
    pool = open_pool()

    @pool.tool
    def nap() -> None:
        import signal
        import time

        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(0.3)
        signal.signal(signal.SIGINT, heard)
        time.sleep(30)

    pid = pool.submit(os.getpid).result()
    with pytest.raises(CallTimeout):
        asyncio.run(pool.acall("nap", timeout=0.1)) if awaited else pool.call("nap", timeout=0.1)

    assert pool.submit(os.getpid).result() == pid


def test_a_call_that_cleans_up_after_an_interrupt_is_interrupted_once(open_pool, tmp_path):
    pool = open_pool()
    file = str(tmp_path / "clean")

    @pool.tool
    def work() -> None:
        import pathlib
        import time

        try:
            time.sleep(30)
        except KeyboardInterrupt:
            time.sleep(0.5)
            pathlib.Path(file).touch()

    with pytest.raises(CallTimeout):
        pool.call("work", timeout=0.3)

    assert (tmp_path / "clean").exists()


def test_a_worker_that_heeds_no_interrupt_is_replaced(shop, open_pool):
    pool = open_pool(adapter=shop, grace=0.3)

    @pool.tool
    def stubborn():
        import time

        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    pid = pool.call("whoami")["pid"]

    with pytest.raises(CallTimeout):
        pool.call("stubborn", timeout=0.3)

    assert pool.call("whoami", timeout=20)["pid"] != pid


def test_ctrl_c_interrupts_the_call_and_leaves_the_worker(pool):
    pid = pool.call("whoami")["pid"]
    began = time.monotonic()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.call("nap", {"seconds": 30.0})

    assert time.monotonic() - began < 20
    assert pool.call("whoami")["pid"] == pid
    assert pool.stats().cancelled == 1


def test_a_call_whose_worker_dies_raises_with_the_signal_and_the_slot_is_refilled(pool):
    with pytest.raises(WorkerDied, match="was killed by SIGKILL") as caught:
        pool.call("die")

    assert caught.value.status == -9
    assert pool.call("whoami", timeout=20)["worker"] == "default-1.2"
    assert pool.stats().died == 1


def test_a_crash_shows_where_it_happened(pool):
    with pytest.raises(WorkerDied, match="SIGSEGV") as caught:
        pool.call("die", {"how": "SEGV"})

    assert "Segmentation fault" in caught.value.output
    assert "shop.py" in caught.value.output


def test_ten_calls_on_one_worker_have_exactly_one_outcome_each(open_pool):
    """Acceptance case 14."""
    pool = open_pool(max_queue=5, queue_timeout=0.1)
    ran: list[int] = []
    outcomes: dict[int, str] = {}

    def call(number: int) -> None:
        try:
            pool._apply(_nap_and_tell, 0.3, number, worker=None)
            ran.append(number)
            outcomes[number] = "ok"
        except PoolSaturated:
            outcomes[number] = "saturated"
        except QueueTimeout:
            outcomes[number] = "timeout"

    threads = [threading.Thread(target=call, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stats = pool.stats()
    counted = {name: list(outcomes.values()).count(name) for name in ("ok", "saturated", "timeout")}
    assert len(outcomes) == 10
    assert counted["saturated"] == 4
    assert counted["ok"] >= 1
    assert counted == {"ok": stats.ok, "saturated": stats.saturated, "timeout": stats.timeout}
    assert stats.submitted == 10
    assert pool.submit(_told).result() == sorted(ran), "what timed out in the queue never ran"


def _nap_and_tell(seconds: float, number: int) -> None:
    import builtins

    builtins.__dict__.setdefault("told", []).append(number)
    time.sleep(seconds)


def _told() -> list[int]:
    import builtins

    return sorted(builtins.__dict__["told"])


def test_failing_and_good_calls_are_counted_apart(pool):
    """Acceptance case 15."""
    for _ in range(5):
        pool.call("price", {"item": "tea"})
        with pytest.raises(ToolError):
            pool.call("fail")

    stats = pool.stats()
    assert (stats.submitted, stats.ok, stats.error) == (10, 5, 5)
    assert stats.submitted == sum(
        (stats.ok, stats.error, stats.cancelled, stats.timeout, stats.saturated, stats.lost)
    )


def test_calls_are_awaited_side_by_side_while_the_loop_goes_on(shop, open_pool):
    pool = open_pool(2, adapter=shop)

    async def main() -> tuple[list[str], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        ticking = asyncio.create_task(tick())
        rested = await asyncio.gather(*(pool.acall("nap", {"seconds": 0.5}) for _ in range(4)))
        ticking.cancel()
        return rested, ticks

    rested, ticks = asyncio.run(main())

    assert rested == ["rested"] * 4
    assert ticks > 10


@pytest.mark.parametrize("name", ["nap", "anap"])
def test_cancelling_a_task_interrupts_its_call(pool, name):
    async def main() -> dict:
        task = asyncio.create_task(pool.acall(name, {"seconds": 30.0}))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await pool.acall("whoami", timeout=2.0)

    assert asyncio.run(main())["worker"] == "default-1.1"
    assert pool.stats().cancelled == 1


def test_an_awaited_call_has_a_deadline_and_can_lose_its_worker(pool):
    async def main() -> None:
        with pytest.raises(CallTimeout):
            await pool.acall("nap", {"seconds": 30.0}, timeout=0.2)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await pool.acall("die")

    asyncio.run(main())


def test_a_tool_may_run_an_event_loop_of_its_own(pool):
    @pool.tool
    def loop():
        import asyncio

        async def answer():
            return 42

        return asyncio.run(answer())

    assert pool.call("loop") == 42
    assert pool.run("21 * 2").value == 42, "the kernel's own loop still works"


def test_many_threads_call_at_once_and_each_gets_its_own_answer(shop, open_pool):
    pool = open_pool(2, adapter=shop)
    wrong: list[tuple[int, object]] = []

    def work(start: int) -> None:
        for number in range(start, start + 100):
            if (answer := pool.call("echo", {"value": number})) != number:
                wrong.append((number, answer))

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert pool.stats().ok == 800


def test_an_interrupt_never_hits_the_next_call(pool):
    """Calls that end at about their deadline: the late interrupt must miss what follows."""
    missed = 0
    for step in range(60):
        try:
            pool.call("nap", {"seconds": 0.01}, timeout=0.008 + step * 0.00005)
        except CallTimeout:
            missed += 1
        assert pool.call("echo", {"value": 1}) == 1
    assert missed > 0, "no deadline was hit, so nothing was tested"


def test_a_closed_pool_says_so(pool):
    pool.terminate()

    with pytest.raises(PoolClosed, match="pool 'default' is closed: it was shut down"):
        pool.call("price", {"item": "tea"})


@pytest.mark.parametrize("timeout", [-1, 0, "5", float("nan")])
def test_a_wrong_timeout_is_named(pool, timeout):
    with pytest.raises((ValueError, TypeError), match="timeout must be"):
        pool.call("price", {"item": "tea"}, timeout=timeout)


def test_threads_of_a_tool_may_print_at_the_same_time(pool, capsys):
    @pool.tool
    def chatter():
        import threading

        def talk(name):
            for number in range(200):
                print(f"{name} says {number}")

        threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        talk("e")
        for thread in threads:
            thread.join()
        return "done"

    assert pool.call("chatter", timeout=20) == "done"

    said = capsys.readouterr().out
    assert all(said.count(f"{name} says ") == 200 for name in "abcde")


def test_a_worker_that_died_is_not_lent_again(pool):
    for _ in range(5):
        with pytest.raises(WorkerDied):
            asyncio.run(pool.acall("die"))
        assert pool.call("echo", {"value": 1}) == 1

    assert (pool.stats().died, pool.stats().lost) == (5, 5)


def test_an_awaited_call_whose_deadline_passes_while_it_is_sent_leaves_the_worker(pool):
    pid = pool.call("whoami")["pid"]
    large = np.zeros(100_000_000, dtype=np.uint8)

    with pytest.raises(CallTimeout):
        asyncio.run(pool.acall("echo", {"value": large}, timeout=0.01))

    assert pool.call("whoami")["pid"] == pid


def test_a_worker_that_does_not_read_holds_up_no_other_future(open_pool):
    pool = open_pool(2, grace=0.3)
    pids = {worker.pid for worker in pool.status().workers}
    last_used = pool.submit(os.getpid).result(timeout=30)
    (next_used,) = pids - {last_used}  # the one that has been idle for the longest time
    os.kill(next_used, signal.SIGSTOP)

    stuck = pool.submit(len, b"x" * 20_000_000)

    assert pool.submit(len, b"x").result(timeout=5) == 1
    stuck.cancel()


# A finalizer, or a callback of the garbage collector, that it hits is none of ours.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_random_moments_loses_no_work_and_no_worker(open_pool):
    pool = open_pool(2)

    @pool.tool
    def echo(value: int) -> int:
        return value

    # A process of its own: a thread of this one would hit it only where it lets go of the GIL.
    shoot = (
        "import os, random, sys, time\n"
        "while True:\n"
        "    time.sleep(random.uniform(0.01, 0.03))\n"
        "    os.kill(int(sys.argv[1]), 2)\n"
    )
    shots, wrong = 0, []
    is_target = False

    def interrupt(*_: object) -> None:
        nonlocal is_target
        if is_target:  # not between two attempts: that would hit the test itself
            is_target = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    shooter = subprocess.Popen([sys.executable, "-c", shoot, str(os.getpid())])
    try:
        while shots <= 60:
            try:
                is_target = True  # each time: a finalizer that is hit swallows the interrupt
                if (answer := pool.call("echo", {"value": shots})) != shots:
                    wrong.append(answer)
                is_target = False
            except KeyboardInterrupt:
                shots += 1
    finally:
        is_target = False
        shooter.kill()
        shooter.wait()
        signal.signal(signal.SIGINT, before)

    assert wrong == []
    futures = [pool.submit(time.sleep, 0.2) for _ in range(2)]
    for future in futures:
        future.result(timeout=10)
    stats = pool.stats()
    assert stats.running == stats.queued == 0
    assert [worker.state for worker in pool.status().workers] == ["ready", "ready"]
    assert stats.submitted == sum(
        (stats.ok, stats.error, stats.cancelled, stats.timeout, stats.saturated, stats.lost)
    )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_with_a_call_in_it_gives_the_worker_back(pool):
    loop = asyncio.new_event_loop()
    task = loop.create_task(pool.acall("nap", {"seconds": 30.0}))
    loop.run_until_complete(asyncio.sleep(0.5))
    loop.close()

    del task
    gc.collect()

    assert pool.call("echo", {"value": 1}, timeout=20) == 1
    assert (pool.stats().running, pool.stats().cancelled) == (0, 1)


@pytest.mark.parametrize("method", ["acall", "arun"])
def test_asyncio_run_that_ends_with_work_in_it_gives_the_worker_back(pool, method):
    work = {"acall": ("nap", {"seconds": 30.0}), "arun": ("import time; time.sleep(30)",)}

    async def main() -> asyncio.Task:
        task = asyncio.create_task(getattr(pool, method)(*work[method]))
        await asyncio.sleep(0.5)
        return task

    task = asyncio.run(main())

    assert task.cancelled()
    assert pool.call("whoami", timeout=5)["worker"] == "default-1.1"
    assert pool.stats().cancelled == 1


def test_a_call_that_runs_when_the_pool_ends_says_that_it_ended(pool):
    threading.Timer(0.3, pool.terminate).start()

    with pytest.raises(PoolClosed, match="it was shut down"):
        pool.call("nap", {"seconds": 30.0})


def test_a_coroutine_that_cancels_itself_has_failed_and_was_not_interrupted(pool):
    @pool.tool
    async def give_up():
        import asyncio

        raise asyncio.CancelledError

    with pytest.raises(ToolError) as caught:
        pool.call("give_up")

    assert caught.value.type_name == "CancelledError"
    assert pool.stats().error == 1
