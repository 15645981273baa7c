"""Advice for a `NameError`: where in this worker the name exists."""

from __future__ import annotations

from ..tools.registry import ToolRegistry
from .session_isolation import SessionIsolation


def add_name_advice(
    error: BaseException | None,
    isolation: SessionIsolation,
    registry: ToolRegistry,
    *,
    is_of_cell: bool,
) -> None:
    """Add a note to the error of a call or cell that uses a name which exists elsewhere.

    Parameters
    ----------
    error
        What it raised.
    isolation
        Has the names of each session.
    registry
        Has the tools.
    is_of_cell
        Whether a cell raised it: it sees the names of its session; a function sees none of them.
    """
    if not isinstance(error, NameError) or isinstance(error, UnboundLocalError) or not error.name:
        return
    name = error.name
    found = isolation.sessions_with(name)
    if is_of_cell:
        found = [session for session in found if session != isolation.current]
    if found:
        note = _for_cell(name, found[0]) if is_of_cell else _for_call(name, found[0])
    elif registry.has(name):
        note = f"{name!r} is a tool: pool.tools.{name}(…) in the notebook calls it."
    else:
        return
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _for_cell(name: str, session: str | None) -> str:
    if session is None:
        return (
            f"{name!r} is defined in this worker by work of no session: pool.run(…) sees it, and "
            "pool.push(…) sets it there."
        )
    return (
        f"{name!r} is defined in this worker in the session {session!r}: "
        f"pool.session({session!r}).run(…) sees it, and so does %%snakepit --session {session}."
    )


def _for_call(name: str, session: str | None) -> str:
    where = "without a session" if session is None else f"in the session {session!r}"
    return (
        f"{name!r} was defined by a cell of this worker {where}. Functions and tools do not see "
        "the names of cells: pass it as an argument."
    )
