"""The life of a worker, as a table."""

from __future__ import annotations

from enum import Enum
from typing import Final


class WorkerState(Enum):
    """Where a worker is in its life."""

    RESERVED = "reserved"
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    DEAD = "dead"

    __hash__ = object.__hash__  # members are singletons; Enum's own hash is a Python function


LENDABLE: Final = frozenset({WorkerState.READY, WorkerState.BUSY})
"""The states of a worker that may be lent, if one of its places is free."""


class WorkerEvent(Enum):
    """What happens to a worker."""

    SPAWN = "spawn"  # its process is being started
    ANSWER = "answer"  # it has answered: it can be lent
    LEND = "lend"  # a call or cell takes it
    GIVE_BACK = "give back"  # the call or cell has ended
    STOP = "stop"  # it is not wanted any more
    EXIT = "exit"  # its process has ended

    __hash__ = object.__hash__


S, E = WorkerState, WorkerEvent

TRANSITIONS: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    (S.RESERVED, E.SPAWN): S.STARTING,
    (S.RESERVED, E.STOP): S.DEAD,
    (S.STARTING, E.ANSWER): S.READY,
    (S.STARTING, E.STOP): S.STOPPING,
    (S.STARTING, E.EXIT): S.DEAD,
    (S.READY, E.LEND): S.BUSY,
    (S.READY, E.STOP): S.STOPPING,
    (S.READY, E.EXIT): S.DEAD,
    (S.BUSY, E.GIVE_BACK): S.READY,
    (S.BUSY, E.STOP): S.STOPPING,
    (S.BUSY, E.EXIT): S.DEAD,
    # Who holds a worker gives it back however it fared meanwhile.
    (S.STOPPING, E.GIVE_BACK): S.STOPPING,
    (S.STOPPING, E.STOP): S.STOPPING,
    (S.STOPPING, E.EXIT): S.DEAD,
    (S.DEAD, E.GIVE_BACK): S.DEAD,
    (S.DEAD, E.STOP): S.DEAD,
    (S.DEAD, E.EXIT): S.DEAD,
}


def next_state(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """Return the state that follows.

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
