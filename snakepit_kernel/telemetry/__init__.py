"""What the package tells of its work: events, for handlers of the user and for OpenTelemetry.

Nothing is told, and nothing is paid, until somebody listens: a handler that was subscribed, or an
SDK of OpenTelemetry that the user has installed. OpenTelemetry is never imported from here before
the user has done it.
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
