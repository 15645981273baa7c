"""Details of a failed call, which errors carry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A failed attempt of a call.

    Attributes
    ----------
    worker
        Name of the worker; None when it did not get one.
    category
        Category of the error: ``"died", "timeout", "queue", "start", "tool"``.
    reason
        The error, in one line.
    queue_seconds, run_seconds
        Seconds that it waited for the worker, and ran there.
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
    """The call that an error belongs to: its pool, worker, session and times.

    Attributes
    ----------
    pool
        Name of the pool.
    call
        Name of the tool or function, or ``"a cell"``.
    session
        The session; None for none.
    worker, pid
        The last worker that ran it, and its process; None when it did not get one.
    queue_seconds, run_seconds
        Seconds that it waited for that worker, and ran there.
    correlation_id
        Correlation id of the call, the same in worker, host tools and events.
    attempts
        The attempts before the last one.
    advice
        What to do about it; empty when the error itself says that.
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
        text = f"pool {self.pool!r}"
        if self.worker is not None:
            text += f", worker {self.worker} (pid {self.pid})"
        if self.session is not None:
            text += f", session {self.session!r}"
        text = f"{text}: {self.call} waited {_shown(self.queue_seconds)}"
        if self.worker is not None:
            text += f" and ran {_shown(self.run_seconds)}"
        text += f" (call {self.correlation_id})"
        for number, attempt in enumerate(self.attempts, 1):
            text += f"\nattempt {number} failed {attempt}"
        return f"{text}\n{self.advice}" if self.advice else text


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"
