"""Test whether work that waits for lanes waits for itself. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)


@dataclass(frozen=True, slots=True)
class LaneWait(Generic[W]):
    """The wait of one work item for a lane.

    Attributes
    ----------
    fitting
        The lanes that could carry it.
    blocked
        The lanes that are not released before it has ended: their workers wait for it.
    """

    fitting: frozenset[W]
    blocked: frozenset[W]


def would_deadlock(wait: LaneWait[W], others: Iterable[LaneWait[W]]) -> bool:
    """Whether all lanes that fit are blocked by this wait, or by others that cannot end either.

    Two strict sessions, each called from the other one's home, are such a cycle.

    Parameters
    ----------
    wait
        The wait that would begin.
    others
        The waits in progress of work that workers wait for. A wait that blocks no lane ends when
        another one does, and need not be among them.
    """
    waiting = [*others, wait]
    while True:
        blocked = frozenset[W]().union(*(each.blocked for each in waiting))
        # No lane fits at all: its worker is not there yet, or has ended, which ends the wait.
        stuck = [each for each in waiting if each.fitting and each.fitting <= blocked]
        if len(stuck) == len(waiting):
            return wait in stuck
        waiting = stuck
