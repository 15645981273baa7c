"""Functions of the notebook that workers call."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import snakepit_kernel
from snakepit_kernel import (
    Adapter,
    CallTimeout,
    InvalidArguments,
    Pool,
    PoolClosed,
    ToolError,
    ToolNotFound,
    WorkerBusy,
    WorkerDied,
    tool,
)


class Desk(Adapter):
    """Each of its tools calls back in a way of its own."""

    @tool
    def ask(self, name: str, arguments: dict) -> Any:
        return self.context.call_host_tool(name, arguments)

    @tool
    def ask_by_attribute(self, name: str, arguments: dict) -> Any:
        return getattr(self.context.host_tools, name)(**arguments)

    @tool
    async def ask_async(self, name: str, arguments: dict) -> Any:
        return await self.context.acall_host_tool(name, arguments)

    @tool
    async def ask_from_async(self, name: str, arguments: dict) -> Any:
        return self.context.call_host_tool(name, arguments)

    @tool
    def ask_in_own_loop(self, name: str, arguments: dict) -> Any:
        return asyncio.run(self.context.acall_host_tool(name, arguments))

    @tool
    def ask_in_thread(self, name: str, arguments: dict) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as threads:
            return threads.submit(self.context.call_host_tool, name, arguments).result()

    @tool
    def ask_in_loop_of_thread(self, name: str, arguments: dict) -> Any:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as threads:
            waiting = self.context.acall_host_tool(name, arguments)
            return threads.submit(asyncio.run, waiting).result()

    @tool
    def square(self, x: int) -> int:
        return x * x

    @tool
    async def square_async(self, x: int) -> int:
        await asyncio.sleep(0)
        return x * x

    @tool
    def count(self, n: int):
        yield from range(n)

    @tool
    def whoami(self) -> dict:
        return {"pid": os.getpid(), "worker": self.context.worker}

    @tool
    def descend(self, depth: int) -> int:
        return 0 if not depth else 1 + self.context.host_tools.descend(depth=depth - 1)

    @tool
    async def descend_async(self, depth: int) -> int:
        if not depth:
            return 0
        below = await self.context.acall_host_tool("descend_async", {"depth": depth - 1})
        return 1 + below


for _item in (Desk, *filter(inspect.isfunction, vars(Desk).values())):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


@pytest.fixture(scope="module")
def pools(open_for_all: Callable[..., Pool]) -> dict[int, Pool]:
    return {workers: open_for_all(workers, adapter=Desk) for workers in (1, 2)}


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def pool(pools: dict[int, Pool], request: pytest.FixtureRequest) -> Iterator[Pool]:
    pool = pools[request.param]
    died = pool.stats().died
    yield pool
    pool._engine.host_tools._tools.clear()
    stats = pool.stats()
    assert (stats.running, stats.queued, stats.died) == (0, 0, died)
    outcomes = (stats.ok, stats.error, stats.cancelled, stats.timeout, stats.saturated, stats.lost)
    assert stats.submitted == sum(outcomes)


@pytest.fixture
def one(pools: dict[int, Pool]) -> Iterator[Pool]:
    yield pools[1]
    pools[1]._engine.host_tools._tools.clear()


def by_call(pool: Any, name: str, arguments: dict, timeout: float = 10) -> Any:
    return pool.call(name, arguments, timeout=timeout)


def by_call_in_a_coroutine(pool: Any, name: str, arguments: dict) -> Any:
    async def main() -> Any:
        return pool.call(name, arguments, timeout=10)

    return asyncio.run(main())


def by_acall(pool: Any, name: str, arguments: dict, timeout: float = 10) -> Any:
    return asyncio.run(pool.acall(name, arguments, timeout=timeout))


def by_call_in_a_thread(pool: Any, name: str, arguments: dict) -> Any:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(pool.call(name, arguments, timeout=10)))
    thread.start()
    thread.join()
    return got[0]


WAYS_IN = [by_call, by_call_in_a_coroutine, by_acall, by_call_in_a_thread]
ASKING = [
    "ask",
    "ask_by_attribute",
    "ask_async",
    "ask_from_async",
    "ask_in_own_loop",
    "ask_in_thread",
    "ask_in_loop_of_thread",
]


# -- ways to call one ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: way.__name__)
@pytest.mark.parametrize("asking", ASKING)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_host_tool_is_called_from_any_code_and_by_any_way(one, way, asking, is_async):
    @one.host_tool
    def plain(x: int, y: int = 1) -> int:
        return 10 * x + y

    @one.host_tool
    async def awaited(x: int, y: int = 1) -> int:
        await asyncio.sleep(0)
        return 10 * x + y

    name = "awaited" if is_async else "plain"
    assert way(one, asking, {"name": name, "arguments": {"x": 4}}) == 41


@pytest.mark.parametrize("asking", ["ask", "ask_async"])
def test_a_host_tool_whose_name_looks_like_python_s_own_is_called_like_any_other(one, asking):
    one.host_tool(lambda_named("__session__"))

    found = one.session("s").call(asking, {"name": "__session__", "arguments": {}})

    assert found == "__session__"


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: way.__name__)
@pytest.mark.parametrize("asking", ["ask", "ask_async", "ask_from_async", "ask_in_own_loop"])
@pytest.mark.parametrize("inner", ["square", "square_async"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_host_tool_calls_a_tool_also_of_the_worker_that_waits(pool, way, asking, inner, is_async):
    """Acceptance case 44."""

    @pool.host_tool
    def plain(x: int) -> int:
        return pool.call(inner, {"x": x})

    @pool.host_tool
    async def awaited(x: int) -> int:
        return await pool.acall(inner, {"x": x})

    name = "awaited" if is_async else "plain"
    assert way(pool, asking, {"name": name, "arguments": {"x": 5}}) == 25


def test_calls_go_back_and_forth_to_any_depth(pool):
    @pool.host_tool
    def descend(depth: int) -> int:
        return 0 if not depth else 1 + pool.call("descend", {"depth": depth - 1})

    @pool.host_tool
    async def descend_async(depth: int) -> int:
        return 0 if not depth else 1 + await pool.acall("descend_async", {"depth": depth - 1})

    assert pool.call("descend", {"depth": 24}, timeout=10) == 24
    assert asyncio.run(pool.acall("descend_async", {"depth": 24}, timeout=10)) == 24
    assert pool.call("descend_async", {"depth": 6}, timeout=10) == 6
    assert asyncio.run(pool.acall("descend", {"depth": 6}, timeout=10)) == 6


def test_a_chain_that_is_deeper_than_python_allows_is_an_error_and_no_more(one):
    @one.host_tool
    def descend(depth: int) -> int:
        return 0 if not depth else 1 + one.call("descend", {"depth": depth - 1})

    def at(depth: int) -> None:
        at(depth - 1) if depth else one.call("descend", {"depth": 500}, timeout=20)

    died = one.stats().died
    for depth in range(10):  # so that it ends at another line of ours each time
        with pytest.raises(ToolError, match="RecursionError|maximum recursion depth"):
            at(depth)

    assert one.call("square", {"x": 3}, timeout=5) == 9
    assert one.stats().died == died


def test_a_host_tool_runs_in_the_thread_that_called_the_tool(one):
    @one.host_tool
    def where() -> int:
        return threading.get_ident()

    assert one.call("ask", {"name": "where", "arguments": {}}) == threading.get_ident()
    assert by_acall(one, "ask", {"name": "where", "arguments": {}}) == threading.get_ident()


def test_functions_that_are_submitted_call_host_tools_and_their_host_tools_call_tools(pool):
    seen: list[int] = []

    @pool.host_tool
    def note(x: int) -> int:
        seen.append(threading.get_ident())
        return pool.call("square", {"x": x})

    @pool.host_tool
    async def anote(x: int) -> int:
        return await pool.acall("square", {"x": x})

    def work(name: str) -> int:
        from snakepit_kernel import context

        return context().call_host_tool(name, {"x": 6})

    assert pool.submit(work, "note").result(10) == 36
    assert pool.submit(work, "anote").result(10) == 36
    assert seen
    assert seen[0] != threading.get_ident()


def test_cells_call_host_tools_which_call_tools(pool):
    @pool.host_tool
    def note(x: int) -> int:
        return pool.call("square", {"x": x})

    code = "import snakepit_kernel\nsnakepit_kernel.context().call_host_tool('note', {'x': 7})"
    awaiting = (
        "import snakepit_kernel\nawait snakepit_kernel.context().acall_host_tool('note', {'x': 8})"
    )
    assert pool.run(code, timeout=10).value == 49
    assert pool.run(awaiting, timeout=10).value == 64
    assert asyncio.run(pool.arun(code, timeout=10)).value == 49


def test_the_host_tools_of_a_worker_are_listed_and_complete_by_tab(one):
    one.host_tool(lambda_named("alpha"))
    one.session("s").host_tool(lambda_named("beta"))

    def names() -> tuple[list[str], list[str]]:
        from snakepit_kernel import context

        return list(context().host_tools), dir(context().host_tools)

    assert one.submit(names).result() == (["alpha"], ["alpha"])
    assert one.session("s").submit(names).result() == (["alpha", "beta"], ["alpha", "beta"])


def lambda_named(name: str) -> Callable[..., str]:
    def function() -> str:
        return name

    function.__name__ = name
    return function


def test_a_session_has_its_own_host_tools_which_come_first_and_others_do_not_see(one):
    @one.host_tool
    def who() -> str:
        return "pool"

    @one.session("a").host_tool
    def who() -> str:
        return "a"

    @one.session("a").host_tool
    def only() -> str:
        return "only a"

    who_is = {"name": "who", "arguments": {}}
    assert one.session("a").call("ask", who_is) == "a"
    assert one.session("b").call("ask", who_is) == "pool"
    assert one.call("ask", who_is) == "pool"
    assert one.session("a").call("ask", {"name": "only", "arguments": {}}) == "only a"
    with pytest.raises(ToolError, match="ToolNotFound: there is no tool 'only'"):
        one.session("b").call("ask", {"name": "only", "arguments": {}})


def test_hooks_of_an_adapter_call_host_tools(open_pool):
    class Hooked(Adapter):
        def initialize(self) -> None:
            self.begun = self.context.host_tools.note(what="begin")

        async def cleanup(self) -> None:
            await self.context.acall_host_tool("note", {"what": "end"})

        @tool
        def work(self) -> Any:
            return self.begun

        @tool
        def chunks(self) -> Any:
            for number in range(3):
                yield self.context.host_tools.note(what=number)

    pool = open_pool(adapter=Hooked)
    notes: list[Any] = []

    @pool.host_tool
    def note(what: Any) -> Any:
        notes.append(what)
        return what

    assert pool.call("work") == "begin"
    assert list(pool.stream("chunks", timeout=5)) == [0, 1, 2]
    assert notes == ["begin", "end", "begin", 0, 1, 2, "end"]


def test_eight_threads_of_a_tool_call_host_tools_at_once(pool):
    @pool.host_tool
    def square(x: int) -> int:
        return pool.call("square", {"x": x}) if x % 7 == 0 and pool.slots() == [1, 2] else x * x

    @pool.tool
    def many() -> list[int]:
        from concurrent.futures import ThreadPoolExecutor

        from snakepit_kernel import context

        here = context()
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda x: here.host_tools.square(x=x), range(400)))

    wanted = [x * x for x in range(400)]
    assert pool.call("many", timeout=20) == wanted
    assert by_acall(pool, "many", {}) == wanted


@pytest.mark.parametrize("way", [by_call, by_acall], ids=["call", "acall"])
def test_an_async_tool_makes_hundreds_of_host_calls_at_once_that_call_tools(pool, way):
    """They are not served each inside the one before: Python has a limit for that."""

    @pool.host_tool
    def nest(x: int) -> int:
        return pool.call("square", {"x": x})

    @pool.tool
    async def many(n: int) -> list[int]:
        import asyncio

        from snakepit_kernel import context

        here = context()
        return await asyncio.gather(*(here.acall_host_tool("nest", {"x": x}) for x in range(n)))

    assert way(pool, "many", {"n": 200}) == [x * x for x in range(200)]


def test_host_calls_at_once_are_served_side_by_side_when_they_await(one):
    barrier = asyncio.Barrier(5)

    @one.host_tool
    async def meet() -> None:
        async with asyncio.timeout(5):
            await barrier.wait()

    @one.tool
    async def many() -> int:
        import asyncio

        from snakepit_kernel import context

        here = context()
        return len(await asyncio.gather(*(here.acall_host_tool("meet") for _ in range(5))))

    assert by_acall(one, "many", {}) == 5


@pytest.mark.parametrize("inner", ["square", "square_async"])
def test_a_tool_is_run_for_a_tool_whose_thread_reads_the_answers(one, inner):
    """The thread must hand the nested call over to the main thread, which waits as well."""
    asked = asyncio.Event()

    @one.host_tool
    async def slow() -> str:
        asked.set()
        await asyncio.sleep(0.3)
        return "slow"

    @one.host_tool
    async def nest() -> int:
        await asked.wait()
        return await one.acall(inner, {"x": 3})

    @one.tool
    def outer() -> tuple[str, int]:
        from concurrent.futures import ThreadPoolExecutor

        from snakepit_kernel import context

        here = context()
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(here.host_tools.slow)
            nested = here.host_tools.nest()
            return slow.result(), nested

    assert by_acall(one, "outer", {}) == ("slow", 9)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("asking", ["ask", "ask_async"])
def test_an_exception_crosses_both_ways_with_type_note_and_both_tracebacks(pool, asking):
    @pool.host_tool
    def fail() -> None:
        error = ValueError("not here")
        error.add_note("ask elsewhere")
        raise error

    with pytest.raises(ToolError) as caught:
        pool.call(asking, {"name": "fail", "arguments": {}})

    error = caught.value
    assert error.type_name == "ToolError"
    assert "raise error" in str(error), "the notebook's traceback"
    assert f"in {asking}" in str(error), "the worker's traceback"
    assert "ask elsewhere" in str(error)
    assert isinstance(error.__cause__, ToolError)
    assert (error.__cause__.type_name, error.__cause__.place) == ("ValueError", "notebook")


def test_a_tool_can_catch_what_a_host_tool_raises_with_its_class_and_fields(one):
    class OutOfTea(Exception):
        def __init__(self, left: int) -> None:
            super().__init__(left)
            self.left = left

    @one.host_tool
    def fail() -> None:
        raise OutOfTea(3)

    @one.tool
    def outer() -> tuple:
        from snakepit_kernel import ToolError, context

        try:
            context().host_tools.fail()
        except ToolError as error:
            cause = error.__cause__
            return error.type_name, error.place, cause.left, isinstance(cause, OutOfTea)

    assert one.call("outer") == ("OutOfTea", "notebook", 3, True)


def test_the_text_of_an_error_grows_by_its_frames_when_it_goes_back_and_forth(one):
    @one.tool
    def fall(depth: int) -> None:
        from snakepit_kernel import context

        if not depth:
            raise ValueError("at the bottom")
        context().host_tools.fall(depth=depth - 1)

    @one.host_tool
    def fall(depth: int) -> None:
        one.call("fall", {"depth": depth})

    with pytest.raises(ToolError) as caught:
        one.call("fall", {"depth": 10}, timeout=10)

    text = str(caught.value)
    assert text.count("raise ValueError") == 1
    assert text.count("in fall\n") == 21, "each frame of both sides, once"
    assert len(text) < 50_000


@pytest.mark.parametrize("text", ["a\udc80b", "x" * 30_000_000], ids=["no Unicode", "huge"])
@pytest.mark.parametrize("side", ["tool", "host tool"])
def test_an_exception_with_a_text_that_no_message_holds_is_told_all_the_same(one, side, text):
    @one.host_tool
    def fail(text: str) -> None:
        raise ValueError(text)

    @one.tool
    def fail_there(text: str) -> None:
        raise ValueError(text)

    call = ("fail_there", {"text": text})
    if side == "host tool":
        call = ("ask", {"name": "fail", "arguments": {"text": text}})
    with pytest.raises(ToolError, match="ValueError"):
        one.call(*call, timeout=5)
    assert one.call("square", {"x": 2}, timeout=3) == 4


@pytest.mark.parametrize("text", ["a\udc80b", "x" * 20_000_000], ids=["no Unicode", "huge"])
def test_a_tool_can_print_what_no_message_holds(one, text, capsys):
    @one.tool
    def say(text: str) -> None:
        print(text, end="")

    one.call("say", {"text": text}, timeout=5)

    shown = text.encode("utf-8", "backslashreplace").decode()
    assert capsys.readouterr().out == shown


def test_an_unknown_host_tool_is_named_with_the_nearest_known_one(one):
    @one.host_tool
    def price() -> int:
        return 1

    @one.tool
    def outer() -> str:
        from snakepit_kernel import ToolNotFound, context

        try:
            context().host_tools.prize()
        except ToolNotFound as error:
            return str(error)
        return "found"

    assert one.call("outer") == "there is no tool 'prize'; did you mean 'price'?"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"x": "one"}, "argument 'x': Expected `int`, got `str`"),
        ({}, "missing argument 'x'"),
        ({"x": 1, "colour": 2}, "unknown argument 'colour'"),
    ],
)
def test_wrong_arguments_of_a_host_tool_are_named_and_it_does_not_run(one, arguments, said):
    ran: list[int] = []

    @one.host_tool
    def note(x: int) -> None:
        ran.append(x)

    with pytest.raises(ToolError) as caught:
        one.call("ask", {"name": "note", "arguments": arguments})

    assert isinstance(caught.value.__cause__, InvalidArguments)
    assert said in str(caught.value)
    assert ran == []


@pytest.mark.parametrize("asking", ["call", "acall"])
def test_an_argument_that_cannot_travel_to_the_notebook_is_named(one, asking):
    one.host_tool(lambda_named("note"))

    @one.tool
    async def outer(asking: str) -> None:
        import threading

        from snakepit_kernel import context

        arguments = {"good": 1, "bad": threading.Lock()}
        if asking == "call":
            context().call_host_tool("note", arguments)
        else:
            await context().acall_host_tool("note", arguments)

    with pytest.raises(ToolError, match="argument 'bad' of host tool 'note' cannot travel"):
        one.call("outer", {"asking": asking})


def test_what_cannot_be_a_host_tool_is_refused(one):
    with pytest.raises(TypeError, match="a host tool is a function, not int"):
        one.host_tool(3)
    with pytest.raises(TypeError, match="host tools return one value"):

        @one.host_tool
        def chunks() -> Any:
            yield 1


def test_a_host_call_of_a_thread_that_a_call_left_behind_is_refused(one):
    one.host_tool(lambda_named("note"))

    @one.tool
    def leave() -> None:
        import threading

        from snakepit_kernel import context

        here, go = context(), threading.Event()

        def later() -> None:
            go.wait()
            try:
                here.host_tools.note()
            except BaseException as error:
                later.said = repr(error)

        here.__class__.left = thread = threading.Thread(target=later)
        thread.go, thread.later = go, later
        thread.start()

    @one.tool
    def look() -> str:
        from snakepit_kernel import context

        thread = context().__class__.__dict__["left"]
        thread.go.set()
        thread.join(5)
        return thread.later.said

    one.call("leave")
    said = one.call("look")
    assert "RuntimeError" in said
    assert "cannot be called any more" in said


@pytest.mark.parametrize("way", [by_acall, by_call], ids=["acall", "call"])
def test_a_host_call_that_is_under_way_when_its_call_ends_fails_and_harms_no_other(one, way):
    """Its answer would come when the worker is somebody else's."""
    asked = threading.Event()

    @one.host_tool
    async def slow() -> bytes:
        asked.set()
        await asyncio.sleep(0.2)
        return b"x" * 500_000

    @one.tool
    def leave() -> None:
        import builtins
        import threading
        import time

        from snakepit_kernel import context

        here, said = context(), []

        def ask() -> None:
            try:
                said.append(here.host_tools.slow())
            except BaseException as error:
                said.append(repr(error))

        thread = threading.Thread(target=ask)
        builtins.left = thread, said
        thread.start()
        time.sleep(0.1)

    @one.tool
    def look() -> str:
        import builtins

        thread, said = builtins.left
        thread.join(5)
        return said[0]

    def go_on() -> None:
        for number in range(50):
            assert one.call("square", {"x": number}, timeout=5) == number * number

    if way is by_acall:

        async def main() -> None:
            await one.acall("leave", timeout=5)
            await asyncio.gather(asyncio.to_thread(go_on), asyncio.sleep(0.4))

        asyncio.run(main())
        assert "cannot be called any more" in one.call("look", timeout=6)
    else:
        one.call("leave", timeout=5)  # served before the answer of the call is read
        go_on()
    assert asked.is_set()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_host_tool_of_a_future_that_raises_what_is_no_exception_ends_the_future(one, kind):
    @one.host_tool
    def leave() -> None:
        raise kind

    def work() -> None:
        from snakepit_kernel import context

        context().host_tools.leave()

    with pytest.raises((ToolError, KeyboardInterrupt)):
        one.submit(work).result(5)
    assert one.call("square", {"x": 3}, timeout=5) == 9


