"""Whether a worker lives, from its signs of life. Pure: the time is given."""

from __future__ import annotations

from ..recovery.policies import Heartbeat


class Vigil:
    """Watches one worker for signs of life.

    Parameters
    ----------
    policy
        How long a worker may be silent.
    now
        `time.monotonic` when it became ready.

    Attributes
    ----------
    misses
        Beats missed one after the other.
    """

    def __init__(self, policy: Heartbeat, now: float) -> None:
        self.misses = 0
        self._policy = policy
        self._last_sign = now
        self._pulse = 0
        self._cpu: float | None = None

    def silence(self, now: float) -> float:
        """Return the seconds since the last sign of life."""
        return now - self._last_sign

    def hears(self, now: float, pulse: int) -> bool:
        """Take in the worker's pulse, a number that it counts up; say whether that will do."""
        if pulse != self._pulse:
            self._pulse = pulse
            self._see_sign(now)
        return self.silence(now) <= self._policy.timeout

    def finds_dead(self, now: float, *, cpu: float, is_stopped: bool, is_busy: bool) -> bool:
        """Look at the process of a worker without a pulse; say whether it is to be given up.

        Parameters
        ----------
        now
            `time.monotonic`.
        cpu
            Seconds of CPU time that it has used.
        is_stopped
            Whether a signal has stopped it.
        is_busy
            Whether it has work, which may keep Python from running for as long as it likes.
        """
        works = is_busy or (self._cpu is not None and cpu != self._cpu)
        self._cpu = cpu
        if works and not is_stopped:
            self._see_sign(now)
        elif self.silence(now) > self._policy.timeout:
            self.misses += 1
        return self.misses >= self._policy.misses

    def _see_sign(self, now: float) -> None:
        self._last_sign = now
        self.misses = 0
