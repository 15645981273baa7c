"""What a pool and its workers tell of their work, and the id that goes with it."""

from __future__ import annotations

import asyncio
import inspect
import time

import pytest

from snakepit_kernel import (
    Adapter,
    CallTimeout,
    InvalidArguments,
    QueueTimeout,
    ToolError,
    WorkerDied,
    context,
    correlation_id,
    telemetry,
    tool,
)
from snakepit_kernel.telemetry import events


class Shop(Adapter):
    @tool
    def who(self) -> str:
        return self.context.correlation_id

    @tool
    def ask(self) -> list[str]:
        return [self.context.correlation_id, *self.context.call_host_tool("answer")]

    @tool
    def fail_at_host(self) -> str:
        try:
            self.context.call_host_tool("refuse")
        except ToolError as error:
            return error.correlation_id
        return "it did not fail"

    @tool
    def fail(self):
        raise KeyError(self.context.correlation_id)

    @tool
    def tell(self, name: str = "told", times: int = 1) -> str:
        for number in range(times):
            self.context.emit(name, number=number)
        return self.context.correlation_id

    @tool
    def tell_while_streaming(self, times: int):
        for number in range(times):
            self.context.emit("chunk", number=number)
            yield number

    @tool
    def nap(self, seconds: float):
        time.sleep(seconds)

    @tool
    def die(self):
        import os

        os._exit(3)

    @tool
    def nested_pool(self) -> list[str]:
        from snakepit_kernel import Pool

        with Pool(1) as pool:
            return [self.context.correlation_id, pool.submit(id_of_worker).result()]


for _item in (Shop, *filter(inspect.isfunction, vars(Shop).values())):
    _item.__module__ = "__main__"  # it travels by value, as from a notebook


def id_of_worker():
    return context().correlation_id


id_of_worker.__module__ = "__main__"


@pytest.fixture(autouse=True)
def fresh_hub(monkeypatch):
    """A hub that no other test has filled."""
    monkeypatch.setattr(events, "_hub", events.Hub())


@pytest.fixture
def pool(open_pool):
    return open_pool(adapter=Shop, name="shop")


@pytest.fixture
def got():
    taken = []
    with telemetry.subscribe(taken.append):
        yield taken


def named(got, name):
    assert telemetry.flush(10)
    return [event for event in got if event.name == name]


# -- events of the pool ----------------------------------------------------------------------------


def test_a_call_tells_how_it_went(pool, got):
    session = pool.session("mine")
    correlation = session.call("who")

    (event,) = named(got, "call")
    seconds = event.attributes["queue_seconds"], event.attributes["run_seconds"]
    assert {k: v for k, v in event.attributes.items() if not k.endswith("seconds")} == {
        "kind": "call",
        "tool": "who",
        "pool": "shop",
        "worker": "shop-1.1",
        "session": "mine",
        "outcome": "ok",
        "correlation_id": correlation,
    }
    assert event.seconds == pytest.approx(sum(seconds))
    assert min(seconds) >= 0
    assert 0 < event.seconds < 10


def test_streams_futures_cells_and_their_awaited_twins_tell_as_well(pool, got):
    async def await_all():
        await pool.acall("who")
        assert [chunk async for chunk in pool.astream("tell_while_streaming", {"times": 2})]
        assert (await pool.arun("1")).ok

    assert list(pool.stream("tell_while_streaming", {"times": 2})) == [0, 1]
    assert pool.submit(pow, 2, 3).result() == 8
    assert list(pool.map(abs, [1, 2])) == [1, 2]
    pool.run("1 / 0")
    asyncio.run(await_all())

    calls = [event.attributes for event in named(got, "call")]
    assert sorted((each["kind"], each["outcome"]) for each in calls) == [
        ("call", "ok"),
        ("cell", "error"),
        ("cell", "ok"),
        ("future", "ok"),
        ("future", "ok"),
        ("future", "ok"),
        ("stream", "ok"),
        ("stream", "ok"),
    ]
    assert len({each["correlation_id"] for each in calls}) == len(calls)


def test_the_wait_in_the_queue_is_told_from_the_run(pool, got):
    first = pool.submit(time.sleep, 0.3)
    pool.call("who")
    first.result()

    calls = {event.attributes["tool"]: event.attributes for event in named(got, "call")}
    napped, waited = calls["sleep"], calls["who"]
    assert napped["run_seconds"] >= 0.25 > napped["queue_seconds"]
    assert waited["queue_seconds"] > 0.1


