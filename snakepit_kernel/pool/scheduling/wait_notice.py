"""Waiting for a busy pool as somebody at a notebook does: until Stop, and told what for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

TELL_AFTER = 1.0
"""Seconds of waiting after which it is told."""

Tell = Callable[[str], object]

_listener: ContextVar[Tell | None] = ContextVar("snakepit_listener_to_waits", default=None)


@contextlib.contextmanager
def announcing_waits(tell: Tell) -> Iterator[None]:
    """Let calls and cells wait for a busy pool as long as futures do: by default until Ctrl-C.

    Parameters
    ----------
    tell
        Called with a sentence, in the thread that waits, when that has waited for a second.
    """
    token = _listener.set(tell)
    try:
        yield
    finally:
        _listener.reset(token)


def wait_listener() -> Tell | None:
    """Return who wants to know of waits, if somebody does in this context."""
    return _listener.get()
