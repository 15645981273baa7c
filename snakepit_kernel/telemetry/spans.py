"""What the user's OpenTelemetry says, asked without importing it."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from .._version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

logger = logging.getLogger(__name__)

SDK = "opentelemetry.sdk"
"""Module that is there when somebody has imported the SDK."""

LIBRARY: Final = "snakepit_kernel"
"""The name under which spans and metrics appear."""

Scalar = str | int | float | bool

Record = tuple[str, dict[str, Scalar], int, float, object]
"""An event on its way: name, attributes, end (ns since 1970), seconds, and whose it is."""

NOBODY: Final = object()
"""Whose work it is where OpenTelemetry does not say."""

_modules = sys.modules


def is_installed() -> bool:
    """Whether the user has set a provider of spans or of metrics."""
    if SDK not in _modules or _nobody_has():
        return False
    return _is_real(_ask("trace", "get_tracer_provider")) or _is_real(
        _ask("metrics", "get_meter_provider")
    )


def _nobody_has() -> bool:
    """Whether it is certain that no provider is set, asked in a tenth of the time.

    A library may have imported the SDK for a user who has not set it up. Where the providers lie is
    OpenTelemetry's own business: where they do not, it is asked each time.
    """
    tracing, metering = _modules.get("opentelemetry.trace"), _modules.get(_METERING)
    if tracing is not None and getattr(tracing, "_TRACER_PROVIDER", NOBODY) is not None:
        return False
    if metering is not None and getattr(metering, "_METER_PROVIDER", NOBODY) is not None:
        return False
    if not _asked:  # its environment may name providers, which come when they are asked for
        _asked.append(True)
        return False
    return True


_METERING = "opentelemetry.metrics._internal"
_asked: list[bool] = []


class Begun:
    """Something that will be told of when it has ended, and whose what is done within it is.

    Attributes
    ----------
    caller
        Whose it is itself: OpenTelemetry's context.
    inside
        Whose is what is done within it: the context with its span, where spans are recorded.
    span
        Its span, which `emit` ends; None where none are.
    """

    __slots__ = ("caller", "inside", "span")

    def __init__(self, name: str, caller: object) -> None:
        self.caller = self.inside = caller
        self.span: Any = None
        if is_installed():
            try:
                self.span, self.inside = _begin_span(name, caller)
            except Exception:
                logger.debug("OpenTelemetry began no span", exc_info=True)


def _begin_span(name: str, caller: object) -> tuple[Span, Context]:
    """Begin a span below that of a caller; return it, and the context in which it is current."""
    from opentelemetry import trace

    context = as_context(caller)
    span = tracer_of(trace.get_tracer_provider()).start_span(name, context=context)
    return span, trace.set_span_in_context(span, context)


@functools.lru_cache(maxsize=1)
def tracer_of(provider: TracerProvider) -> Tracer:
    """Return what makes spans with a provider."""
    return provider.get_tracer(LIBRARY, __version__)


def as_context(caller: object) -> Context:
    """Return a caller as OpenTelemetry's context: an empty one if it is none."""
    from opentelemetry.context import Context

    return caller if isinstance(caller, Context) else Context()


def begin(name: str, caller: object = None) -> Begun:
    """Note that something has begun which `emit` will tell of.

    Parameters
    ----------
    name
        What.
    caller
        Whose it is, as `here` or `Begun.inside` said. Default: whoever calls.
    """
    return Begun(name, here() if caller is None else caller)


@contextlib.contextmanager
def within(begun: Begun) -> Iterator[None]:
    """Make what is done in a ``with`` block part of what has begun."""
    if begun.span is None:
        yield
        return
    from opentelemetry import context

    token = context.attach(begun.inside)  # type: ignore[arg-type]
    try:
        yield
    finally:
        context.detach(token)


def here() -> object:
    """Return whose work this is, to be given to `emit` later: OpenTelemetry's context, if any."""
    return (SDK in _modules and _ask("context", "get_current")) or NOBODY


def trace_id() -> str:
    """Return the id of the trace that is being recorded here, 32 hexadecimal digits, or nothing."""
    span = _ask("trace", "get_current_span") if SDK in _modules else None
    if span is None or not span.is_recording():
        return ""
    return format(span.get_span_context().trace_id, "032x")


def _ask(module: str, function: str) -> Any:
    """Call a function of OpenTelemetry's API; return None where it is not there."""
    # It may be in the middle of its import, or unable to load what its environment names.
    try:
        return getattr(_modules.get(f"opentelemetry.{module}"), function)()
    except Exception:  # noqa: BLE001 - work goes on, whatever is wrong with its telemetry
        return None


def _is_real(provider: object) -> bool:
    """Whether a provider is the user's; the API has some that stand in for it."""
    return type(provider).__module__.split(".")[:2] not in (
        ["builtins"],
        ["opentelemetry", "trace"],
        ["opentelemetry", "metrics"],
    )
