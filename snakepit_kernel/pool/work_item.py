"""Work items of a pool: a call or a cell from its admission to its outcome."""

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
from ..lane.exchange import Exchange
from ..protocol.frames import Segment
from ..redaction import redacted
from ..telemetry.correlation import correlation_of_work
from .policies import category_of
from .scheduling.affinity import Home
from .scheduling.fair_queue import Bound
from .scheduling.scheduler import Purpose, QueueItem
from .status import RunningCall
from .workers.worker import PooledLane


class Request(Protocol):
    """The request that a work item sends to a worker.

    Attributes
    ----------
    home
        The only worker that it can be sent to; None for any.
    """

    home: Home[PooledLane] | None

    def encode(self, lane: PooledLane, call_id: int, work: WorkItem) -> list[Segment]:
        """Encode the request for a lane, with the call's id there."""


class WorkItem(QueueItem[PooledLane]):
    """One call or cell from its admission to its outcome.

    Rarely used attributes have their defaults in the class, and cost nothing until they are set.

    Parameters
    ----------
    name
        A name for errors and status displays.
    request
        The request to send; None for a cell.
    session
        The session that it belongs to.
    timeout
        Seconds for queueing, execution and reply together.
    queue_timeout
        Seconds that it may wait for a lane.
    bound
        The queue limit that it counts against.
    slot
        The slot whose worker must run it; None for any.
    purpose
        The kind of lane that it needs.
    host_call
        The host call that it is made from, if any.
    home
        The home of its session, if it is bound to one.
    fails_fast
        Whether it is refused instead of waiting for its home.
    priority
        Higher is served first.
    idempotent
        Whether it may run twice.

    Attributes
    ----------
    kind
        Its kind, for display: ``"call"``, ``"stream"``, ``"future"`` or ``"cell"``.
    correlation
        Id of the outermost call that it is part of.
    caller
        Its span, for `telemetry.emit`; None if telemetry was off when it was created.
    asked, began
        `time.monotonic` of its creation, and of its last lane assignment; None without a lane.
    queued
        `time.monotonic` at which the current attempt was queued.
    attempts
        The failed attempts that were retried.
    has_given
        Whether its caller has received a chunk of it.
    ends_as
        Its counter, where that does not follow from its error; else empty.
    finished
        Whether its outcome is counted and its lane released.
    is_given_up
        Whether its caller was cancelled while it runs.
    admitted
        The breaker's token for reporting the outcome, see `CircuitBreaker.admit`; None without one.
    nested_in
        The host call inside which it runs, on the worker that waits for that call; else None.
    is_prefetched
        Whether a pipeline has it, which releases the lane itself.
    title
        What status displays call it, where that is not its name: the first line of a cell.
    only
        The lane of the one process that can run it, where that is not any process of its slot.
    """

    kind: str = "call"
    title = ""
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
    only: PooledLane | None = None
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
        """Encode its request for a lane, with the call's id there."""
        assert self.request is not None
        return self.request.encode(lane, call_id, self)

    def running(self) -> RunningCall:
        """Describe it for status displays, while it has a lane."""
        now = time.monotonic()
        name = redacted(self.title) or self.name
        return RunningCall(name, self.session, now - (now if self.began is None else self.began))

    def _limit_wait(self) -> None:
        self.queue_deadline = self.deadline
        if self.queue_timeout is not None:
            wait_until = self.queued + self.queue_timeout
            if self.deadline is None or wait_until < self.deadline:
                self.queue_deadline = wait_until

    def wait_in_queue(self, seconds: float | None) -> None:
        """Replace its queue timeout: seconds from when it was queued; None for no limit."""
        self.queue_timeout = seconds
        self._limit_wait()

    def begin_again(self, attempt: Attempt) -> None:
        """Start another attempt after a failed one; the deadline stays."""
        self.attempts = (*self.attempts, attempt)
        self.lane = self.began = None
        self.nested_in = None
        self.ends_as = ""
        self.queued = time.monotonic()
        self._limit_wait()

    def attempt_that_failed(self, error: BaseException) -> Attempt:
        """Return a record of the last attempt, which failed."""
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
        """Return the details that its error carries, after it has ended."""
        now = time.monotonic()
        began = now if self.began is None else self.began
        worker = None if self.lane is None else self.lane.worker
        return CallDetails(
            pool=pool,
            call=self.name,
            session=self.session,
            worker=None if worker is None else worker.name,
            pid=None if worker is None else worker.process.pid,
            queue_seconds=began - self.queued,
            run_seconds=now - began,
            correlation_id=self.correlation,
            attempts=self.attempts,
            advice=self._advice(error),
        )

    def _advice(self, error: BaseException) -> str:
        """Return a hint for an error whose own text has none; else an empty string."""
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

    def late_error(self, pool: str) -> SnakepitError:
        """Return its error after it was queued for too long in a pool."""
        if self.timeout is not None and self.queue_deadline == self.deadline:
            return CallTimeout(self.name, self.timeout)
        return QueueTimeout(pool, time.monotonic() - self.queued)

    @property
    def inside(self) -> int:
        """Id, in the worker that runs it, of the host call that it is made for; 0 for none."""
        return 0 if self.nested_in is None else self.nested_in.call_id

    def caller_of(self, _: int) -> object:
        """Return the span that is the parent of the calls that it makes."""
        return None if self.caller is None else self.caller.inside


def outcome_of(error: BaseException) -> str:
    """Return the counter of a work item that ended with an error."""
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
    """An object with a blocking `close`."""

    def close(self) -> None:
        """Close it."""


class AsyncClosable(Protocol):
    """An object with an asynchronous `aclose`."""

    async def aclose(self) -> None:
        """Close it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCallContext:
    """A host call in progress: the innermost of a chain of calls.

    Attributes
    ----------
    lane, call_id
        The lane of the worker that waits for it, and its id there.
    reentrant
        Whether that worker serves other calls meanwhile.
    deadline
        `time.monotonic` at which the whole chain times out.
    thread
        The thread that drives that lane, and serves the call.
    loop
        The event loop that drives the lane; None when the thread does so itself.
    parent
        The enclosing host call, if any.
    correlation
        Id of the outermost call of the chain.
    caller
        The parent span, for `telemetry.begin`.
    exchange
        Of the call that makes it.
    streams, async_streams
        Streams that may run inside the waiting worker; they are closed when the host call ends.
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
    exchange: Exchange
    streams: list[Closable] = field(default_factory=list)
    async_streams: list[AsyncClosable] = field(default_factory=list)

    @property
    def is_here(self) -> bool:
        """Whether the current thread drives the worker's lane."""
        return self.thread == threading.get_ident()


_host_call: ContextVar[HostCallContext | None] = ContextVar("snakepit_link", default=None)


def current_host_call() -> HostCallContext | None:
    """Return the host call that is being served in this context, if any."""
    return _host_call.get()


def call_chain(host_call: HostCallContext | None) -> Iterator[HostCallContext]:
    """Iterate over a chain of host calls, the innermost first."""
    while host_call is not None:
        yield host_call
        host_call = host_call.parent