def test_each_outcome_is_told(open_pool, got):
    pool = open_pool(adapter=Shop, name="shop", queue_timeout=0.1)
    with pytest.raises(ToolError):
        pool.call("fail")
    with pytest.raises(CallTimeout):
        pool.call("nap", {"seconds": 30}, timeout=0.2)
    running = pool.submit(time.sleep, 30)
    while not running.running():
        time.sleep(0.01)
    with pytest.raises(QueueTimeout):
        pool.call("who")
    running.cancel()
    with pytest.raises(WorkerDied):
        pool.session("s").call("die", timeout=60)
    pool._engine.wait_until_quiet()

    outcomes = sorted(event.attributes["outcome"] for event in named(got, "call"))
    assert outcomes == ["cancelled", "error", "lost", "timeout", "timeout"]
    stats = pool.stats()
    assert [getattr(stats, name) for name in dict.fromkeys(outcomes)] == [1, 1, 1, 2]


def test_host_calls_tell_as_well(pool, got):
    @pool.host_tool
    def answer():
        return [correlation_id()]

    @pool.host_tool
    async def refuse():
        raise KeyError

    found = pool.session("mine").call("ask")
    pool.call("fail_at_host")

    asked, refused = named(got, "host_call")
    assert asked.attributes == {
        "tool": "answer",
        "outcome": "ok",
        "pool": "shop",
        "worker": "shop-1.1",
        "session": "mine",
        "correlation_id": found[0],
    }
    assert asked.seconds > 0
    assert refused.attributes["outcome"] == "error"


def test_what_a_worker_does_with_its_session_tells_like_a_host_call(pool, got):
    session = pool.session("mine")
    session.variables.register("x", "integer", 1)

    found = session.run("import snakepit_kernel\nsnakepit_kernel.context().variables['x']")

    (told,) = named(got, "host_call")
    assert found.value == 1
    assert told.attributes["tool"] == "__session__"
    assert told.attributes["outcome"] == "ok"
    assert told.attributes["session"] == "mine"


def test_nothing_is_told_when_nobody_listens(pool):
    pool.call("tell")
    with telemetry.subscribe(print):
        pass
    assert telemetry.dropped() == 0


# -- one id ----------------------------------------------------------------------------------------


def test_one_id_goes_from_the_caller_through_workers_host_tools_nested_calls_events_and_errors(
    open_pool, got
):
    pool = open_pool(2, adapter=Shop, name="shop")
    seen = []

    @pool.host_tool
    def answer():
        nested = pool.call("tell")
        seen.append(correlation_id())
        with pytest.raises(ToolError) as caught:
            pool.call("fail")
        return [nested, seen[-1], caught.value.correlation_id, pool.submit(id_of_worker).result()]

    ids = pool.call("ask")

    assert len(ids) == 5
    assert set(ids) == {ids[0]} != {""}
    told = [e.attributes["correlation_id"] for e in [*named(got, "call"), *named(got, "told")]]
    assert told == [ids[0]] * 5
    assert correlation_id() == ""
    assert pool.call("who") != ids[0]


def test_an_error_has_the_id_of_its_call(pool):
    with pytest.raises(ToolError) as caught:
        pool.call("fail")
    assert caught.value.message == repr(caught.value.correlation_id)

    with pytest.raises(CallTimeout) as late:
        pool.call("nap", {"seconds": 30}, timeout=0.2)
    with pytest.raises(WorkerDied) as died:
        pool.call("die")
    assert len({caught.value.correlation_id, late.value.correlation_id, ""}) == 3
    assert died.value.correlation_id

    with pytest.raises(InvalidArguments) as refused:
        pool.call("nap", {"seconds": "x"})
    assert refused.value.correlation_id == ""  # there was no call


def test_an_error_of_a_host_tool_has_the_id_in_the_worker(pool):
    @pool.host_tool
    def refuse():
        pool.refused = correlation_id()
        raise KeyError

    assert pool.call("fail_at_host") == pool.refused != ""


def test_an_awaited_call_a_stream_and_a_future_have_one_too(pool):
    async def fail():
        with pytest.raises(ToolError) as caught:
            await pool.acall("fail")
        return caught.value

    error = asyncio.run(fail())
    assert error.message == repr(error.correlation_id)

    future = pool.submit(id_of_worker)
    assert future.result() == future.correlation_id != ""
    late = pool.session("s").submit(time.sleep, 30)
    while not late.running():  # or it would be cancelled
        time.sleep(0.01)
    pool.terminate()
    assert late.exception().correlation_id == late.correlation_id