# -- streams and other work inside -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: way.__name__)
def test_a_host_tool_takes_a_stream_also_of_the_worker_that_waits(pool, way):
    @pool.host_tool
    def total(n: int) -> int:
        return sum(pool.stream("count", {"n": n}))

    @pool.host_tool
    async def atotal(n: int) -> int:
        return sum([x async for x in pool.astream("count", {"n": n})])

    for name in ("total", "atotal"):
        assert way(pool, "ask", {"name": name, "arguments": {"n": 300}}) == sum(range(300))


@pytest.mark.parametrize("way", WAYS_IN, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", ["peek", "apeek"])
def test_a_stream_that_a_host_tool_leaves_unfinished_ends_with_it(pool, way, name):
    kept: list[Any] = []

    @pool.host_tool
    def peek() -> int:
        kept.append(pool.stream("count", {"n": 100_000}))
        return next(kept[-1])

    @pool.host_tool
    async def apeek() -> int:
        kept.append(pool.astream("count", {"n": 100_000}))
        return await anext(kept[-1])

    for _ in range(2):
        assert way(pool, "ask", {"name": name, "arguments": {}}) == 0
    assert pool.call("square", {"x": 2}, timeout=3) == 4


def test_a_stream_whose_generator_asks_between_its_chunks_is_served_by_who_takes_them(pool):
    @pool.host_tool
    def double(x: int) -> int:
        return 2 * pool.call("square", {"x": x})

    @pool.tool
    def doubled(n: int):
        from snakepit_kernel import context

        for number in range(n):
            yield context().host_tools.double(x=number)

    wanted = [2 * x * x for x in range(20)]
    assert list(pool.stream("doubled", {"n": 20}, timeout=5, buffer=1)) == wanted

    async def main() -> list[int]:
        return [x async for x in pool.astream("doubled", {"n": 20}, timeout=5)]

    assert asyncio.run(main()) == wanted


@pytest.mark.parametrize("work", ["a cell", "a future"])
def test_work_that_only_the_waiting_worker_could_do_is_refused_at_once(one, work):
    @one.host_tool
    def want() -> Any:
        return one.run("1").value if work == "a cell" else one.submit(pow, 2, 2).result(60)

    began = time.monotonic()
    with pytest.raises(ToolError, match="WorkerBusy") as caught:
        one.call("ask", {"name": "want", "arguments": {}}, timeout=60)

    assert time.monotonic() - began < 20
    assert "give the pool more workers" in str(caught.value)
    assert WorkerBusy.__name__ in str(caught.value.__cause__)
    assert one.stats().lost > 0


def test_a_cell_and_a_future_run_on_the_other_worker(pools):
    pool = pools[2]

    @pool.host_tool
    def want() -> tuple:
        return pool.run("20 + 1").value, pool.submit(pow, 2, 5).result(5)

    assert pool.call("ask", {"name": "want", "arguments": {}}, timeout=10) == (21, 32)


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["call", "acall"])
def test_the_deadline_of_the_call_bounds_what_its_host_tools_call(pool, way):
    @pool.tool
    def nap() -> None:
        import time

        time.sleep(30)

    errors: list[BaseException] = []

    @pool.host_tool
    def nest() -> None:
        try:
            pool.call("nap")
        except BaseException as error:
            errors.append(error)
            raise

    @pool.host_tool
    async def anest() -> None:
        try:
            await pool.acall("nap")
        except BaseException as error:
            errors.append(error)
            raise

    arguments = {"name": "nest" if way == "call" else "anest", "arguments": {}}
    run = by_call if way == "call" else by_acall
    began = time.monotonic()
    with pytest.raises(CallTimeout):
        run(pool, "ask", arguments, timeout=0.4)

    assert time.monotonic() - began < 10  # and not 30
    assert isinstance(errors[0], (CallTimeout, asyncio.CancelledError))
    assert pool.call("square", {"x": 2}, timeout=3) == 4


