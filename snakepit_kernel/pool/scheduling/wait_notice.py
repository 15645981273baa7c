"""Notices about waits for a busy pool, and waits that end only with Stop, for notebook cells."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

NOTICE_AFTER = 1.0
"""Seconds that a wait lasts before the listener is notified."""

Listener = Callable[[str], object]

_listener: ContextVar[Listener | None] = ContextVar("snakepit_listener_to_waits", default=None)


@contextlib.contextmanager
def announcing_waits(listener: Listener) -> Iterator[None]:
    """Let calls and cells wait for a busy pool as long as futures do: by default until Ctrl-C.

    Parameters
    ----------
    listener
        Called with a sentence, in the waiting thread, when it has waited for a second.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def wait_listener() -> Listener | None:
    """Return the function to notify of waits in this context, if there is one."""
    return _listener.get()
