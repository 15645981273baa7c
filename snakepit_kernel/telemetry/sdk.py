"""What the user's OpenTelemetry says, asked without importing it."""

from __future__ import annotations

import sys
from typing import Any, Final

SDK = "opentelemetry.sdk"
"""Module that is there when somebody has imported the SDK."""

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
