"""One piece of work on its way through the pool."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from .. import telemetry
from ..call_details import Attempt, CallDetails
from ..errors import CallTimeout, PoolSaturated, QueueTimeout, SnakepitError, ToolError, WorkerDied
from ..telemetry.correlation import correlation_of_work
from .policies import category_of
from .scheduling.affinity import Home
from .scheduling.fair_queue import Bound
from .scheduling.scheduler import Purpose, Ticket
from .workers.worker import Seat

OUTCOMES = ("ok", "error", "cancelled", "timeout", "saturated", "lost")
"""What may become of a piece of work: the names of its counters."""


class Work(Ticket[Seat]):
    """One call or cell on its way through the pool.

    Parameters
    ----------
    name
        What it is, for errors and for people.
    session
        The session that it belongs to.
    timeout
        Seconds for the wait, the run and the reply together.
    queue_timeout
        Seconds that it may wait for a worker.
    bound
        The bound of the queue that it counts against.
    slot
        The slot whose worker is to do it; None for any.
    purpose
        What it needs a place at a worker for.
    link
        The host call that it is made from, if it is.
    home
        The home of its session, if it is bound to that.
    fails_fast
        Whether it is refused where it would have to wait for its home.
    priority
        Higher goes first.
    idempotent
        Whether it may be done twice.

    Attributes
    ----------
    kind
        What it is, for people: ``"call"``, ``"stream"``, ``"future"`` or ``"cell"``.
    correlation
        Id of the outermost call that it is done for.
    caller
        Whose it is, for `telemetry.emit`; None when nobody listened when it was asked for.
    asked, began
        `time.monotonic` when it was asked for, and when it last got a seat; None without one.
    queued
        `time.monotonic` when its present attempt began to wait.
    attempts
        Those that failed, and were not the last.
    has_given
        Whether its caller has a chunk of it already.
    ends_as
        Its counter, where that does not follow from its error; else empty.
    settled
        Whether its outcome is counted and its place given back.
    is_given_up
        Whether its caller has left while it runs.
    admitted
        What the breaker is told its end with, see `CircuitBreaker.admit`; None without a breaker.
    nested_in
        The host call inside which it runs, at a worker that waits for that; else None.
    errand
        What the pool's supervisor knows of it, when it does it.
    is_along
        Whether a conveyor has it, which gives the seat back by itself.
    """

    __slots__ = (
        "admitted",
        "asked",
        "attempts",
        "began",
        "caller",
        "correlation",
        "deadline",
        "ends_as",
        "fails_fast",
        "has_given",
        "host_call",
        "idempotent",
        "is_given_up",
        "is_prefetched",
        "item",
        "kind",
        "name",
        "nested_in",
        "queue_deadline",
        "queue_timeout",
        "queued",
        "settled",
        "slot",
        "timeout",
    )

    def __init__(
        self,
        name: str,
        *,
        session: str | None,
        timeout: float | None,
        queue_timeout: float | None,
        bound: Bound | None = "max_queue",
        slot: int | None = None,
        purpose: Purpose = "call",
        host_call: HostCallContext | None = None,
        home: Home[Seat] | None = None,
        fails_fast: bool = False,
        priority: int = 0,
        idempotent: bool = False,
    ) -> None:
        super().__init__(
            nothing, session, purpose=purpose, home=home, priority=priority, bound=bound
        )
        self.idempotent = idempotent
        self.attempts: tuple[Attempt, ...] = ()
        self.ends_as = ""
        self.has_given = False
        self.fails_fast = fails_fast
        self.name = name
        self.kind: str = purpose
        self.correlation = correlation_of_work()
        self.caller = telemetry.begin("call") if telemetry.is_on() else None
        self.began: float | None = None
        self.host_call = host_call
        self.nested_in: HostCallContext | None = None
        self.item: Any = None
        self.is_prefetched = False
        self.admitted: int | None = None
        self.slot = slot
        self.settled = True  # until it is admitted there is nothing to count or to give back
        self.is_given_up = False
        self.asked = self.queued = time.monotonic()
        if host_call is not None and host_call.deadline is not None:
            left = max(0.0, host_call.deadline - self.asked)
            timeout = left if timeout is None else min(timeout, left)
        self.timeout = timeout
        self.deadline = None if timeout is None else self.asked + timeout
        self.queue_timeout = queue_timeout
        self._limit_wait()

    def _limit_wait(self) -> None:
        self.queue_deadline = self.deadline
        if self.queue_timeout is not None:
            wait_until = self.queued + self.queue_timeout
            if self.deadline is None or wait_until < self.deadline:
                self.queue_deadline = wait_until

    def wait_in_queue(self, seconds: float | None) -> None:
        """Wait for a seat for so long, from when it was queued, instead of as long as was said."""
        self.queue_timeout = seconds
        self._limit_wait()

    def begin_again(self, attempt: Attempt) -> None:
        """Be asked for once more, after an attempt that failed; the deadline stays."""
        self.attempts = (*self.attempts, attempt)
        self.seat = self.began = None
        self.nested_in = None
        self.ends_as = ""
        self.queued = time.monotonic()
        self._limit_wait()

    def attempt_that_failed(self, error: BaseException) -> Attempt:
        """Return what there is to tell of the last attempt."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        return Attempt(
            worker=None if self.seat is None else self.seat.worker.name,
            category=category_of(error),
            reason=(str(error).splitlines() or [""])[0] or type(error).__name__,
            queue_seconds=began - self.queued,
            run_seconds=now - began,
        )

    def details(self, pool: str, error: BaseException) -> CallDetails:
        """Return what an error of it tells of it, when it has ended."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        worker = None if self.seat is None else self.seat.worker
        return CallDetails(
            pool=pool,
            call=self.name,
            session=self.session,
            worker=None if worker is None else worker.name,
            pid=None if worker is None else worker.pid,
            queue_seconds=began - self.queued,
            run_seconds=now - began,
            correlation_id=self.correlation,
            attempts=self.attempts,
            advice=self._advice(error),
        )

    def _advice(self, error: BaseException) -> str:
        """Say what to do about an error that does not say so itself."""
        if isinstance(error, WorkerDied) and self.kind in {"call", "stream"}:
            if self.has_given:
                return "a stream is not begun again when a part of it was taken"
            if not self.idempotent:
                return "it was not tried again: a tool may be if it says @tool(idempotent=True)"
        if isinstance(error, CallTimeout):
            if self.seat is None:
                return "all workers were busy: give the pool more (resize), or the call more time"
            return "give it more time (timeout=), or let it run in the background (submit)"
        return ""

    @property
    def inside(self) -> int:
        """The host call, in the worker that does it, on behalf of which it is done; 0 for none."""
        return 0 if self.nested_in is None else self.nested_in.call_id

    def caller_of(self, _: int) -> object:
        """Return whose the calls are that it makes."""
        return None if self.caller is None else self.caller.inside


def outcome_of(error: BaseException) -> str:
    """Return the counter of work that ended with an error of the pool itself."""
    if isinstance(error, CallTimeout | QueueTimeout):
        return "timeout"
    if isinstance(error, PoolSaturated):
        return "saturated"
    if isinstance(error, ToolError) or (
        isinstance(error, Exception) and not isinstance(error, SnakepitError)
    ):
        return "error"
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "lost"


def nothing() -> None:
    """Stand in for a callback that nobody has set, or needs any more."""


class Closable(Protocol):
    """What has to be closed."""

    def close(self) -> None:
        """Close it."""


class AsyncClosable(Protocol):
    """What has to be closed, and takes its time."""

    async def aclose(self) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallContext:
    """A host call that is being served: the last link of a chain of calls.

    Attributes
    ----------
    seat, call_id
        The worker that waits for it, and its id there.
    reentrant
        Whether that worker serves other calls meanwhile.
    deadline
        `time.monotonic` at which the whole chain ends.
    thread
        The thread that drives the lane of that worker, and serves the call.
    loop
        The event loop that drives it; None when the thread itself does.
    above
        The link before.
    correlation
        Id of the outermost call of the chain.
    caller
        Whose it is, for `telemetry.begin`.
    streams, async_streams
        Streams that may run inside the worker that waits; they end with the host call.
    """

    seat: Seat
    call_id: int
    reentrant: bool
    deadline: float | None
    thread: int
    loop: asyncio.AbstractEventLoop | None
    parent: HostCallContext | None
    correlation: str
    caller: object
    streams: list[Closable] = field(default_factory=list)
    async_streams: list[AsyncClosable] = field(default_factory=list)

    @property
    def is_here(self) -> bool:
        """Whether this very thread drives the worker's lane."""
        return self.thread == threading.get_ident()


_link: ContextVar[HostCallContext | None] = ContextVar("snakepit_link", default=None)


def current_host_call() -> HostCallContext | None:
    """Return the host call that is being served here, if one is."""
    return _link.get()


def call_chain(host_call: HostCallContext | None) -> Iterator[HostCallContext]:
    """Give a chain of host calls, the innermost first."""
    while host_call is not None:
        yield host_call
        host_call = host_call.parent
