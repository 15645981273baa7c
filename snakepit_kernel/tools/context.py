"""What worker code can know about the call or cell that it is."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """The session, pool and worker of a call.

    Attributes
    ----------
    session_id
        The session that the caller named, or None for anonymous work.
    pool
        Name of the pool.
    worker
        Name of the worker that runs the call.
    """

    session_id: str | None
    pool: str
    worker: str


_call: ContextVar[SessionContext] = ContextVar("snakepit_call")
_cell: SessionContext | None = None


def context() -> SessionContext:
    """Return the context of the call or cell that runs in this worker.

    Raises
    ------
    RuntimeError
        This is not a worker.
    """
    found = _call.get(_cell)
    if found is None:
        msg = "snakepit_kernel.context() works in a worker, in a tool or a cell; this is neither"
        raise RuntimeError(msg)
    return found


def enter_worker(pool: str, worker: str) -> SessionContext:
    """Make this process a worker; return the context of anonymous work in it."""
    global _cell  # noqa: PLW0603 - a process is one worker
    _cell = SessionContext(session_id=None, pool=pool, worker=worker)
    return _cell


def enter_cell(session_id: str | None) -> None:
    """Name the session of the cells that come."""
    global _cell  # noqa: PLW0603
    assert _cell is not None
    _cell = replace(_cell, session_id=session_id)


def enter_call(value: SessionContext) -> None:
    """Make a context that of the current call, in the current task."""
    _call.set(value)
