"""Export of events as OpenTelemetry spans and metrics; imported when the user has an SDK."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation

from .._version import __version__
from .rate_limit import Names
from .spans import LIBRARY, Begun, Record, as_context, tracer_of

METRIC_ATTRIBUTES = ("pool", "kind", "tool", "outcome")
"""Attributes that metrics have too, with a bounded number of values each, see `Names`."""

SECONDS = [
    1e-4,
    2.5e-4,
    5e-4,
    1e-3,
    2.5e-3,
    5e-3,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    10,
    60,
]
"""Boundaries of the histogram; those of the SDK are made for milliseconds."""

_SUCCESSFUL = ("ok", "cancelled")


class Bridge:
    """Exports events as spans and metrics, with the providers that are currently set.

    Parameters
    ----------
    dropped
        Returns the number of dropped events.
    """

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._spans = Spans(trace.get_tracer_provider())
        self._metrics = Metrics(metrics.get_meter_provider(), dropped)
        self._dropped = dropped

    def accept(self, record: Record) -> None:
        """Export an event."""
        tracers, meters = trace.get_tracer_provider(), metrics.get_meter_provider()
        if tracers is not self._spans.provider:
            self._spans = Spans(tracers)
        if meters is not self._metrics.provider:
            self._metrics = Metrics(meters, self._dropped)
        self._spans.accept(record)
        self._metrics.accept(record)


class Spans:
    """Exports each event as a span.

    Parameters
    ----------
    provider
        Provider of the tracer.
    """

    def __init__(self, provider: trace.TracerProvider) -> None:
        self.provider = provider
        self._tracer = tracer_of(provider)

    def accept(self, record: Record) -> None:
        """Make the span of an event, as a child of its caller's; or end the span that has begun."""
        name, attributes, ended, seconds, caller = record
        began = ended - round(seconds * 1e9)
        if isinstance(caller, Begun) and caller.span is not None:
            span = caller.span
            span.set_attributes(attributes)
        else:
            parent = caller.caller if isinstance(caller, Begun) else caller
            span = self._tracer.start_span(
                name, context=as_context(parent), attributes=attributes, start_time=began
            )
        if "queue_seconds" in attributes:
            self._queue(span, began, began + round(float(attributes["queue_seconds"]) * 1e9))
        if attributes.get("outcome", "ok") not in _SUCCESSFUL:
            span.set_status(trace.StatusCode.ERROR)
        span.end(ended)

    def _queue(self, work: trace.Span, began: int, ended: int) -> None:
        """Make the span of a call's or cell's wait, as a child of its span."""
        context = trace.set_span_in_context(work, Context())
        self._tracer.start_span("queue", context=context, start_time=began).end(ended)


class Metrics:
    """Counts events, and records their durations.

    Parameters
    ----------
    provider
        Provider of the instruments.
    dropped
        Returns the number of dropped events.
    """

    def __init__(self, provider: metrics.MeterProvider, dropped: Callable[[], int]) -> None:
        self.provider = provider
        self._names = Names()
        meter = provider.get_meter(LIBRARY, __version__)
        self._events = meter.create_counter(
            "snakepit.events", unit="{event}", description="Events, by name"
        )
        self._duration = meter.create_histogram(
            "snakepit.duration",
            unit="s",
            description="How long events took",
            explicit_bucket_boundaries_advisory=SECONDS,
        )

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(dropped())]

        meter.create_observable_counter(
            "snakepit.events.dropped", [observe], unit="{event}", description="Events dropped"
        )

    def accept(self, record: Record) -> None:
        """Count an event."""
        name, attributes, _, seconds, _ = record
        labels = {"event": self._names.bounded("event", name)}
        for key in METRIC_ATTRIBUTES:
            if key in attributes:
                labels[key] = self._names.bounded(key, str(attributes[key]))
        self._events.add(1, labels)
        if seconds:
            self._duration.record(seconds, labels)
