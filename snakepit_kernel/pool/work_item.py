"""One piece of work on its way through the pool."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from .. import telemetry
from ..call_details import Attempt, CallDetails
from ..errors import CallTimeout, PoolSaturated, QueueTimeout, SnakepitError, ToolError, WorkerDied
from ..protocol.frames import Segment
from ..telemetry.correlation import correlation_of_work
from .policies import category_of
from .scheduling.affinity import Home
from .scheduling.fair_queue import Bound
from .scheduling.scheduler import Purpose, QueueItem
from .workers.worker import PooledLane

OUTCOMES = ("ok", "error", "cancelled", "timeout", "saturated", "lost")
"""What may become of a piece of work: the names of its counters."""


class Request(Protocol):
    """What a piece of work asks of a worker."""

    def encode(self, lane: PooledLane, call_id: int, work: WorkItem) -> list[Segment]:
        """Lay out the frames for one worker, with the id of the call there."""


class WorkItem(QueueItem[PooledLane]):
    """One call or cell on its way through the pool.

    What is rare has its value in the class, and costs nothing until it is set.

    Parameters
    ----------
    name
        What it is, for errors and for people.
    request
        Its request; None for a cell.
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
        What it needs a lane for.
    host_call
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
        `time.monotonic` when it was asked for, and when it last got a lane; None without one.
    queued
        `time.monotonic` when its present attempt began to wait.
    attempts
        Those that failed, and were not the last.
    has_given
        Whether its caller has a chunk of it already.
    ends_as
        Its counter, where that does not follow from its error; else empty.
    finished
        Whether its outcome is counted and its lane released.
    is_given_up
        Whether its caller has left while it runs.
    admitted
        What the breaker is told its end with, see `CircuitBreaker.admit`; None without one.
    nested_in
        The host call inside which it runs, at a worker that waits for that; else None.
    is_prefetched
        Whether a pipeline has it, which releases the lane by itself.
    """

    kind: str = "call"
    caller: telemetry.Begun | None = None
    began: float | None = None
    attempts: tuple[Attempt, ...] = ()
    has_given = False
    ends_as = ""
    finished = True  # until it is admitted there is nothing to count or to release
    is_given_up = False
    admitted: int | None = None
    nested_in: HostCallContext | None = None
    is_prefetched = False
    host_call: HostCallContext | None = None
    slot: int | None = None
    fails_fast = False
    idempotent = False
    timeout: float | None = None
    deadline: float | None = None
    queue_timeout: float | None = None
    queue_deadline: float | None = None

    def __init__(
        self,
        name: str,
        request: Request | None,
        *,
        session: str | None,
        timeout: float | None,
        queue_timeout: float | None,
        bound: Bound | None = "max_queue",
        slot: int | None = None,
        purpose: Purpose = "call",
        host_call: HostCallContext | None = None,
        home: Home[PooledLane] | None = None,
        fails_fast: bool = False,
        priority: int = 0,
        idempotent: bool = False,
    ) -> None:
        self.name = name
        self.request = request
        self.session = session
        self.correlation = correlation_of_work()
        if telemetry.is_on():
            self.caller = telemetry.begin("call")
        if bound != "max_queue":
            self.bound = bound
        if purpose != "call":
            self.kind = self.purpose = purpose
        if slot is not None:
            self.slot = slot
        if home is not None:
            self.home = home
            self.fails_fast = fails_fast
        if priority:
            self.priority = priority
        if idempotent:
            self.idempotent = True
        self.asked = self.queued = time.monotonic()
        if host_call is not None:
            self.host_call = host_call
            if host_call.deadline is not None:
                left = max(0.0, host_call.deadline - self.asked)
                timeout = left if timeout is None else min(timeout, left)
        if timeout is not None:
            self.timeout = timeout
            self.deadline = self.queue_deadline = self.asked + timeout
        if queue_timeout is not None:
            self.wait_in_queue(queue_timeout)

    def encode(self, lane: PooledLane, call_id: int) -> list[Segment]:
        """Lay out its request for one worker, with the id of the call there."""
        assert self.request is not None
        return self.request.encode(lane, call_id, self)

    def _limit_wait(self) -> None:
        self.queue_deadline = self.deadline
        if self.queue_timeout is not None:
            wait_until = self.queued + self.queue_timeout
            if self.deadline is None or wait_until < self.deadline:
                self.queue_deadline = wait_until

    def wait_in_queue(self, seconds: float | None) -> None:
        """Wait for a lane for so long, from when it was queued, instead of as long as was said."""
        self.queue_timeout = seconds
        self._limit_wait()

    def begin_again(self, attempt: Attempt) -> None:
        """Be asked for once more, after an attempt that failed; the deadline stays."""
        self.attempts = (*self.attempts, attempt)
        self.lane = self.began = None
        self.nested_in = None
        self.ends_as = ""
        self.queued = time.monotonic()
        self._limit_wait()

    def attempt_that_failed(self, error: BaseException) -> Attempt:
        """Return what there is to tell of the last attempt."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        return Attempt(
            worker=None if self.lane is None else self.lane.worker.name,
            category=category_of(error),
            reason=(str(error).splitlines() or [""])[0] or type(error).__name__,
            queue_seconds=began - self.queued,
            run_seconds=now - began,
        )

    def details(self, pool: str, error: BaseException) -> CallDetails:
        """Return what an error of it tells of it, when it has ended."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        worker = None if self.lane is None else self.lane.worker
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
            if self.lane is None:
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
    lane, call_id
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

    lane: PooledLane
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
