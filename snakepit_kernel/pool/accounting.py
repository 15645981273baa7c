"""Counts of a pool's work, and whether the pool accepts more of it."""

from __future__ import annotations

import threading
import time

from ..errors import BreakerOpen, PoolClosed
from ..locks import Condition
from .config import PoolConfig
from .policies import CircuitBreaker, falls_under
from .scheduling.scheduler import Scheduler
from .status import OUTCOMES
from .work_item import WorkItem
from .workers.worker import PooledLane

COUNTERS = ("submitted", *OUTCOMES, "retried")

DRAINING = "it is draining, and takes no new work until resume()"


class Accounting:
    """Counts a pool's work by its outcomes, and tells why the pool accepts no more.

    The dispatcher changes the counts in place, with the pool's lock held: what belongs together is
    assigned there without a call in between, at which Ctrl-C could come.

    Parameters
    ----------
    config
        The pool's options.
    lock
        The pool's lock, which guards everything here.
    scheduler
        Has the queue of the pool.

    Attributes
    ----------
    lock
        The pool's lock.
    counters
        The number of work items by outcome, of those submitted, and of attempts retried.
    pending
        Number of unfinished work items.
    pending_by_session
        The same for each session that has any.
    sessions
        The sessions that the pool has done work for.
    quiet
        Is notified when no unfinished item is left.
    awaiting_quiet
        Number of threads that wait for that.
    circuit
        The circuit breaker, if the pool has one.
    closed_because
        Why the pool accepts no more work; None while it does.
    is_draining
        Whether it accepts no new work until `resume`.
    """

    def __init__(
        self, config: PoolConfig, lock: threading.RLock, scheduler: Scheduler[PooledLane]
    ) -> None:
        self.lock = lock
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.pending = 0
        self.pending_by_session: dict[str, int] = {}
        self.sessions: dict[str, None] = {}
        self.quiet = Condition(lock)
        self.awaiting_quiet = 0
        self.circuit = CircuitBreaker(config.breaker) if config.breaker is not None else None
        self.closed_because: str | None = None
        self.is_draining = False
        self._pool = config.name
        self._scheduler = scheduler

    # -- status --------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the counters, and the numbers of queued and of running work items."""
        with self.lock:
            waiting = self._scheduler.waiting
            return {**self.counters, "queued": waiting, "running": self.pending - waiting}

    def problem(self) -> str | None:
        """Return why the pool refuses some or all work; None while it accepts all."""
        if self.closed_because is not None:
            return self.closed_because
        if self.is_draining:
            return DRAINING
        now = time.monotonic()
        if self.circuit is None or (state := self.circuit.state(now)) == "closed":
            return None
        return f"its breaker is {state}: {self.circuit.last}"

    def working_sessions(self) -> set[str]:
        """Return the sessions with queued or running work."""
        with self.lock:
            return set(self.pending_by_session)

    # -- the circuit breaker -------------------------------------------------------------------

    def ask_breaker(self, circuit: CircuitBreaker, work: WorkItem) -> None:
        """Let the circuit breaker admit a work item.

        Raises
        ------
        BreakerOpen
            It refuses the work.
        """
        now = time.monotonic()
        work.admitted = circuit.admit(now)
        if work.admitted is None:
            left = circuit.seconds_left(now)
            raise BreakerOpen(self._pool, circuit.failures, left, circuit.last)

    def tell_breaker(self, work: WorkItem, outcome: str, error: BaseException | None) -> None:
        """Report the outcome of work to the circuit breaker, if that has admitted it."""
        circuit, admitted = self.circuit, work.admitted
        if circuit is None or admitted is None:
            return
        if outcome == "ok":
            circuit.succeed(admitted)
        elif outcome != "cancelled" and error is not None and falls_under(error, circuit.policy.on):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            circuit.fail(admitted, time.monotonic(), reason)
        else:
            circuit.abandon(admitted)

    # -- until nothing is left -----------------------------------------------------------------

    def drain(self, timeout: float | None) -> bool:
        """Accept no new work until `resume`; return whether all accepted work ended in time."""
        self.is_draining = True
        self.wait_until_quiet(timeout)
        return self.pending == 0

    def resume(self) -> None:
        """Accept work again."""
        if self.closed_because is not None:
            raise PoolClosed(self._pool, self.closed_because)
        self.is_draining = False

    def wait_until_quiet(self, timeout: float | None = None) -> None:
        """Wait until nothing is queued or running, or for a timeout in seconds."""
        with self.lock:
            self.awaiting_quiet += 1
            try:
                self.quiet.wait_for(lambda: self.pending == 0, timeout)
            finally:
                self.awaiting_quiet -= 1
