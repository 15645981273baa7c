"""The work of a pool as spans and metrics of the user's SDK."""

from __future__ import annotations

from opentelemetry import trace

from snakepit_kernel import Pool, context


def tell(name):
    context().emit(name)
    return context().correlation_id


tell.__module__ = "__main__"  # by value


def test_spans_of_calls_are_below_that_of_their_caller_and_share_its_trace(sdk):
    with Pool(1, name="shop") as pool:
        pool.tool(tell)
        with trace.get_tracer("test").start_as_current_span("mine") as mine:
            called = pool.call("tell", {"name": "of.a.call"})
            submitted = pool.submit(tell, "of.a.future")
        assert submitted.result() == called
        pool.call("tell", {"name": "later"})

    own = mine.get_span_context()
    first, second, third = sdk.spans("call")
    (of_a_call,), (of_a_future,) = sdk.spans("of.a.call"), sdk.spans("of.a.future")
    assert [span.parent.span_id for span in (first, second)] == [own.span_id] * 2
    assert of_a_call.parent.span_id == first.context.span_id
    assert of_a_future.parent.span_id == second.context.span_id
    for span in (first, second, of_a_call, of_a_future):
        assert span.attributes["correlation_id"] == called == format(own.trace_id, "032x")
        assert span.attributes["worker"] == "shop-1.1"
    assert third.parent is None
    assert sdk.spans("later")[0].parent.span_id == third.context.span_id
    counts = {key: point.value for key, point in sdk.points("snakepit.events").items()}
    key = {"event": "call", "kind": "call", "tool": "tell", "pool": "shop", "outcome": "ok"}
    assert counts[tuple(sorted(key.items()))] == 2
    assert sum(counts.values()) == 6
    assert not any("correlation_id" in dict(key) for key in counts)
