"""Access to the user's OpenTelemetry, without importing it."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from .._version import __version__
from ..loggers import get_logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

logger = get_logger(__name__)

SDK = "opentelemetry.sdk"
"""Module that is present once the SDK has been imported."""

LIBRARY: Final = "snakepit_kernel"
"""Name of the instrumentation scope of spans and metrics."""

Scalar = str | int | float | bool

Record = tuple[str, dict[str, Scalar], int, float, object]
"""An event in the buffer: name, attributes, end (ns since 1970), seconds, and its caller."""

NO_CALLER: Final = object()
"""The caller where OpenTelemetry has no current context."""

_modules = sys.modules


def is_installed() -> bool:
    """Whether the user has set a provider of spans or of metrics."""
    if SDK not in _modules or _has_no_provider():
        return False
    return _is_real(_call_api("trace", "get_tracer_provider")) or _is_real(
        _call_api("metrics", "get_meter_provider")
    )


def _has_no_provider() -> bool:
    """Whether it is certain that no provider is set, found in a tenth of the time.

    A library may have imported the SDK for a user who has not set it up. The providers' variables
    are private to OpenTelemetry: where they do not exist, its functions are called each time.
    """
    tracing, metering = _modules.get("opentelemetry.trace"), _modules.get(_METERING)
    if tracing is not None and getattr(tracing, "_TRACER_PROVIDER", NO_CALLER) is not None:
        return False
    if metering is not None and getattr(metering, "_METER_PROVIDER", NO_CALLER) is not None:
        return False
    if not _was_called:  # the environment may name providers, which are made at the first request
        _was_called.append(True)
        return False
    return True


_METERING = "opentelemetry.metrics._internal"
_was_called: list[bool] = []


class Begun:
    """Handle of a span that has begun; its event is emitted at its end.

    Attributes
    ----------
    caller
        The caller's context in OpenTelemetry.
    inside
        The context of work within it: that with its span, where spans are recorded.
    span
        The span, which `emit` ends; None where none are recorded.
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
    """Begin a span as a child of a caller's; return it, and the context in which it is current."""
    from opentelemetry import trace

    context = as_context(caller)
    span = tracer_of(trace.get_tracer_provider()).start_span(name, context=context)
    return span, trace.set_span_in_context(span, context)


@functools.lru_cache(maxsize=1)
def tracer_of(provider: TracerProvider) -> Tracer:
    """Return the tracer of a provider."""
    return provider.get_tracer(LIBRARY, __version__)


def as_context(caller: object) -> Context:
    """Return a caller's OpenTelemetry context; an empty one if it has none."""
    from opentelemetry.context import Context

    return caller if isinstance(caller, Context) else Context()


def begin(name: str, caller: object = None) -> Begun:
    """Begin a span, whose event `emit` will emit.

    Parameters
    ----------
    name
        Its kind.
    caller
        The caller that it belongs to, as given by `here` or `Begun.inside`. Default: the current
        one.
    """
    return Begun(name, here() if caller is None else caller)


@contextlib.contextmanager
def within(begun: Begun) -> Iterator[None]:
    """Make a span the current one in a ``with`` block."""
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
    """Return the current caller, for a later `emit`: OpenTelemetry's context, if any."""
    return (SDK in _modules and _call_api("context", "get_current")) or NO_CALLER


def trace_id() -> str:
    """Return the id of the trace that is recorded here, 32 hexadecimal digits, or empty text."""
    span = _call_api("trace", "get_current_span") if SDK in _modules else None
    if span is None or not span.is_recording():
        return ""
    return format(span.get_span_context().trace_id, "032x")


def _call_api(module: str, function: str) -> Any:
    """Call a function of OpenTelemetry's API; return None if that fails."""
    # The module may be half imported, or unable to load what its environment names.
    try:
        return getattr(_modules.get(f"opentelemetry.{module}"), function)()
    except Exception:  # noqa: BLE001 - work goes on, whatever is wrong with its telemetry
        return None


def _is_real(provider: object) -> bool:
    """Whether a provider is the user's, and none of the API's placeholders."""
    return type(provider).__module__.split(".")[:2] not in (
        ["builtins"],
        ["opentelemetry", "trace"],
        ["opentelemetry", "metrics"],
    )