def test_an_awaited_host_tool_knows_it(pool):
    @pool.host_tool
    async def answer():
        await asyncio.sleep(0)
        return [correlation_id(), await pool.acall("who")]

    async def ask_twice():
        return await asyncio.gather(pool.acall("ask"), pool.acall("ask"))

    first, second = asyncio.run(ask_twice())
    assert len(set(first)) == len(set(second)) == 1
    assert first != second


def test_each_cell_has_an_id_of_its_own(pool, got):
    code = "import snakepit_kernel as s; (s.context().correlation_id, s.correlation_id())"
    ids = [pool.run(code).value for _ in range(2)]
    ids += [pool.session("mine").run(code).value for _ in range(2)]

    assert [event.attributes["correlation_id"] for event in named(got, "call")] == [
        first for first, _ in ids
    ]
    assert len(set(ids)) == 4
    assert all(first == second != "" for first, second in ids)
    result = pool.run("1 / 0")
    assert result.error.correlation_id == named(got, "call")[-1].attributes["correlation_id"]


def test_the_host_calls_of_a_cell_have_its_id(pool):
    @pool.host_tool
    def answer():
        return [correlation_id(), pool.call("who")]

    result = pool.run("c = snakepit_kernel.context(); [c.correlation_id, *c.host_tools.answer()]")
    assert result.error is not None  # it is not imported
    result = pool.run(
        "import snakepit_kernel; c = snakepit_kernel.context()\n"
        "[c.correlation_id, *c.host_tools.answer()]"
    )
    assert len(result.value) == 3
    assert len(set(result.value)) == 1


def test_the_workers_of_a_workers_own_pool_have_it_too(pool):
    first, second = pool.call("nested_pool")
    assert first == second != ""


# -- events of workers -----------------------------------------------------------------------------


def test_an_event_of_a_tool_says_whose_it_is(pool, got):
    correlation = pool.session("mine").call("tell")

    (event,) = named(got, "told")
    assert event.attributes == {
        "number": 0,
        "session": "mine",
        "worker": "shop-1.1",
        "pool": "shop",
        "correlation_id": correlation,
    }


def test_cells_functions_and_streams_emit_as_well(pool, got):
    def tell():
        context().emit("of a function".replace(" ", "."))

    pool.submit(tell).result()
    assert pool.run("import snakepit_kernel; snakepit_kernel.context().emit('of.a.cell', n=1)").ok
    assert list(pool.stream("tell_while_streaming", {"times": 3})) == [0, 1, 2]

    assert named(got, "of.a.function")[0].attributes["worker"] == "shop-1.1"
    cell = named(got, "of.a.cell")[0].attributes
    calls = [event.attributes for event in named(got, "call")]
    assert cell["correlation_id"] in [c["correlation_id"] for c in calls if c["kind"] == "cell"]
    assert len(named(got, "chunk")) == 3


def test_what_cannot_be_an_event_raises_in_the_tool(pool):
    with pytest.raises(ToolError, match="the name of an event must be 1 to 64 characters"):
        pool.call("tell", {"name": "a b"})


def test_a_worker_that_emits_without_end_costs_neither_memory_nor_time(pool, got):
    began = time.monotonic()
    pool.call("tell", {"times": 50_000}, timeout=60)
    seconds = time.monotonic() - began
    pool.call("tell", {"name": "last"})

    told = len(named(got, "told"))
    assert 0 < told <= 1000 + 1000 * seconds
    assert told + telemetry.dropped() >= 49_000  # the worker tells of its own with the next
    assert len(named(got, "last")) == 1


def test_a_stream_that_nobody_reads_is_not_held_up_by_its_events(pool, got):
    stream = pool.stream("tell_while_streaming", {"times": 5000}, buffer=10_000)
    assert next(stream) == 0
    time.sleep(0.5)  # nothing is read meanwhile
    assert list(stream) == list(range(1, 5000))


def test_threads_emit_as_well(open_pool, got):
    class Safe(Shop):
        thread_safe = True

    Safe.__module__ = "__main__"
    pool = open_pool(adapter=Safe, profile="thread", threads_per_worker=3)
    ids = asyncio.run(gathered(pool, 6))

    assert sorted(e.attributes["correlation_id"] for e in named(got, "told")) == sorted(ids)


async def gathered(pool, count):
    return await asyncio.gather(*(pool.acall("tell") for _ in range(count)))
