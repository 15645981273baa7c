"""Workers that die, hang or fail, and what a pool does about it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snakepit_kernel import (
    Adapter,
    BreakerOpen,
    CallTimeout,
    PoolDegraded,
    PoolSaturated,
    QueueTimeout,
    ToolError,
    WorkerDied,
    tool,
)
from snakepit_kernel.lane.owner_end import OwnerLane

FRAGILE = '''
import ctypes, os, signal, time
from pathlib import Path
from snakepit_kernel import Adapter, tool

class Fragile(Adapter):
    """Tools that count how often they were begun, in a file of that name."""

    def _begin(self, name):
        with open(name, "a") as file:
            file.write(f"{os.getpid()}\\n")
        return len(Path(name).read_text().split())

    @tool(idempotent=True)
    def crash(self, name: str, times: int) -> int:
        count = self._begin(name)
        if count <= times:
            ctypes.string_at(0)
        return os.getpid()

    @tool
    def crash_once(self, name: str) -> int:
        if self._begin(name) == 1:
            ctypes.string_at(0)
        return os.getpid()

    @tool(idempotent=True)
    def stream_and_crash(self, name: str, after: int):
        count = self._begin(name)
        for number in range(5):
            if count == 1 and number == after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    @tool(idempotent=True)
    def flaky(self, name: str, times: int, kind: str = "ConnectionError") -> int:
        count = self._begin(name)
        if count <= times:
            raise {"ConnectionError": ConnectionError, "ValueError": ValueError}[kind](name)
        return count

    @tool(idempotent=True)
    def slow_once(self, name: str) -> str:
        if self._begin(name) == 1:
            time.sleep(30)
        return "done"

    @tool
    def fail(self):
        raise RuntimeError("broken")

    @tool
    def well(self) -> int:
        return os.getpid()

    @tool
    def hold(self, seconds: float):
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # with the GIL

    @tool
    def ruin(self):
        raise AcceleratorError("device-side assert")

class AcceleratorError(Exception): pass
'''


class Calm(Adapter):
    thread_safe = True

    @tool
    def well(self) -> int:
        return 1


for _item in (Calm, Calm.well):
    _item.__module__ = "__main__"  # by value: this module is no module of the workers


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.chdir(tmp_path)
    return "fragile:Fragile"


def begun(name: str) -> int:
    return len(Path(name).read_text().split())


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.02)


# -- crash barrier ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", ["call", "acall"])
def test_an_idempotent_call_whose_worker_dies_succeeds_on_another(fragile, open_pool, workers, way):
    """Acceptance case 27."""
    pool = open_pool(workers, adapter=fragile)
    arguments = {"name": "log", "times": 1}
    if way == "call":
        pid = pool.call("crash", arguments, timeout=20)
    else:
        pid = asyncio.run(pool.acall("crash", arguments, timeout=20))

    assert begun("log") == 2
    assert (
        pid == int(Path("log").read_text().split()[-1]) != int(Path("log").read_text().split()[0])
    )
    stats = pool.stats()
    assert (stats.submitted, stats.ok, stats.lost, stats.retried) == (1, 1, 0, 1)


def test_it_is_made_again_once_and_the_error_tells_of_both(fragile, open_pool):
    pool = open_pool(2, adapter=fragile)

    with pytest.raises(WorkerDied, match="SIGSEGV") as caught:
        pool.session("night").call("crash", {"name": "log", "times": 9}, timeout=20)

    assert begun("log") == 2
    details = caught.value.details
    assert [attempt.category for attempt in details.attempts] == ["died"]
    assert "SIGSEGV" in details.attempts[0].reason
    assert details.attempts[0].worker != details.worker == caught.value.worker
    assert (details.pool, details.session, details.call) == ("default", "night", "crash")
    assert details.pid == int(Path("log").read_text().split()[1])
    assert "its last output:\nFatal Python error: Segmentation fault" in str(caught.value)
    (note,) = caught.value.__notes__
    assert "session 'night'" in note
    assert f"(pid {details.pid})" in note
    assert "attempt 1 failed on default-" in note


def test_another_call_is_not_made_again(fragile, open_pool):
    """Acceptance case 28."""
    pool = open_pool(2, adapter=fragile)

    with pytest.raises(WorkerDied, match="SIGSEGV") as caught:
        pool.call("crash_once", {"name": "log"}, timeout=20)

    assert begun("log") == 1
    assert caught.value.status == -signal.SIGSEGV
    assert caught.value.details.attempts == ()
    assert "a tool may be if it says @tool(idempotent=True)" in caught.value.__notes__[0]
    assert pool.stats().retried == 0


def test_a_function_and_a_cell_are_not_made_again(open_pool):
    pool = open_pool(1)

    with pytest.raises(WorkerDied):
        pool.submit(os._exit, 3).result(timeout=20)
    with pytest.raises(WorkerDied):
        pool.run("import os; os._exit(3)", timeout=20)
    assert pool.stats().retried == 0


def test_without_a_crash_barrier_nothing_is_made_again(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, crash_barrier=None)

    with pytest.raises(WorkerDied):
        pool.call("crash", {"name": "log", "times": 1}, timeout=20)
    assert begun("log") == 1


@pytest.mark.parametrize(("after", "chunks"), [(0, [0, 1, 2, 3, 4]), (2, [0, 1])])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_is_made_again_only_before_its_first_chunk(
    fragile, open_pool, after, chunks, is_async
):
    pool = open_pool(1, adapter=fragile)
    taken = []

    async def take() -> None:
        async for chunk in pool.astream("stream_and_crash", {"name": "log", "after": after}):
            taken.append(chunk)

    try:
        if is_async:
            asyncio.run(take())
        else:
            for chunk in pool.stream("stream_and_crash", {"name": "log", "after": after}):
                taken.append(chunk)
    except WorkerDied:
        assert after
    else:
        assert not after

    assert taken == chunks
    assert begun("log") == (2 if after == 0 else 1)
    stats = pool.stats()
    assert stats.ok + stats.lost == stats.submitted == 1


@pytest.mark.parametrize("moment", ["waits", "looks"])
def test_chunks_that_came_before_the_death_are_given_to_an_event_loop_that_is_late(
    fragile, open_pool, monkeypatch, moment
):
    pool = open_pool(1, adapter=fragile)
    taken = []
    if moment == "looks":  # as where the system has others run first
        look = OwnerLane._spin
        monkeypatch.setattr(OwnerLane, "_spin", lambda lane: time.sleep(0.5) or look(lane))

    async def take() -> None:
        async for chunk in pool.astream("stream_and_crash", {"name": "log", "after": 2}):
            taken.append(chunk)

    async def main() -> None:
        task = asyncio.create_task(take())
        if moment == "waits":
            while not Path("log").exists():  # as soon as it has begun there
                await asyncio.sleep(0)
            time.sleep(0.5)  # chunks and the end are there when the loop looks again
        await task

    with pytest.raises(WorkerDied):
        asyncio.run(main())
    assert taken == [0, 1]
    assert begun("log") == 1


# -- retry -----------------------------------------------------------------------------------------


def test_a_call_is_made_again_for_the_errors_that_are_named(fragile, open_pool):
    retry = {"attempts": 3, "backoff": [0.01], "on": ["ConnectionError"]}
    pool = open_pool(1, adapter=fragile, retry=retry)

    assert pool.call("flaky", {"name": "a", "times": 2}) == 3
    with pytest.raises(ToolError, match="ConnectionError") as caught:
        pool.call("flaky", {"name": "b", "times": 9})
    with pytest.raises(ToolError, match="ValueError"):
        pool.call("flaky", {"name": "c", "times": 1, "kind": "ValueError"})
    with pytest.raises(ToolError, match="RuntimeError"):
        pool.call("fail")

    assert (begun("b"), begun("c")) == (3, 1)
    assert [attempt.category for attempt in caught.value.details.attempts] == ["tool", "tool"]
    assert "attempt 2 failed on default-1.1" in str(caught.value)
    stats = pool.stats()
    assert (stats.ok, stats.error, stats.submitted, stats.retried) == (1, 3, 4, 4)


def test_a_call_that_took_too_long_is_made_again_only_while_there_is_time(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, retry=True)

    with pytest.raises(CallTimeout):  # the deadline is that of all attempts together
        pool.call("slow_once", {"name": "log"}, timeout=0.3)
    assert begun("log") == 1


def test_what_found_no_room_in_the_queue_may_try_again(fragile, open_pool):
    pool = open_pool(
        1, adapter=fragile, max_queue=0, retry={"attempts": 50, "backoff": 0.05, "on": ["queue"]}
    )
    running = pool.submit(time.sleep, 0.5)
    wait_until(running.running)

    assert pool.call("well", timeout=20)

    stats = pool.stats()
    assert stats.saturated == 0
    assert stats.retried >= 2


def test_ctrl_c_ends_the_pause_before_another_attempt(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, retry={"backoff": [60.0], "on": ["tool"]})
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        pool.call("flaky", {"name": "log", "times": 1})

    stats = pool.stats()
    assert (stats.cancelled, stats.submitted, stats.running) == (1, 1, 0)
    assert pool.call("well")


# -- breaker ---------------------------------------------------------------------------------------


def test_a_pool_that_fails_again_and_again_refuses_work_for_a_while(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, breaker={"failures": 3, "seconds": 2.0})
    for _ in range(3):
        with pytest.raises(ToolError):
            pool.call("fail")

    with pytest.raises(BreakerOpen, match="3 calls failed one after the other.*broken") as caught:
        pool.call("well")
    with pytest.raises(BreakerOpen):
        pool.submit(pow, 2, 2)
    assert 0 < caught.value.seconds <= 2.0
    assert "its breaker is open" in pool.status().problem

    time.sleep(caught.value.seconds)
    assert pool.call("well")
    assert pool.submit(pow, 2, 2).result() == 4
    stats = pool.stats()
    assert (stats.error, stats.lost, stats.ok) == (3, 2, 2)


def test_another_pool_is_not_concerned(fragile, open_pool):
    broken = open_pool(1, adapter=fragile, name="broken", breaker={"failures": 1})
    well = open_pool(1, adapter=fragile, name="well", breaker={"failures": 1})
    with pytest.raises(ToolError):
        broken.call("fail")
    with pytest.raises(BreakerOpen, match="pool 'broken'"):
        broken.call("well")

    assert well.call("well")


# -- taint -----------------------------------------------------------------------------------------


def test_a_worker_that_an_error_left_unusable_gets_no_more_work(fragile, open_pool):
    pool = open_pool(1, adapter=fragile)
    before = pool.call("well")

    with pytest.raises(ToolError, match="device-side assert"):
        pool.call("ruin")

    assert pool.call("well", timeout=20) != before, "the incarnation is tainted, not the slot"
    assert pool.slots() == [1]
    wait_until(lambda: pool.status().ends)
    assert "tainted by AcceleratorError: device-side assert" in pool.status().ends[0].reason


@pytest.mark.parametrize("way", ["submit", "run", "thread"])
def test_a_future_a_cell_and_a_thread_leave_a_worker_unusable_as_well(open_pool, way):
    options = {"adapter": Calm, "profile": "thread", "threads_per_worker": 2}
    barrier = {"taint_on": "ZeroDivisionError"}
    pool = open_pool(1, crash_barrier=barrier, **(options if way == "thread" else {}))
    before = pool.status().workers[0].pid

    if way == "run":
        assert not pool.run("1 / 0").ok
    else:
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()

    wait_until(lambda: pool.stats().recycled == 1)
    assert pool.submit(os.getpid).result(timeout=20) != before


# -- degraded pools --------------------------------------------------------------------------------


def test_a_worker_that_dies_at_each_start_degrades_the_pool_without_a_tight_loop(
    fragile, open_pool
):
    """Acceptance case 30."""
    pool = open_pool(2, adapter=fragile)
    Path("fragile.py").write_text("import os; os._exit(9)")
    for worker in pool.status().workers:
        os.kill(worker.pid, signal.SIGKILL)

    wait_until(lambda: not pool.slots())
    with pytest.raises(PoolDegraded, match="exited with status 9") as caught:
        pool.call("well")
    assert caught.value.pool == "default"
    assert "degraded" in pool.status().problem
    started = pool.stats().started
    time.sleep(3)
    assert pool.stats().started - started <= 6, "two a second at most, and fewer and fewer"


def test_a_degraded_pool_heals_when_the_cause_is_gone(fragile, open_pool):
    pool = open_pool(2, adapter=fragile)
    source = Path("fragile.py").read_text()
    Path("fragile.py").write_text("import os; os._exit(9)")
    for worker in pool.status().workers:
        os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not pool.slots())

    Path("fragile.py").write_text(source)

    wait_until(lambda: len(pool.slots()) == 2 and not pool.status().problem)
    assert pool.call("well")


def test_workers_that_die_of_their_first_call_are_restarted_with_pauses(fragile, open_pool):
    pool = open_pool(1, adapter=fragile)
    outcomes = []
    end = time.monotonic() + 3
    while time.monotonic() < end:
        try:
            pool.submit(os._exit, 1).result(timeout=20)
        except (WorkerDied, PoolDegraded) as error:
            outcomes.append(type(error))

    assert outcomes[:4] == [WorkerDied] * 4
    assert PoolDegraded in outcomes
    assert pool.stats().started <= 8
    wait_until(pool.slots)
    assert pool.call("well", timeout=20)


# -- liveness --------------------------------------------------------------------------------------

QUICK = {"interval": 0.1, "timeout": 0.4, "misses": 3}


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_stopped_worker_is_replaced_and_its_caller_is_told(
    fragile, open_pool, process_of, is_busy
):
    """Acceptance case 29."""
    pool = open_pool(1, adapter=fragile, heartbeat=QUICK)
    running = pool.submit(time.sleep, 60) if is_busy else None
    if running is not None:
        wait_until(running.running)
    worker = process_of(pool.status().workers[0].pid)

    os.kill(worker.pid, signal.SIGSTOP)

    assert worker.wait_gone(10)
    if running is not None:
        with pytest.raises(WorkerDied, match="gave no sign of life for .* heartbeats missed"):
            running.result(timeout=10)
    assert pool.call("well", timeout=20) != worker.pid
    wait_until(lambda: pool.status().ends)
    assert "heartbeats missed" in pool.status().ends[0].reason


def test_a_worker_that_holds_the_gil_is_busy_and_not_dead(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, heartbeat=QUICK)
    pid = pool.call("well")

    pool.call("hold", {"seconds": 2.0}, timeout=30)

    assert pool.call("well") == pid


def test_a_worker_that_was_stopped_for_a_moment_goes_on(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, heartbeat={"interval": 0.1, "timeout": 2.0, "misses": 3})
    pid = pool.call("well")

    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.6)

    assert pool.call("well") == pid


def test_a_pool_without_heartbeat_waits_for_a_stopped_worker(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, heartbeat=None)
    pid = pool.call("well")
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(pid, signal.SIGCONT)

    assert pool.call("well") == pid


@pytest.mark.parametrize("options", [{}, {"heartbeat": None}])
def test_a_worker_whose_main_thread_has_ended_is_replaced_and_its_caller_is_told(
    fragile, open_pool, options
):
    """Its process lives, and beats on in another thread; the call has no deadline."""
    pool = open_pool(1, adapter=fragile, **options)
    pid = pool.call("well")

    with pytest.raises(WorkerDied, match="lost its main thread"):
        pool.run("import ctypes; ctypes.CDLL(None).pthread_exit(0)")

    assert pool.call("well", timeout=20) != pid
    wait_until(lambda: pool.status().ends)
    assert "lost its main thread" in pool.status().ends[0].reason


def test_a_pool_whose_worker_has_lost_its_main_thread_ends(open_pool, process_of):
    pool = open_pool(1, grace=0.5)
    worker = process_of(pool.status().workers[0].pid)
    pool.submit(_end_main_thread)
    wait_until(lambda: worker.state == "Z")

    began = time.monotonic()
    pool.terminate()

    assert time.monotonic() - began < 5
    assert not worker.is_alive


def _end_main_thread() -> None:
    ctypes.CDLL(None).pthread_exit(0)


_end_main_thread.__module__ = "__main__"  # by value: this module is no module of the workers


# -- what errors tell ------------------------------------------------------------------------------


def test_every_failure_tells_of_its_call(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, max_queue=0, queue_timeout=0.1)
    running = pool.submit(time.sleep, 0.6)
    wait_until(running.running)
    with pytest.raises(PoolSaturated) as saturated:
        pool.session("s").call("well")
    running.result()
    with pytest.raises(CallTimeout) as late:
        pool.call("hold", {"seconds": 0.3}, timeout=0.1)
    with pytest.raises(ToolError) as failed:
        pool.call("fail")

    details = [caught.value.details for caught in (saturated, late, failed)]
    assert [each.call for each in details] == ["well", "hold", "fail"]
    assert [each.session for each in details] == ["s", None, None]
    assert [each.worker for each in details] == [None, "default-1.1", "default-1.1"]
    assert details[1].run_seconds >= 0.1
    assert all(each.correlation_id for each in details)
    assert "pool 'default', worker default-1.1 (pid" in str(failed.value)


def test_a_call_that_waited_in_vain_says_what_would_help(fragile, open_pool):
    pool = open_pool(1, adapter=fragile, queue_timeout=0.1)
    running = pool.submit(time.sleep, 0.6)
    wait_until(running.running)

    with pytest.raises(QueueTimeout, match="give the pool more workers") as caught:
        pool.call("well")

    assert caught.value.details.queue_seconds >= 0.1
    assert caught.value.details.worker is None
