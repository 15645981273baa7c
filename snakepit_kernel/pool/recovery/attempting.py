"""Whether a call that failed is made again. Pure: the time is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import Attempt, WorkerDied
from .policies import CrashBarrier, Retry, category_of, falls_under


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The policies of a pool, as one answer.

    Parameters
    ----------
    barrier, retry
        The policies; None for none.
    """

    barrier: CrashBarrier | None
    retry: Retry | None

    def pause(
        self,
        error: BaseException,
        earlier: Sequence[Attempt],
        *,
        idempotent: bool,
        seconds_left: float | None,
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None when there is to be none.

        Parameters
        ----------
        error
            Why the last attempt failed.
        earlier
            The attempts before that.
        idempotent
            Whether what was called may be done twice.
        seconds_left
            Until the deadline of the call; None when it has none.
        """
        backoff = self._backoff(error, earlier, idempotent=idempotent)
        if backoff is None:
            return None
        pause = backoff[min(len(earlier), len(backoff) - 1)]
        return None if seconds_left is not None and pause >= seconds_left else pause

    def _backoff(
        self, error: BaseException, earlier: Sequence[Attempt], *, idempotent: bool
    ) -> Sequence[float] | None:
        if not isinstance(error, Exception):
            return None
        category = category_of(error)
        if not idempotent and category != "queue":
            return None
        if self.barrier is not None and isinstance(error, WorkerDied):
            crashes = sum(attempt.category == "died" for attempt in earlier)
            if crashes < self.barrier.retries:
                return self.barrier.backoff
        if self.retry is None or len(earlier) + 1 >= self.retry.attempts:
            return None
        return self.retry.backoff if falls_under(error, self.retry.on) else None
