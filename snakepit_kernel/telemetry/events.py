"""Events on their way to those who listen: a bounded buffer, and a thread that hands them on.

Whoever emits never waits, and never sees what a listener does: what does not fit is dropped, and
counted.
"""

from __future__ import annotations

import atexit
import logging
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
from ..validation import bounded
from .rate_limit import Buckets
from .spans import SDK, Record, Scalar, here, is_installed

if TYPE_CHECKING:
    from .opentelemetry import Bridge

logger = logging.getLogger(__name__)

CAPACITY = 1024
"""Events that may wait to be handed on."""

EXIT_PATIENCE = 0.5
"""Seconds that the end of the interpreter, or of a subscription, waits for those that wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened.

    Attributes
    ----------
    name
        What: ``"call"``, for example.
    attributes
        What is known of it. Never the values of variables or arguments.
    time
        When it had happened: seconds since 1970.
    seconds
        How long it took; 0 for what takes no time.
    """

    name: str
    attributes: Mapping[str, Scalar]
    time: float
    seconds: float


Handler = Callable[[Event], object]


class Subscription:
    """A handler that gets events, until it is closed. Also a context manager.

    Attributes
    ----------
    failures
        How often the handler has raised.
    """

    def __init__(self, handler: Handler, hub: Hub) -> None:
        self.failures = 0
        self._handler = handler
        self._hub = hub

    def take(self, event: Event) -> None:
        """Hand an event to the handler; its first exception is logged, all are counted."""
        try:
            self._handler(event)
        except Exception:
            self.failures += 1
            if self.failures == 1:
                logger.warning("the handler %r of events raised", self._handler, exc_info=True)

    def close(self) -> None:
        """Hand on what was emitted before, within half a second, and then nothing more."""
        self._hub.flush(EXIT_PATIENCE)
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
        Who gets the events.
    dropped
        Events that were not handed on.
    """

    def __init__(self) -> None:
        self.subscriptions: tuple[Subscription, ...] = ()
        self._is_flushed_at_exit = False
        self.begin()

    def begin(self) -> None:
        """Have nothing to hand on, and no thread: in a new process."""
        # Reentrant: a signal handler or a finalizer may emit in the middle of an emit.
        self._guard = RLock()
        self._buffer: SimpleQueue[Record | threading.Event] = SimpleQueue()
        self._buckets = Buckets()
        self._bridge: Bridge | None = None
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def add(self, handler: Handler) -> Subscription:
        """Hand events to a handler from now on."""
        subscription = Subscription(handler, self)
        with self._guard:
            self.subscriptions = (*self.subscriptions, subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Hand no more events to a handler."""
        with self._guard:
            self.subscriptions = tuple(s for s in self.subscriptions if s is not subscription)

    def set_rate(self, name: str, rate: float) -> None:
        """Let other many events of a name pass in a second."""
        with self._guard:
            self._buckets.set_rate(name, rate)

    def drop(self, count: int) -> None:
        """Count events that nobody gets."""
        with self._guard:
            self.dropped += count

    # -- in ------------------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Put an event into the buffer, if there is room."""
        if threading.current_thread() is self._thread:
            return  # what a handler does itself would go round and round
        with self._guard:
            has_room = self._buffer.qsize() < CAPACITY and self._has_thread()
            if has_room and self._buckets.take(record[0]):
                self._buffer.put(record)
            else:
                self.dropped += 1

    def _has_thread(self) -> bool:
        """Start the thread if it is not there; say whether it is."""
        if self._thread is None:
            thread = threading.Thread(
                target=self._hand_on_all, args=(self._buffer,), name="snakepit-events", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the interpreter exits, or there are too many threads
                return False
            self._thread = thread
            if not self._is_flushed_at_exit:
                self._is_flushed_at_exit = True
                atexit.register(self.flush, EXIT_PATIENCE)
        return True

    # -- out -----------------------------------------------------------------------------------

    def _hand_on_all(self, buffer: SimpleQueue[Record | threading.Event]) -> None:
        while True:
            record = buffer.get()
            if isinstance(record, threading.Event):
                record.set()
            else:
                self._hand_on(record)

    def _hand_on(self, record: Record) -> None:
        name, attributes, ended, seconds, _ = record
        if self.subscriptions:
            event = Event(name=name, attributes=attributes, time=ended / 1e9, seconds=seconds)
            for subscription in self.subscriptions:
                subscription.take(event)
        if is_installed():
            try:
                self._bridge_to_sdk().take(record)
            except Exception:  # an exporter's or a processor's own; events are no reason to fail
                logger.debug("OpenTelemetry did not take an event", exc_info=True)

    def _bridge_to_sdk(self) -> Bridge:
        if self._bridge is None:
            from .opentelemetry import Bridge

            self._bridge = Bridge(lambda: self.dropped)
        return self._bridge

    def flush(self, timeout: float) -> bool:
        """Wait until what is in the buffer was handed on; say whether it was."""
        with self._guard:
            if self._thread is None:
                return True
            if self._thread is threading.current_thread():
                return False
            handed_on = threading.Event()
            self._buffer.put(handed_on)
        return handed_on.wait(bounded(timeout))


_hub = Hub()

_modules = sys.modules


def _begin_in_child() -> None:
    _hub.begin()


os.register_at_fork(after_in_child=_begin_in_child)


def is_on() -> bool:
    """Whether somebody listens. So cheap that it can be asked for each call."""
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
    """Tell those who listen of something that has just happened; never waits, never raises.

    Parameters
    ----------
    name
        What.
    attributes
        What is known of it; never values of the user's.
    seconds
        How long it took.
    caller
        Whose it is, as `here` said then, or what `begin` said of this very thing. Default: whoever
        calls.
    at
        When it had happened: nanoseconds since 1970. Default: now.
    """
    if is_on():
        caller = here() if caller is None else caller
        _hub.take((name, dict(attributes), at or time.time_ns(), seconds, caller))


def subscribe(handler: Handler) -> Subscription:
    """Give each event from now on to a function, in a thread of its own.

    Parameters
    ----------
    handler
        Gets an `Event`. What it raises is logged once and counted. While it works, 1024 events can
        wait; more are dropped. What it does itself gives no events.

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
    """Wait until every event so far was handed on; say whether that was within some seconds."""
    return _hub.flush(timeout)


def dropped() -> int:
    """Return how many events were dropped: there was no room, or there were too many of a name."""
    return _hub.dropped


def note_dropped(count: int) -> None:
    """Count events that were dropped before they came here."""
    if count:
        _hub.drop(count)


def set_limit(name: str, per_second: float) -> None:
    """Hand on so many events of a name in a second, and at once, at most. By default it is 1000.

    Raises
    ------
    ValueError
        It is not more than 0.
    """
    if not 0 < per_second < float("inf"):
        msg = f"per_second must be a number greater than 0, not {per_second!r}"
        raise ValueError(msg)
    _hub.set_rate(name, per_second)
