"""The tree of spans: what belongs to a call is below it, wherever it was done."""

from __future__ import annotations

import asyncio
import time

import pytest
from opentelemetry import trace

from snakepit_kernel import CallTimeout, Pool, context


def ask(name):
    return context().call_host_tool(name, {})


ask.__module__ = "__main__"  # by value


def parent_of(span):
    return span.parent and span.parent.span_id


@pytest.fixture
def pool(sdk):
    with Pool(1, name="shop") as pool:
        pool.tool(ask)
        yield pool


@pytest.fixture
def answer(pool):
    """A host tool that has a span of its own."""

    @pool.host_tool
    def answer():
        with trace.get_tracer("test").start_as_current_span("mine"):
            return 4

    return answer


def test_the_wait_of_a_call_is_a_span_below_it(sdk, pool):
    first = pool.submit(time.sleep, 0.3)
    with pytest.raises(CallTimeout):
        pool.call("ask", {"name": "answer"}, timeout=0.05)
    first.result()

    late, done = sdk.spans("call")
    queues = {parent_of(span): span for span in sdk.spans("queue")}
    for call in (late, done):
        queue = queues.pop(call.context.span_id)
        assert abs(queue.start_time - call.start_time) < 2e6
        assert queue.end_time <= call.end_time + 2e6
        seconds = (queue.end_time - queue.start_time) / 1e9
        assert seconds == pytest.approx(call.attributes["queue_seconds"], abs=1e-6)
    assert late.attributes["queue_seconds"] > 0.04
    assert queues == {}


def called(pool):
    return pool.call("ask", {"name": "answer"})


def submitted(pool):
    return pool.submit(ask, "answer").result()


def awaited(pool):
    return asyncio.run(pool.acall("ask", {"name": "answer"}))


@pytest.mark.parametrize("how", [called, submitted, awaited])
def test_a_host_call_is_below_the_call_that_it_comes_from(sdk, pool, answer, how):
    assert how(pool) == 4

    (call,), (host_call,), (mine,) = (sdk.spans(n) for n in ("call", "host_call", "mine"))
    assert parent_of(call) is None
    assert parent_of(host_call) == call.context.span_id
    assert parent_of(mine) == host_call.context.span_id
    assert {span.context.trace_id for span in (host_call, mine)} == {call.context.trace_id}
    assert call.start_time <= host_call.start_time <= host_call.end_time <= call.end_time


def test_a_call_that_a_host_tool_makes_is_below_the_host_call(sdk, pool):
    @pool.host_tool
    def twice():
        return pool.call("ask", {"name": "once"}) * 2

    @pool.host_tool
    def once():
        return 21

    assert pool.call("ask", {"name": "twice"}) == 42

    outer, inner = sorted(sdk.spans("call"), key=lambda span: span.start_time)
    spans = {span.attributes["tool"]: span for span in sdk.spans("host_call")}
    assert parent_of(spans["twice"]) == outer.context.span_id
    assert parent_of(spans["once"]) == inner.context.span_id
    assert parent_of(inner) == spans["twice"].context.span_id
    assert inner.context.trace_id == outer.context.trace_id


def test_an_async_host_tool_has_the_span_of_its_call(sdk, pool):
    @pool.host_tool
    async def answer():
        await asyncio.sleep(0)
        with trace.get_tracer("test").start_as_current_span("mine"):
            return 4

    async def both():
        return await asyncio.gather(*(pool.acall("ask", {"name": "answer"}) for _ in range(2)))

    assert asyncio.run(both()) == [4, 4]

    calls = {span.context.span_id for span in sdk.spans("call")}
    host_calls = {span.context.span_id: parent_of(span) for span in sdk.spans("host_call")}
    assert set(host_calls.values()) == calls
    assert {parent_of(span) for span in sdk.spans("mine")} == set(host_calls)


def test_a_host_tool_leaves_no_span_behind_in_its_thread(sdk, pool, answer):
    with trace.get_tracer("test").start_as_current_span("mine") as mine:
        pool.call("ask", {"name": "answer"})
        assert trace.get_current_span() is mine
