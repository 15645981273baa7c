"""Workers that run several calls at the same time, each in a thread."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit_kernel import Adapter, CallTimeout, Pool, StartFailed, tool


class SharedRegion(Adapter):
    thread_safe = True

    @tool
    def meet(self, n: int) -> int:
        """Return when n calls are here."""
        import builtins
        import threading

        with builtins.__dict__.setdefault("snakepit_lock", threading.Lock()):
            barrier = builtins.__dict__.setdefault(f"snakepit_{n}", threading.Barrier(n))
        return barrier.wait(5)

    @tool
    def spin(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
        return "spun"

    @tool
    async def anap(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    @tool
    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    @tool
    def say(self, text: str, n: int) -> None:
        for number in range(n):
            print(text, number)
            time.sleep(0.001)

    @tool
    def count(self, n: int):
        yield from range(n)

    @tool
    def square(self, x: int) -> int:
        return x * x

    @tool
    def ask(self, x: int) -> int:
        print("before")
        value = self.context.host_tools.nest(x=x)
        print("after")
        return value

    @tool
    def whoami(self) -> tuple:
        return os.getpid(), threading.get_ident(), self.context.session_id


for _item in (SharedRegion, *filter(inspect.isfunction, vars(SharedRegion).values())):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


@pytest.fixture(scope="module")
def opened(open_for_all: Callable[..., Pool]) -> Pool:
    # On a busy machine a thread may wait for the interpreter for a second beside others that spin.
    return open_for_all(adapter=SharedRegion, profile="thread", threads_per_worker=4, grace=10.0)


@pytest.fixture
def pool(opened: Pool) -> Iterator[Pool]:
    died = opened.stats().died
    yield opened
    while (stats := opened.stats()).running:
        time.sleep(0.005)  # futures that were cancelled at the end of a test
    assert (stats.running, stats.queued, stats.died) == (0, 0, died)


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time; return what each gave, or raised."""
    got: list[Any] = [None] * len(functions)

    def run(number: int) -> None:
        try:
            got[number] = functions[number]()
        except BaseException as error:
            got[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return got


def test_four_calls_meet_at_a_barrier(pool):
    """Acceptance case 47."""
    assert sorted(together(*[lambda: pool.call("meet", {"n": 4})] * 4)) == [0, 1, 2, 3]

    async def main() -> list[int]:
        return await asyncio.gather(*(pool.acall("meet", {"n": 4}) for _ in range(4)))

    assert sorted(asyncio.run(main())) == [0, 1, 2, 3]


def test_an_adapter_that_does_not_say_that_it_is_safe_is_refused():
    class Unsafe(Adapter):
        @tool
        def work(self) -> int:
            return 1

    with pytest.raises(StartFailed, match="does not declare thread_safe = True"):
        Pool(1, adapter=Unsafe, profile="thread")


def test_the_output_of_calls_at_the_same_time_is_not_mixed_up(pool, monkeypatch):
    heard: dict[int, list[str]] = {}  # by the thread that called, which is where it is printed

    class Ear(io.StringIO):
        def write(self, text: str) -> int:
            heard.setdefault(threading.get_ident(), []).append(text)
            return len(text)

    def say(text: str) -> None:
        pool.call("say", {"text": text, "n": 40}, timeout=10.0)

    monkeypatch.setattr(sys, "stdout", Ear())
    assert together(*[lambda text=text: say(text) for text in "abcd"]) == [None] * 4
    monkeypatch.undo()
    said = sorted("".join(lines) for lines in heard.values())
    assert said == ["".join(f"{text} {n}\n" for n in range(40)) for text in "abcd"]


def test_what_a_tool_prints_after_a_call_inside_it_is_heard_too(pool, capsys):
    @pool.host_tool
    def nest(x: int) -> int:
        blockers = [pool.submit(time.sleep, 0.2) for _ in range(3)]
        for blocker in blockers:
            while not blocker.running():
                time.sleep(0.001)
        try:
            pool.call("say", {"text": "inner", "n": 1})
            return pool.call("square", {"x": x})
        finally:
            for blocker in blockers:
                blocker.result()

    assert pool.call("ask", {"x": 3}, timeout=5) == 9
    assert capsys.readouterr().out == "before\ninner 0\nafter\n"


@pytest.mark.parametrize("name", ["spin", "anap"])
@pytest.mark.parametrize("way", ["timeout", "task"])
def test_ending_one_of_four_calls_hits_that_one_only(pool, name, way):
    def end_one() -> None:
        if way == "timeout":
            with pytest.raises(CallTimeout):
                pool.call(name, {"seconds": 30.0}, timeout=0.2)
            return

        async def main() -> None:
            async with asyncio.timeout(0.2):
                await pool.acall(name, {"seconds": 30.0})

        with pytest.raises(TimeoutError):
            asyncio.run(main())

    others = [
        lambda: pool.call("spin", {"seconds": 0.5}),
        lambda: pool.call("anap", {"seconds": 0.5}),
        lambda: pool.call("sleep", {"seconds": 0.5}),
    ]
    assert together(end_one, *others) == [None, "spun", "rested", "slept"]


def test_cancelling_calls_at_any_moment_never_hits_another(pool):
    wrong = []

    def cancel_many() -> None:
        for number in range(40):
            future = pool.submit(_spin, 30.0)
            time.sleep(0.0005 * (number % 8))
            future.cancel()

    def call_many() -> None:
        for number in range(150):
            if pool.call("square", {"x": number}, timeout=10) != number * number:
                wrong.append(number)

    assert together(cancel_many, call_many, call_many) == [None] * 3
    assert wrong == []


def test_signals_that_come_while_one_is_handled_do_no_harm(pool):
    pid = pool.call("whoami")[0]
    end = time.monotonic() + 2.0

    def shoot() -> None:
        while time.monotonic() < end:
            os.kill(pid, signal.SIGINT)
            time.sleep(0.0003)

    def cancel() -> None:
        while time.monotonic() < end:
            futures = [pool.submit(_spin, 30.0) for _ in range(4)]
            time.sleep(0.003)
            for future in futures:
                future.cancel()

    assert together(shoot, shoot, cancel) == [None] * 3
    assert pool.call("whoami", timeout=5)[0] == pid


def _spin(seconds: float) -> None:
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


_spin.__module__ = "__main__"


def test_cells_run_beside_tools_and_an_end_of_one_does_not_hit_the_other(pool):
    code = "import time\nfor _ in range(10): time.sleep(0.05)\n'whole'"

    def late() -> None:
        with pytest.raises(CallTimeout):
            pool.call("spin", {"seconds": 30.0}, timeout=0.2)

    def late_cell() -> None:
        with pytest.raises(CallTimeout):
            pool.run("import time\nwhile True: time.sleep(0.01)", timeout=0.2)

    def cell() -> Any:
        return pool.run(code).value

    def call() -> Any:
        return pool.call("spin", {"seconds": 0.5})

    assert together(late, cell) == [None, "whole"]
    assert together(late_cell, call) == [None, "spun"]
    assert pool.run("6 * 7").value == 42


def test_tools_of_threads_call_back_and_are_called_back(pool):
    @pool.host_tool
    def nest(x: int) -> int:
        return pool.call("square", {"x": x})

    calls = [lambda x=x: pool.call("ask", {"x": x}, timeout=10) for x in range(8)]
    assert together(*calls) == [x * x for x in range(8)]


def test_streams_of_threads_are_taken_in_turn(pool):
    streams = [pool.stream("count", {"n": 200}) for _ in range(4)]

    assert list(zip(*streams, strict=True)) == [(n,) * 4 for n in range(200)]


def test_a_session_prefers_its_worker(open_pool):
    pool = open_pool(2, adapter=SharedRegion, profile="thread", threads_per_worker=2)
    session = pool.session("abc")
    home = session.call("whoami")
    assert home[2] == "abc"
    assert {session.call("whoami")[0] for _ in range(6)} == {home[0]}


def test_a_future_that_cannot_be_stopped_does_not_keep_its_worker(open_pool, tmp_path):
    """The worker ends when the calls beside it have ended."""
    pool = open_pool(workers=1, profile="thread", threads_per_worker=2, grace=0.2)
    before = pool.status().workers[0].name
    stuck = pool.submit(_never_end, str(tmp_path / "begun"))
    other = pool.submit(time.sleep, 1.0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    stuck.cancel()

    assert other.result(20) is None
    until = time.monotonic() + 20
    while pool.status().workers[0].name == before or pool.stats().running:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert pool.submit(pow, 2, 3).result(20) == 8


def _never_end(path: str) -> None:
    import contextlib
    import threading

    with open(path, "w"):
        pass
    lock = threading.Lock()
    lock.acquire()
    while True:  # an interrupt may come before it waits
        with contextlib.suppress(BaseException):
            lock.acquire()


_never_end.__module__ = "__main__"  # by value: this module is no module of the workers
