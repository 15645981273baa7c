"""Looking out awake for what comes soon."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter

SPIN_SECONDS = 150e-6
"""Seconds to stay awake for an answer, or for the next call."""

MAX_MISSES = 4
"""Times that nothing may come before one goes to sleep at once."""

PREEMPTED = 20e-6
"""Seconds that one look takes when another process wanted the processor, and had it."""

SKIPS = 50
"""Times that one goes to sleep at once, before staying awake is tried again."""


class SpinWait:
    """Stays awake for a moment before a wait, as long as that is worth it.

    A process that sleeps takes longer to wake than a short call takes to run, and finds the caches
    cold. So calls that follow each other closely are awaited awake, and take a third of the time.
    Whoever else wants the processor meanwhile gets it; then one sleeps, because that one goes on.
    """

    def __init__(self) -> None:
        self._misses = 0
        self._rest = 0

    def look(self, has_come: Callable[[], bool]) -> bool:
        """Look again and again, for a moment; say whether something has come."""
        if self._rest:
            self._rest -= 1
            return False
        now = perf_counter()
        until = now + SPIN_SECONDS
        while now < until:
            if has_come():
                self._misses = 0
                return True
            os.sched_yield()
            last, now = now, perf_counter()
            if now - last > PREEMPTED:
                break
        self._misses += 1
        if self._misses == MAX_MISSES:
            self._misses, self._rest = 0, SKIPS
        return False
