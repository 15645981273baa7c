"""Events about the package's work, for the user's handlers and for OpenTelemetry.

Events are not emitted, and cost nothing, until there is a receiver: a subscribed handler, or an
OpenTelemetry SDK that the user has installed. This package never imports OpenTelemetry before the
user has done so.
"""

from __future__ import annotations

from .correlation import correlation_id
from .events import (
    Event,
    Subscription,
    dropped,
    emit,
    flush,
    is_on,
    note_dropped,
    set_limit,
    subscribe,
)
from .spans import Begun, begin, here, within

__all__ = [
    "Begun",
    "Event",
    "Subscription",
    "begin",
    "correlation_id",
    "dropped",
    "emit",
    "flush",
    "here",
    "is_on",
    "note_dropped",
    "set_limit",
    "subscribe",
    "within",
]
