"""Propagation of a call's or cell's context to the threads that it starts.

Python starts a thread with an empty context, and an executor runs the function of one call in the
thread that another one has started. So both places are patched in a worker: a thread gets the
context of the call or cell that started it, and a submitted function that of its submitter.
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
    record_thread,
    set_starter,
    starter_of_here,
)

Within = Callable[[], Callable[[], AbstractContextManager[None]]]


def propagate_contexts(current_cell: Within) -> None:
    """Patch threads and executors of this process to propagate contexts.

    Parameters
    ----------
    current_cell
        Called where a thread or function is started: returns a context manager factory under which
        it runs, so that its output appears in the same cell.
    """
    start: Callable[[threading.Thread], None] = threading.Thread.start
    submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit

    @functools.wraps(start)
    def start_(thread: threading.Thread) -> None:
        starter = starter_of_here()
        if starter is None:
            start(thread)
            return
        run, within = thread.run, current_cell()

        def run_() -> None:
            vars(thread).pop("run", None)  # or the thread would refer to itself
            set_starter(starter)
            with within():
                run()

        thread.run = run_  # type: ignore[method-assign]
        try:
            start(thread)
        except BaseException:
            vars(thread).pop("run", None)
            raise
        record_thread(starter, thread)

    @functools.wraps(submit)
    def submit_(
        self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        submitter = starter_of_here()
        if submitter is None:
            return submit(self, fn, *args, **kwargs)
        return submit(self, _in_context_of(submitter, current_cell(), fn), *args, **kwargs)

    threading.Thread.start = start_  # type: ignore[method-assign,assignment]
    ThreadPoolExecutor.submit = submit_  # type: ignore[method-assign,assignment]


def _in_context_of(
    submitter: SessionContext,
    within: Callable[[], AbstractContextManager[None]],
    function: Callable[..., Any],
) -> Callable[..., Any]:
    """Wrap a function to run in the context of a call or cell, in any thread."""

    def run(*args: Any, **kwargs: Any) -> Any:
        before = context_of_call()
        enter_call(submitter)
        try:
            with within():
                return function(*args, **kwargs)
        finally:
            enter_call(before)

    return run
