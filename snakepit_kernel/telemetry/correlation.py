"""Correlation ids: one for a call of the notebook and all calls made on its behalf.

The id is generated for the outermost call. It is sent to the worker, and back with host calls;
calls that a tool or a host tool makes in turn have the same id.
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
"""Key of the id in the metadata of a cell's request."""

_served: ContextVar[str] = ContextVar("snakepit_correlation", default="")
_source: Callable[[], str] | None = None  # returns the id in a worker
_prefix: str
_next: Callable[[], int]
_modules = sys.modules


def correlation_id() -> str:
    """Return the id of the call that this code runs for; empty outside of any.

    In a worker that is the running call or cell, in the notebook the call whose host tool runs.
    """
    return _served.get() or ("" if _source is None else _source())


def correlation_of_work() -> str:
    """Return the id for a new call or cell: that of the current call, or a new one.

    Within a span that OpenTelemetry records, a new id is that of its trace.
    """
    known = _served.get() or (_source is not None and _source())
    return known or (SDK in _modules and trace_id()) or f"{_prefix}{_next()}"


def serve(value: str) -> Token[str]:
    """Set the id of the code that runs in this context, until `leave`."""
    return _served.set(value)


def leave(token: Token[str]) -> None:
    """Restore the id from before `serve`."""
    _served.reset(token)


def follow(source: Callable[[], str]) -> None:
    """Set the function that returns the current id in this process, which is a worker."""
    global _source  # noqa: PLW0603 - a process is one worker
    _source = source


def stamp(error: BaseException | None, value: str) -> None:
    """Set the correlation id of an error, if it is one of this package."""
    if isinstance(error, SnakepitError):
        error.correlation_id = value


def _begin() -> None:
    """Start a sequence of ids that is unique to this process."""
    global _prefix, _next  # noqa: PLW0603
    _prefix = f"{os.urandom(6).hex()}-"
    _next = itertools.count(1).__next__


_begin()
os.register_at_fork(after_in_child=_begin)
