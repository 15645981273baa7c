"""State table of a worker, and the slots with their restart back-off. Pure: no clock, no I/O."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
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


class Slots:
    """The slots of a pool, in the order in which they were added.

    Parameters
    ----------
    count
        How many there are at first.
    """

    def __init__(self, count: int) -> None:
        self._slots: dict[int, Slot] = {}
        self.add(count)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def __contains__(self, slot: Slot) -> bool:
        return self._slots.get(slot.number) is slot

    def get(self, number: int) -> Slot | None:
        """Return the slot of a number, if there is one."""
        return self._slots.get(number)

    def add(self, count: int) -> list[Slot]:
        """Add slots, with the lowest free numbers; return them."""
        free = (number for number in itertools.count(1) if number not in self._slots)
        added = [Slot(number) for number in itertools.islice(free, count)]
        self._slots |= {slot.number: slot for slot in added}
        return added

    def remove(self, slot: Slot) -> None:
        """Remove a slot."""
        del self._slots[slot.number]

    @property
    def problem(self) -> str | None:
        """Why slots are degraded, if any are; else None."""
        problems = {slot.number: slot.problem for slot in self if slot.problem}
        if not problems:
            return None
        numbers = ", ".join(map(str, sorted(problems)))
        return f"slot {numbers} is degraded: {problems[min(problems)]}"


class WorkerState(Enum):
    """State of a worker."""

    RESERVED = "reserved"
    STARTING = "starting"
    READY = "ready"
    QUARANTINED = "quarantined"  # gets no work until it is replaced
    DRAINING = "draining"  # it has a successor, and is ended when no lane is assigned any more
    TERMINATING = "terminating"  # ignores interrupts, and is killed when no lane is assigned
    STOPPING = "stopping"
    DEAD = "dead"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is a Python function

    @property
    def is_in_service(self) -> bool:
        """Whether the worker is the one that its slot is meant to have."""
        return self is WorkerState.READY or self is WorkerState.QUARANTINED

    def shown(self, *, is_held: bool) -> str:
        """Return the state as users see it: what is in service is busy while a lane is assigned."""
        if self.is_in_service:
            return "busy" if is_held else "ready"
        is_ending = self in {WorkerState.DRAINING, WorkerState.TERMINATING}
        return WorkerState.STOPPING.value if is_ending else self.value


SHOWN_STATES: Final = tuple(
    dict.fromkeys(state.shown(is_held=held) for held in (False, True) for state in WorkerState)
)
"""All states as users see them."""


class WorkerEvent(Enum):
    """What happens to a worker."""

    SPAWN = "spawn"  # its process is being started
    ANSWER = "answer"  # it has answered: its lanes can be assigned
    QUARANTINE = "quarantine"  # it is to be replaced, and is not trusted until then
    RESTORE = "restore"  # no successor could start, and it may go on
    RETIRE = "retire"  # a successor has taken its slot, or the slot is removed
    TERMINATE = "terminate"  # it ignores interrupts
    WITHDRAW = "withdraw"  # it is dying: its lanes are not assigned any more
    STOP = "stop"  # it is being ended
    EXIT = "exit"  # its process has ended

    __hash__ = object.__hash__


S, E = WorkerState, WorkerEvent

_IN_SERVICE = (S.READY, S.QUARANTINED)
_STARTED = (S.STARTING, *_IN_SERVICE)
_ENDING = (S.DRAINING, S.TERMINATING, S.STOPPING)

TRANSITIONS: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (S.RESERVED, E.SPAWN): S.STARTING,
    (S.STARTING, E.ANSWER): S.READY,
    (S.READY, E.QUARANTINE): S.QUARANTINED,
    (S.QUARANTINED, E.RESTORE): S.READY,
    (S.RESERVED, E.STOP): S.DEAD,
    (S.DEAD, E.STOP): S.DEAD,
    (S.DEAD, E.EXIT): S.DEAD,
    (S.DEAD, E.WITHDRAW): S.DEAD,
    (S.DEAD, E.TERMINATE): S.DEAD,
    # Who has a successor is ended with its grace, even if it is dying or ignores interrupts.
    **{(state, E.RETIRE): S.DRAINING for state in (*_IN_SERVICE, *_ENDING)},
    **{(state, E.TERMINATE): S.TERMINATING for state in (*_STARTED, S.TERMINATING, S.STOPPING)},
    **{(state, E.WITHDRAW): S.STOPPING for state in _STARTED},
    **{(state, E.WITHDRAW): state for state in _ENDING},
    **{(state, E.STOP): S.STOPPING for state in (*_STARTED, *_ENDING)},
    **{(state, E.EXIT): S.DEAD for state in (*_STARTED, *_ENDING)},
    (S.DRAINING, E.TERMINATE): S.DRAINING,
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
