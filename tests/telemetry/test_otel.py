"""Events as spans and metrics of the user's OpenTelemetry SDK."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from snakepit_kernel import telemetry
from snakepit_kernel.telemetry.correlation import correlation_of_work


def test_the_api_alone_is_nobody_who_listens():
    assert not telemetry.is_on()
    assert trace.get_tracer_provider() is not None
    assert not telemetry.is_on()


@pytest.mark.parametrize("kind", ["trace", "metrics"])
def test_an_sdk_that_a_library_has_imported_listens_from_when_a_provider_is_set(kind):
    code = f"""
        from snakepit_kernel import telemetry
        import opentelemetry.sdk.{kind} as sdk, opentelemetry.{kind} as api
        assert [telemetry.is_on() for _ in range(3)] == [False] * 3
        api.set_{"tracer" if kind == "trace" else "meter"}_provider(
            sdk.{"TracerProvider" if kind == "trace" else "MeterProvider"}()
        )
        assert telemetry.is_on()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_an_event_is_a_span_with_exact_times_and_its_attributes(sdk):
    before = time.time_ns()
    telemetry.emit("call", {"tool": "price", "run_seconds": 0.25}, seconds=0.5)
    after = time.time_ns()

    (span,) = sdk.spans()
    assert span.name == "call"
    assert dict(span.attributes) == {"tool": "price", "run_seconds": 0.25}
    assert before <= span.end_time <= after
    assert span.end_time - span.start_time == 500_000_000
    assert span.instrumentation_scope.name == "snakepit_kernel"
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("error", StatusCode.ERROR), ("lost", StatusCode.ERROR), ("cancelled", StatusCode.UNSET)],
)
def test_a_failed_outcome_is_the_status_of_the_span(sdk, outcome, code):
    telemetry.emit("call", {"outcome": outcome})
    assert sdk.spans()[0].status.status_code is code


def test_a_span_is_below_that_of_the_caller(sdk):
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("mine") as mine:
        telemetry.emit("in", {})
        there = telemetry.here()
    telemetry.emit("out", {})
    telemetry.emit("late", {}, caller=there)

    assert sdk.spans("in")[0].parent.span_id == mine.get_span_context().span_id
    assert sdk.spans("late")[0].parent.span_id == mine.get_span_context().span_id
    assert sdk.spans("out")[0].parent is None


def test_events_are_counted_with_few_attributes(sdk):
    attributes = {"pool": "p", "tool": "price", "outcome": "ok", "kind": "call"}
    for number in range(3):
        hidden = {"session": f"s{number}", "correlation_id": str(number), "variable": "v"}
        telemetry.emit("call", attributes | hidden, seconds=0.02)
    telemetry.emit("mine", {"loss": 0.5})

    key = tuple(sorted({"event": "call", **attributes}.items()))
    assert {k: point.value for k, point in sdk.points("snakepit.events").items()} == {
        key: 3,
        (("event", "mine"),): 1,
    }
    durations = sdk.points("snakepit.duration")
    assert list(durations) == [key]
    assert durations[key].count == 3
    assert durations[key].sum == pytest.approx(0.06)
    assert durations[key].explicit_bounds[0] < 0.001


def test_names_that_are_too_many_are_counted_as_other(sdk, monkeypatch):
    monkeypatch.setattr("snakepit_kernel.telemetry.rate_limit.MAX_NAMES", 3)
    for number in range(10):
        telemetry.emit(f"event-{number}", {"tool": f"tool-{number}"})

    points = sdk.points("snakepit.events")
    assert points[(("event", "other"), ("tool", "other"))].value == 7
    assert len(points) == 4


def test_dropped_events_are_counted(sdk):
    telemetry.emit("done", {})
    telemetry.note_dropped(7)

    assert sdk.points("snakepit.events.dropped")[()].value == 7


def test_an_exporter_that_raises_disturbs_neither_work_nor_handlers(sdk, monkeypatch):
    def export(spans):
        raise OSError

    monkeypatch.setattr(sdk.tracers, "get_tracer", export)
    got = []
    with telemetry.subscribe(got.append):
        telemetry.emit("done", {})
        telemetry.emit("done", {})
        assert telemetry.flush(10)
    assert len(got) == 2


def test_handlers_and_sdk_get_the_same_events(sdk):
    got = []
    with telemetry.subscribe(got.append):
        telemetry.emit("done", {})
    assert [event.name for event in got] == [span.name for span in sdk.spans()] == ["done"]


def test_a_broken_opentelemetry_disturbs_nothing(sdk, monkeypatch):
    def fail():
        raise ImportError

    for name in ("get_tracer_provider", "get_current_span"):
        monkeypatch.setattr(trace, name, fail)
    telemetry.emit("done", {})

    assert correlation_of_work()
    assert telemetry.flush(10)


def test_an_event_may_have_happened_before_it_is_emitted(sdk):
    got = []
    with telemetry.subscribe(got.append):
        telemetry.emit("done", {}, seconds=1.0, at=1_700_000_000_500_000_000)

    (span,) = sdk.spans()
    assert (span.start_time, span.end_time) == (
        1_699_999_999_500_000_000,
        1_700_000_000_500_000_000,
    )
    assert got[0].time == 1_700_000_000.5
