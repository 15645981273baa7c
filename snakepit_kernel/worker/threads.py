"""Threads that calls and cells start: they know whose they are.

Python starts a thread with an empty context, and a pool of threads runs what one call gives it in
the thread that another one has started. So the two places where that happens are changed in a
worker: a thread has the call or cell that started it, and what is given to an executor has the one
that gave it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from ..tools.context import (
    SessionContext,
    context_of_call,
    enter_call,
    enter_thread,
    note_thread,
    starting_here,
)

Within = Callable[[], Callable[[], AbstractContextManager[None]]]


def hand_on_contexts(shown_there: Within) -> None:
    """Have threads know whose they are, in this process from now on.

    Parameters
    ----------
    shown_there
        Called where something is started: gives what it is to run within, so that what it shows
        appears in the same cell.
    """
    start: Callable[[threading.Thread], None] = threading.Thread.start
    submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_(thread: threading.Thread) -> None:
        starter = starting_here()
        if starter is None:
            start(thread)
            return
        run, within = thread.run, shown_there()

        def run_() -> None:
            vars(thread).pop("run", None)  # or the thread would refer to itself
            enter_thread(starter)
            with within():
                run()

        thread.run = run_  # type: ignore[method-assign]
        try:
            start(thread)
        except BaseException:
            vars(thread).pop("run", None)
            raise
        note_thread(starter, thread)

    @functools.wraps(submit)
    def submit_(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        giver = starting_here()
        if giver is None:
            return submit(self, fn, *args, **kwargs)
        return submit(self, _for(giver, shown_there(), fn), *args, **kwargs)

    threading.Thread.start = start_  # type: ignore[method-assign,assignment]
    ThreadPoolExecutor.submit = submit_  # type: ignore[method-assign,assignment]


def _for(
    giver: SessionContext,
    within: Callable[[], AbstractContextManager[None]],
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Make of a function one that runs on behalf of a call or cell, whichever thread runs it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before = context_of_call()
        enter_call(giver)
        try:
            with within():
                return function(*args, **kwargs)
        finally:
            enter_call(before)

    return run
