"""Correlation ids: one for a call of the notebook and for all that comes of it.

The id is minted for the outermost call. It travels to the worker and back with host calls; what a
tool or a host tool asks for in its turn has the same one.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar, Token

from ..errors import SnakepitError
from .spans import SDK, trace_id

METADATA_KEY = "snakepit_correlation_id"
"""Where the metadata of a cell's request has it."""

_served: ContextVar[str] = ContextVar("snakepit_correlation", default="")
_source: Callable[[], str] | None = None  # of what runs in this process, if it is a worker
_prefix: str
_next: Callable[[], int]
_modules = sys.modules


def correlation_id() -> str:
    """Return the id of the call that this code works for; empty outside of any.

    In a worker that is the call or cell that runs, in the notebook the call whose host tool runs.
    """
    return _served.get() or ("" if _source is None else _source())


def correlation_of_work() -> str:
    """Return the id of a new piece of work: that of what it is done for, or a new one.

    A caller inside of a span that OpenTelemetry records gets the id of its trace.
    """
    known = _served.get() or (_source is not None and _source())
    return known or (SDK in _modules and trace_id()) or f"{_prefix}{_next()}"


def serve(value: str) -> Token[str]:
    """Make an id that of the code that runs from now on in this context, until `leave`."""
    return _served.set(value)


def leave(token: Token[str]) -> None:
    """Go back to what was before `serve`."""
    _served.reset(token)


def follow(source: Callable[[], str]) -> None:
    """Ask a function for the id of what runs in this process, which is a worker."""
    global _source  # noqa: PLW0603 - a process is one worker
    _source = source


def stamp(error: BaseException | None, value: str) -> None:
    """Note in an error of this package which call it is of."""
    if isinstance(error, SnakepitError):
        error.correlation_id = value


def _begin() -> None:
    """Mint ids that no other process has."""
    global _prefix, _next  # noqa: PLW0603
    _prefix = f"{os.urandom(6).hex()}-"
    _next = itertools.count(1).__next__


_begin()
os.register_at_fork(after_in_child=_begin)
