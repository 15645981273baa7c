"""State table of a worker, and restart back-off of its slot. Pure: no clock, no I/O."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

MAX_RESTARTS = 3
"""Immediate restarts of a slot within `RESTART_WINDOW` whose workers did no work."""

RESTART_WINDOW = 5.0
"""Seconds; a worker that lives that long, or finishes a work item, counts as a success."""

FIRST_BACKOFF = 1.0
"""Seconds that a degraded slot stays empty; doubled each further time."""

LONGEST_BACKOFF = 30.0


class Slot:
    """Restart back-off of one slot of a pool.

    Parameters
    ----------
    number
        Its number, from 1.

    Attributes
    ----------
    is_filling
        Whether a worker is being started in it.
    problem
        Why it is empty; None while it is not degraded.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_filling = False
        self.problem: str | None = None
        self._ends: deque[float] = deque()
        self._failed_starts = 0
        self._backoff = FIRST_BACKOFF
        self._backoff_until = 0.0
        self._is_on_probation = False

    def record_success(self) -> None:
        """Record that its worker did work: earlier failures no longer count."""
        self._ends.clear()
        self._failed_starts = 0
        self._backoff = FIRST_BACKOFF
        self._is_on_probation = False

    def record_failure(self, now: float, problem: str, *, has_started: bool = True) -> bool:
        """Record that a worker did not start, or ended without having done any work.

        Failed starts in a row are limited however long each takes.

        Returns
        -------
        bool
            Whether the slot is degraded now, after too many failures.
        """
        while self._ends and self._ends[0] <= now - RESTART_WINDOW:
            self._ends.popleft()
        self._ends.append(now)
        self._failed_starts = 0 if has_started else self._failed_starts + 1
        is_too_often = max(len(self._ends), self._failed_starts) > MAX_RESTARTS
        if not self._is_on_probation and not is_too_often:
            return False
        self.problem = problem
        self._backoff_until = now + self._backoff
        self._backoff = min(2 * self._backoff, LONGEST_BACKOFF)
        self._is_on_probation = True  # until a success, one more failure degrades it again
        return True

    def mark_filled(self) -> None:
        """Record that its worker is ready."""
        self.problem = None

    def backoff_left(self, now: float) -> float:
        """Return the seconds for which it stays empty."""
        return max(0.0, self._backoff_until - now)


class WorkerState(Enum):
    """State of a worker. A ready one is shown as busy while one of its lanes is assigned."""

    RESERVED = "reserved"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    DEAD = "dead"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is a Python function


BUSY: Final = "busy"
"""Shown state of a ready worker while one of its lanes is assigned."""


class WorkerEvent(Enum):
    """What happens to a worker."""

    SPAWN = "spawn"  # its process is being started
    ANSWER = "answer"  # it has answered: its lanes can be leased
    STOP = "stop"  # it is to end
    EXIT = "exit"  # its process has ended

    __hash__ = object.__hash__


S, E = WorkerState, WorkerEvent

TRANSITIONS: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (S.RESERVED, E.SPAWN): S.STARTING,
    (S.RESERVED, E.STOP): S.DEAD,
    (S.STARTING, E.ANSWER): S.READY,
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.EXIT): S.DEAD,
    (S.READY, E.STOP): S.STOPPING,
    (S.READY, E.EXIT): S.DEAD,
    (S.STOPPING, E.STOP): S.STOPPING,
    (S.STOPPING, E.EXIT): S.DEAD,
    (S.DEAD, E.STOP): S.DEAD,
    (S.DEAD, E.EXIT): S.DEAD,
}


def next_state(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """Return the state that follows an event.

    Raises
    ------
    AssertionError
        The event cannot happen in this state: our own bug.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        msg = f"a worker that is {state.value} cannot {event.value}"
        raise AssertionError(msg) from None
