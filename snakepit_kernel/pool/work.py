"""One piece of work on its way through the pool."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from .. import telemetry
from ..errors import CallTimeout, QueueTimeout, SnakepitError
from ..telemetry.correlation import correlation_of_work
from .homes import Home
from .hosting import Link
from .scheduler import Purpose, Ticket
from .worker import Seat

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
    bounded
        Whether it counts against ``max_queue``.
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

    Attributes
    ----------
    kind
        What it is, for people: ``"call"``, ``"stream"``, ``"future"`` or ``"cell"``.
    correlation
        Id of the outermost call that it is done for.
    caller
        Whose it is, for `telemetry.emit`; None when nobody listened when it was asked for.
    asked, began
        `time.monotonic` when it was asked for, and when it last got a seat, if somebody listens.
    settled
        Whether its outcome is counted and its place given back.
    is_given_up
        Whether its caller has left while it runs.
    nested_in
        The host call inside which it runs, at a worker that waits for that; else None.
    errand
        What the pool's supervisor knows of it, when it does it.
    is_along
        Whether a conveyor has it, which gives the seat back by itself.
    """

    __slots__ = (
        "asked",
        "began",
        "bounded",
        "caller",
        "correlation",
        "deadline",
        "errand",
        "fails_fast",
        "is_along",
        "is_given_up",
        "kind",
        "link",
        "name",
        "nested_in",
        "queue_deadline",
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
        bounded: bool = True,
        slot: int | None = None,
        purpose: Purpose = "call",
        link: Link | None = None,
        home: Home[Seat] | None = None,
        fails_fast: bool = False,
    ) -> None:
        super().__init__(_nothing, session, purpose=purpose, home=home)
        self.fails_fast = fails_fast
        self.name = name
        self.kind: str = purpose
        self.correlation = correlation_of_work()
        self.caller = telemetry.here() if telemetry.is_on() else None
        self.began: float | None = None
        self.link = link
        self.nested_in: Link | None = None
        self.errand: Any = None
        self.is_along = False
        self.bounded = bounded
        self.slot = slot
        self.settled = True  # until it is admitted there is nothing to count or to give back
        self.is_given_up = False
        self.asked = time.monotonic()
        if link is not None and link.deadline is not None:
            left = max(0.0, link.deadline - self.asked)
            timeout = left if timeout is None else min(timeout, left)
        self.timeout = timeout
        self.deadline = None if timeout is None else self.asked + timeout
        wait_until = None if queue_timeout is None else self.asked + queue_timeout
        limits = [limit for limit in (self.deadline, wait_until) if limit is not None]
        self.queue_deadline = min(limits, default=None)

    @property
    def inside(self) -> int:
        """The host call, in the worker that does it, on behalf of which it is done; 0 for none."""
        return 0 if self.nested_in is None else self.nested_in.call_id

    def caller_of(self, _: int) -> object:
        """Return whose the calls are that it makes."""
        return self.caller


def outcome_of(error: BaseException) -> str:
    """Return the counter of work that ended with an error of the pool itself."""
    if isinstance(error, CallTimeout | QueueTimeout):
        return "timeout"
    if isinstance(error, Exception) and not isinstance(error, SnakepitError):
        return "error"
    if isinstance(error, KeyboardInterrupt | asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "lost"


def _nothing() -> None:
    pass