@pytest.mark.parametrize("nests", [False, True])
def test_ctrl_c_in_a_host_tool_ends_the_call_and_leaves_the_worker(pool, nests):
    pid = [pool.run("import os; os.getpid()", worker=n).value for n in pool.slots()]

    @pool.tool
    def nap() -> None:
        import time

        time.sleep(30)

    @pool.host_tool
    def stay() -> None:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        pool.call("nap") if nests else time.sleep(30)

    cancelled = pool.stats().cancelled
    with pytest.raises(KeyboardInterrupt):
        pool.call("ask", {"name": "stay", "arguments": {}})

    assert pool.call("square", {"x": 2}, timeout=3) == 4
    assert pool.stats().cancelled == cancelled + (2 if nests else 1)
    assert [pool.run("os.getpid()", worker=n).value for n in pool.slots()] == pid


def test_ctrl_c_at_a_script_that_serves_a_host_tool_leaves_the_worker(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, time
            from snakepit_kernel import Pool

            with Pool(1) as pool:
                pid = pool.submit(os.getpid).result()

                @pool.host_tool
                def stay():
                    print("ready", flush=True)
                    time.sleep(30)

                @pool.tool
                def ask():
                    from snakepit_kernel import context
                    context().host_tools.stay()

                try:
                    pool.call("ask")
                except KeyboardInterrupt:
                    stats = pool.stats()
                    print(stats.cancelled, stats.running, pool.submit(os.getpid).result() == pid)
        """)
    )
    child = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "1 0 True\n"
    assert child.wait(10) == 0


@pytest.mark.parametrize("way", ["call", "acall", "submit"])
def test_a_worker_that_dies_while_its_host_call_is_served_is_said_to_have_died(open_pool, way):
    pool = open_pool(adapter=Desk)

    @pool.host_tool
    def kill(pid: int) -> str:
        os.kill(pid, signal.SIGKILL)
        return "killed"

    @pool.tool
    def ask() -> None:
        import os

        from snakepit_kernel import context

        context().host_tools.kill(pid=os.getpid())

    def apply() -> None:
        import os

        from snakepit_kernel import context

        context().host_tools.kill(pid=os.getpid())

    ways = {
        "call": lambda: pool.call("ask", timeout=10),
        "acall": lambda: asyncio.run(pool.acall("ask", timeout=10)),
        "submit": lambda: pool.submit(apply).result(10),
    }
    with pytest.raises(WorkerDied, match="SIGKILL"):
        ways[way]()

    assert pool.call("square", {"x": 2}, timeout=10) == 4


@pytest.mark.parametrize("way", ["call", "acall", "submit"])
def test_a_host_tool_can_end_its_pool(open_pool, way):
    pool = open_pool(adapter=Desk)

    @pool.host_tool
    def end() -> None:
        pool.terminate()

    def apply() -> None:
        from snakepit_kernel import context

        context().host_tools.end()

    ways = {
        "call": lambda: by_call(pool, "ask", {"name": "end", "arguments": {}}),
        "acall": lambda: by_acall(pool, "ask", {"name": "end", "arguments": {}}),
        "submit": lambda: pool.submit(apply).result(10),
    }
    with pytest.raises(PoolClosed, match="it was shut down"):
        ways[way]()


@pytest.mark.parametrize("way", ["call", "acall", "submit"])
def test_a_host_tool_that_shuts_its_pool_down_does_not_wait_for_itself(open_pool, way):
    pool = open_pool(adapter=Desk)

    @pool.host_tool
    def end() -> int:
        pool.shutdown()
        return pool.call("square", {"x": 4})  # belongs to what was accepted before

    def apply() -> int:
        from snakepit_kernel import context

        return context().host_tools.end()

    if way == "call":
        value = pool.call("ask", {"name": "end", "arguments": {}}, timeout=10)
    elif way == "acall":
        value = asyncio.run(pool.acall("ask", {"name": "end", "arguments": {}}, timeout=10))
    else:
        value = pool.submit(apply).result(10)
    assert value == 16
    with pytest.raises(PoolClosed):
        pool.call("square", {"x": 4})


def test_shutdown_waits_for_a_call_whose_host_tool_runs(open_pool):
    pool = open_pool(adapter=Desk)
    runs, go = threading.Event(), threading.Event()

    @pool.host_tool
    def stay() -> int:
        runs.set()
        go.wait(5)
        return pool.call("square", {"x": 3})

    got: list[Any] = []
    caller = threading.Thread(
        target=lambda: got.append(pool.call("ask", {"name": "stay", "arguments": {}}))
    )
    caller.start()
    assert runs.wait(5)
    ending = threading.Thread(target=pool.shutdown)
    ending.start()
    while pool.is_open:
        time.sleep(0.005)
    go.set()
    ending.join(10)
    caller.join(10)

    assert got == [9]


def test_cancelling_the_task_of_a_call_cancels_its_host_tool(one):
    ends: list[str] = []

    @one.host_tool
    async def stay() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def main() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await one.acall("ask", {"name": "stay", "arguments": {}})

    asyncio.run(main())
    assert ends == ["cancelled"]
    assert one.call("square", {"x": 2}, timeout=3) == 4


def test_a_future_that_is_cancelled_while_its_host_tool_runs_frees_the_worker_at_once(one):
    runs, go = threading.Event(), threading.Event()

    @one.host_tool
    def stay() -> bytes:
        runs.set()
        go.wait(5)
        return b"x" * 1_000_000

    def work() -> None:
        from snakepit_kernel import context

        context().host_tools.stay()

    pid = one.submit(os.getpid).result()
    future = one.submit(work)
    assert runs.wait(5)
    assert future.cancel()
    assert one.submit(os.getpid).result(2) == pid
    go.set()
    for number in range(50):
        assert one.call("square", {"x": number}, timeout=5) == number * number


def test_context_is_for_workers_only():
    with pytest.raises(RuntimeError, match="this is neither"):
        snakepit_kernel.context()


def test_a_host_tool_that_is_not_found_is_a_lookup_error():
    assert issubclass(ToolNotFound, LookupError)
