"""What errors tell of the call that failed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One time that a call was made in vain.

    Attributes
    ----------
    worker
        Name of the worker; None when it did not get one.
    category
        Of the error: ``"died", "timeout", "queue", "start", "tool"``.
    reason
        The error, in one line.
    queue_seconds, run_seconds
        How long it waited for the worker, and ran there.
    """

    worker: str | None
    category: str
    reason: str
    queue_seconds: float
    run_seconds: float

    def __str__(self) -> str:
        where = f"on {self.worker}" if self.worker else "in the queue"
        return f"{where} after {self.queue_seconds + self.run_seconds:.3g} s: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDetails:
    """Whose an error is: which call of which pool, where it ran, and for how long.

    Attributes
    ----------
    pool
        Name of the pool.
    call
        Name of the tool or function, or ``"a cell"``.
    session
        The session; None for none.
    worker, pid
        The worker that had it last, and that one's process; None when it did not get one.
    queue_seconds, run_seconds
        How long it waited for that worker, and ran there.
    correlation_id
        Of the call, as worker, host tools and events have it.
    attempts
        The attempts before the last one.
    advice
        What to do about it; empty where the error itself says so.
    """

    pool: str
    call: str
    session: str | None
    worker: str | None
    pid: int | None
    queue_seconds: float
    run_seconds: float
    correlation_id: str
    attempts: tuple[Attempt, ...] = ()
    advice: str = ""

    def __str__(self) -> str:
        place = f"pool {self.pool!r}"
        if self.worker is not None:
            place += f", worker {self.worker} (pid {self.pid})"
        if self.session is not None:
            place += f", session {self.session!r}"
        text = f"{place}: {self.call} waited {_shown(self.queue_seconds)}"
        if self.worker is not None:
            text += f" and ran {_shown(self.run_seconds)}"
        text += f" (call {self.correlation_id})"
        for number, attempt in enumerate(self.attempts, 1):
            text += f"\nattempt {number} failed {attempt}"
        return f"{text}\n{self.advice}" if self.advice else text


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"
