"""Adaptive spinning before a blocking wait."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter

SPIN_SECONDS = 150e-6
"""Seconds to spin for an answer, or for the next call."""

MAX_MISSES = 4
"""Consecutive spins without success after which spinning is skipped."""

PREEMPTED_SECONDS = 20e-6
"""Seconds that one poll takes, at least, if another process got the processor meanwhile."""

SKIPS = 50
"""Waits that skip spinning before it is tried again."""


class SpinWait:
    """Spins for a moment before a blocking wait, as long as that pays off.

    A sleeping process takes longer to wake than a short call takes to run, and finds the caches
    cold. With spinning, calls that follow each other closely take a third of the time. Each poll
    yields the processor; if another process takes it, spinning stops, because that one goes on.
    """

    def __init__(self) -> None:
        self._misses = 0
        self._skips_left = 0

    def poll(self, has_arrived: Callable[[], bool]) -> bool:
        """Poll repeatedly, for a moment; return whether data has arrived."""
        if self._skips_left:
            self._skips_left -= 1
            return False
        now = perf_counter()
        until = now + SPIN_SECONDS
        while now < until:
            if has_arrived():
                self._misses = 0
                return True
            os.sched_yield()
            last, now = now, perf_counter()
            if now - last > PREEMPTED_SECONDS:
                break
        self._misses += 1
        if self._misses == MAX_MISSES:
            self._misses, self._skips_left = 0, SKIPS
        return False
