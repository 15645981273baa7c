"""Children that code of the user forks in a kernel or a worker.

Such a child is a copy of its parent: when the code that has forked it comes to its end, it would
go on as the kernel, answer in its place, and take from the lane what is meant for it. So a process
that serves calls or cells watches for that, and who has run code of the user asks afterwards
whether this is a child. A child ends there, as a script would, and nothing of its parent's is run
or undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from types import TracebackType
from typing import NoReturn

is_child = False
"""Whether code of the user has forked this process from one that watched."""

FRAMEWORK = frozenset({"snakepit_kernel", "ipykernel", "IPython", "asyncio"})
"""Packages whose frames stand in a traceback above those of the user."""

_is_watching = False


def watch() -> None:
    """Note from now on when this process is forked."""
    global _is_watching  # noqa: PLW0603 - there is one process
    if not _is_watching:
        _is_watching = True
        os.register_at_fork(after_in_child=_begin)


def _begin() -> None:
    global is_child  # noqa: PLW0603
    is_child = True
    # Our handlers compare and note which call was interrupted, in memory that the parent shares.
    handler = signal.getsignal(signal.SIGINT)
    if str(getattr(handler, "__module__", "")).startswith("snakepit_kernel."):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end(error: BaseException | None = None) -> NoReturn:
    """End this process, a child, with the status that a script has.

    Parameters
    ----------
    error
        What the code raised that has forked it, if it did: it is told on stderr.
    """
    status = 1
    try:
        status = _tell(error)
        sys.stdout.flush()
    finally:
        os._exit(status)


def _tell(error: BaseException | None) -> int:
    """Tell why a child ends; return its status."""
    if error is None:
        return 0
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
    else:
        trace = _of_user(error.__traceback__)
        sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))
    sys.stderr.flush()
    return 1


def _of_user(trace: TracebackType | None) -> TracebackType | None:
    """Leave the frames out that have led to the user's code."""
    inner = trace
    while inner is not None and _package(inner) in FRAMEWORK:
        inner = inner.tb_next
    return inner or trace


def _package(trace: TracebackType) -> str:
    return str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def end_in(loop: asyncio.AbstractEventLoop) -> None:
    """End a child, which begins in this moment, when its code gives way to its parent's event loop.

    It comes before all that happens there later: child and parent share what the loop listens to,
    so what the child took of that would be missing to the parent.
    """
    with contextlib.suppress(RuntimeError):  # it is closed
        loop.call_soon(_end_stranded)


def _end_stranded() -> None:
    end(RuntimeError("a forked child cannot await: the event loop is its parent's"))
