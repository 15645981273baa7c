"""Delivery of events to their receivers: a bounded buffer, and a thread that empties it.

Emitting never waits, and never sees a receiver's errors: what does not fit into the buffer is
dropped, and counted.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from _queue import SimpleQueue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from ..locks import RLock
from ..loggers import get_logger
from ..validation import bounded
from .rate_limit import Buckets
from .spans import SDK, Record, Scalar, here, is_installed

if TYPE_CHECKING:
    from .opentelemetry import Bridge

logger = get_logger(__name__)

CAPACITY = 1024
"""Events that may wait for delivery."""

EXIT_TIMEOUT = 0.5
"""Seconds that the end of the interpreter, or of a subscription, waits for their delivery."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event: a call that has ended, for example.

    Attributes
    ----------
    name
        Its kind: ``"call"``, for example.
    attributes
        Facts about it. Never the values of variables or arguments.
    time
        Time of its end, in seconds since 1970.
    seconds
        Its duration; 0 for an event without one.
    """

    name: str
    attributes: Mapping[str, Scalar]
    time: float
    seconds: float


Handler = Callable[[Event], object]


class Subscription:
    """Subscription of a handler to events, until it is closed. Also a context manager.

    Attributes
    ----------
    failures
        Number of exceptions that the handler has raised.
    """

    def __init__(self, handler: Handler, hub: Hub) -> None:
        self.failures = 0
        self._handler = handler
        self._hub = hub

    def take(self, event: Event) -> None:
        """Pass an event to the handler; its first exception is logged, all are counted."""
        try:
            self._handler(event)
        except Exception:
            self.failures += 1
            if self.failures == 1:
                logger.warning("the handler %r of events raised", self._handler, exc_info=True)

    def close(self) -> None:
        """Deliver the events emitted so far, within half a second, and end the subscription."""
        self._hub.flush(EXIT_TIMEOUT)
        self._hub.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Hub:
    """The buffer, and the thread that empties it; one for a process.

    Attributes
    ----------
    subscriptions
        The subscriptions that get the events.
    dropped
        Number of events that were not delivered.
    """

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self._is_flushed_at_exit = False
        self.begin()

    def begin(self) -> None:
        """Reset the buffer and the thread, in a new process."""
        # Reentrant: a signal handler or a finalizer may emit in the middle of an emit.
        self._lock = RLock()
        self._buffer: SimpleQueue[Record | threading.Event] = SimpleQueue()
        self._buckets = Buckets()
        self._bridge: Bridge | None = None
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def add(self, handler: Handler) -> Subscription:
        """Subscribe a handler."""
        subscription = Subscription(handler, self)
        with self._lock:
            self.subscriptions = (*self.subscriptions, subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """End a subscription."""
        with self._lock:
            self.subscriptions = tuple(s for s in self.subscriptions if s is not subscription)

    def set_rate(self, name: str, rate: float) -> None:
        """Set the limit of a name's events in a second."""
        with self._lock:
            self._buckets.set_rate(name, rate)

    def drop(self, count: int) -> None:
        """Count events that were dropped."""
        with self._lock:
            self.dropped += count

    # -- in ------------------------------------------------------------------------------------

    def accept(self, record: Record) -> None:
        """Put an event into the buffer, if there is room."""
        if threading.current_thread() is self._thread:
            return  # events about a handler's own work would never end
        with self._lock:
            has_room = self._buffer.qsize() < CAPACITY and self._has_thread()
            if has_room and self._buckets.take(record[0]):
                self._buffer.put(record)
            else:
                self.dropped += 1

    def _has_thread(self) -> bool:
        """Start the thread if it does not run; return whether it runs."""
        if self._thread is None:
            thread = threading.Thread(
                target=self._deliver_all, args=(self._buffer,), name="snakepit-events", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the interpreter exits, or no more threads can start
                return False
            self._thread = thread
            if not self._is_flushed_at_exit:
                self._is_flushed_at_exit = True
                atexit.register(self.flush, EXIT_TIMEOUT)
        return True

    # -- out -----------------------------------------------------------------------------------

    def _deliver_all(self, buffer: SimpleQueue[Record | threading.Event]) -> None:
        while True:
            record = buffer.get()
            if isinstance(record, threading.Event):
                record.set()
            else:
                self._deliver(record)

    def _deliver(self, record: Record) -> None:
        name, attributes, ended, seconds, _ = record
        if self.subscriptions:
            event = Event(name=name, attributes=attributes, time=ended / 1e9, seconds=seconds)
            for subscription in self.subscriptions:
                subscription.take(event)
        if is_installed():
            try:
                self._bridge_to_sdk().accept(record)
            except Exception:  # raised by an exporter or processor; events must not cause failures
                logger.debug("OpenTelemetry did not take an event", exc_info=True)

    def _bridge_to_sdk(self) -> Bridge:
        if self._bridge is None:
            from .opentelemetry import Bridge

            self._bridge = Bridge(lambda: self.dropped)
        return self._bridge

    def flush(self, timeout: float) -> bool:
        """Wait until the events in the buffer were delivered; return whether they were."""
        with self._lock:
            if self._thread is None:
                return True
            if self._thread is threading.current_thread():
                return False
            delivered = threading.Event()
            self._buffer.put(delivered)
        return delivered.wait(bounded(timeout))


_hub = Hub()

_modules = sys.modules


def _begin_in_child() -> None:
    _hub.begin()


os.register_at_fork(after_in_child=_begin_in_child)


def is_on() -> bool:
    """Whether events have a receiver. Cheap enough to be asked for each call."""
    if _hub.subscriptions:
        return True
    return SDK in _modules and is_installed()


def emit(
    name: str,
    attributes: Mapping[str, Scalar],
    *,
    seconds: float = 0.0,
    caller: object = None,
    at: int = 0,
) -> None:
    """Emit an event that has just happened; never waits, never raises.

    Parameters
    ----------
    name
        Its kind.
    attributes
        Facts about it; never values of the user's.
    seconds
        Its duration.
    caller
        The caller that it belongs to, as returned by `here` at that time, or the result of `begin`
        for this event. Default: the current one.
    at
        Time of its end, in nanoseconds since 1970. Default: now.
    """
    if is_on():
        caller = here() if caller is None else caller
        _hub.accept((name, dict(attributes), at or time.time_ns(), seconds, caller))


def subscribe(handler: Handler) -> Subscription:
    """Call a function with each event from now on, in a separate thread.

    Parameters
    ----------
    handler
        Gets an `Event`. Its first exception is logged, all are counted. While it runs, 1024 events
        can wait; more are dropped. Its own work emits no events.

    Returns
    -------
    Subscription
        A context manager; `Subscription.close` ends it.
    """
    if not callable(handler):
        msg = f"subscribe() takes a function, not {type(handler).__name__} {handler!r}"
        raise TypeError(msg)
    return _hub.add(handler)


def flush(timeout: float = 5.0) -> bool:
    """Wait until all events so far were delivered; return False after ``timeout`` seconds."""
    return _hub.flush(timeout)


def dropped() -> int:
    """Return the number of events dropped: the buffer was full, or a name had too many."""
    return _hub.dropped


def note_dropped(count: int) -> None:
    """Count events that were dropped before they reached this process."""
    if count:
        _hub.drop(count)


def set_limit(name: str, per_second: float) -> None:
    """Limit the events of a name in a second, and in a burst. Default: 1000.

    Raises
    ------
    ValueError
        It is not more than 0.
    """
    if not 0 < per_second < float("inf"):
        msg = f"per_second must be a number greater than 0, not {per_second!r}"
        raise ValueError(msg)
    _hub.set_rate(name, per_second)
