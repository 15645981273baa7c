"""The breaker of a pool: whether work is let through. Pure: the time is given."""

from __future__ import annotations

from .policies import Breaker


class Circuit:
    """Opens after failures one after the other, and closes when one call goes well again.

    Parameters
    ----------
    policy
        When it opens, and for how long.

    Attributes
    ----------
    failures
        How many there were since the last success.
    last
        The last failure, in words.
    """

    def __init__(self, policy: Breaker) -> None:
        self.policy = policy
        self.last = ""
        self.failures = 0
        self._opened: float | None = None
        self._generation = 0
        self._is_tried = False

    def state(self, now: float) -> str:
        """Return ``"closed"``, ``"open"`` or ``"half-open"``."""
        if self._opened is None:
            return "closed"
        return "open" if self.seconds_left(now) > 0 else "half-open"

    def seconds_left(self, now: float) -> float:
        """Return how long nothing is let through."""
        if self._opened is None:
            return 0.0
        return max(0.0, self._opened + self.policy.seconds - now)

    def admit(self, now: float) -> int | None:
        """Let a call through; half-open that is one alone, the trial.

        Returns
        -------
        int or None
            What its end is told with; None when it is refused. The ends of calls that were let
            through before the breaker opened tell nothing.
        """
        if self._opened is not None:
            if self._is_tried or self.seconds_left(now) > 0:
                return None
            self._is_tried = True
        return self._generation

    def succeed(self, admitted: int) -> None:
        """Take in that a call went well."""
        if admitted == self._generation:
            self.failures = 0
            self._opened = None
            self._is_tried = False

    def fail(self, admitted: int, now: float, reason: str) -> None:
        """Take in that a call failed, and why."""
        if admitted != self._generation:
            return
        self.failures += 1
        self.last = reason
        if self._is_tried or self.failures >= self.policy.failures:
            self._opened = now
            self._is_tried = False
            self._generation += 1

    def abandon(self, admitted: int) -> None:
        """Take in that a call ended in a way that tells nothing: the next one may be the trial."""
        if admitted == self._generation:
            self._is_tried = False
