"""Ends children that the user's code forks in a kernel or a worker.

Such a child is a copy of its parent: when the code that has forked it ends, the child would go on
as the kernel, answer in its place, and read messages from the lane that are meant for the parent.
So a process that serves calls or cells registers a fork handler, and checks `is_child` whenever it
has run the user's code. A child ends there, as a script would, and runs or undoes nothing of its
parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from typing import NoReturn

from ..tracebacks import without_framework

is_child = False
"""Whether the user's code has forked this process from one that called `watch`."""

_is_watching = False


def watch() -> None:
    """Set `is_child` in every child that this process forks from now on."""
    global _is_watching  # noqa: PLW0603 - there is one process
    if not _is_watching:
        _is_watching = True
        os.register_at_fork(after_in_child=_begin)


def _begin() -> None:
    global is_child  # noqa: PLW0603
    is_child = True
    # Our handlers read and write which call was interrupted, in memory shared with the parent.
    handler = signal.getsignal(signal.SIGINT)
    if str(getattr(handler, "__module__", "")).startswith("snakepit_kernel."):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end(error: BaseException | None = None) -> NoReturn:
    """End this process, a forked child, with the exit status that a script would have.

    Parameters
    ----------
    error
        What the code that forked it raised, if anything; it is printed on stderr.
    """
    status = 1
    try:
        status = _report_error(error)
        sys.stdout.flush()
    finally:
        os._exit(status)


def _report_error(error: BaseException | None) -> int:
    """Print why a child ends; return its exit status."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
    else:
        trace = without_framework(error.__traceback__) or error.__traceback__
        sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))
    sys.stderr.flush()
    return 1


def end_in(loop: asyncio.AbstractEventLoop) -> None:
    """End a child that was just forked as soon as its code yields to its parent's event loop.

    This runs before any later callback of the loop: child and parent share the descriptors that the
    loop listens to, so what the child read from them would be lost to the parent.
    """
    with contextlib.suppress(RuntimeError):  # it is closed
        loop.call_soon(_end_stranded)


def _end_stranded() -> None:
    end(RuntimeError("a forked child cannot await: the event loop is its parent's"))
