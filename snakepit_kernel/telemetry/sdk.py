"""What the user's OpenTelemetry says, asked without importing it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

SDK = "opentelemetry.sdk"
"""Module that is there when somebody has imported the SDK."""

_modules = sys.modules


def is_installed() -> bool:
    """Whether the user has set a provider of spans or of metrics."""
    if SDK not in _modules:
        return False
    trace, metrics = _api("trace"), _api("metrics")
    return (trace is not None and _is_real(trace.get_tracer_provider())) or (
        metrics is not None and _is_real(metrics.get_meter_provider())
    )


def here() -> object:
    """Return the OpenTelemetry context of whoever calls, to be given to `emit` later, or None."""
    if SDK not in _modules:
        return None
    context = _api("context")
    return None if context is None else context.get_current()


def trace_id() -> str:
    """Return the id of the trace that is being recorded here, 32 hexadecimal digits, or nothing."""
    trace = _api("trace") if SDK in _modules else None
    if trace is None:
        return ""
    span = trace.get_current_span()
    return format(span.get_span_context().trace_id, "032x") if span.is_recording() else ""


def _api(name: str) -> Any:
    module: ModuleType | None = _modules.get(f"opentelemetry.{name}")
    return module


def _is_real(provider: object) -> bool:
    """Whether a provider is the user's; the API has some that stand in for it."""
    kind = type(provider)
    return kind.__module__.split(".")[:2] not in (
        ["opentelemetry", "trace"],
        ["opentelemetry", "metrics"],
    )
