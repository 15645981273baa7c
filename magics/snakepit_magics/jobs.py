"""Cells and calls that run in the background."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from snakepit_kernel import SnakepitError
from snakepit_kernel.pool.background_jobs import running_jobs
from snakepit_kernel.printable import printable
from snakepit_kernel.validation import bounded

WorkFactory = Callable[[], Coroutine[Any, Any, Any]]


class Job:
    """One cell or call in the background, with a thread that waits for it.

    Parameters
    ----------
    number
        Number of the job, for people.
    title
        First line of the cell, or the call.
    work
        Makes the coroutine that runs it. Cancelling that interrupts the worker.
    on_end
        Called with the job when it has ended, in the job's thread.

    Attributes
    ----------
    value
        Its result, once it has succeeded.
    error
        Its error, or a group of errors, if it has failed.
    """

    def __init__(
        self, number: int, title: str, work: WorkFactory, on_end: Callable[[Job], None]
    ) -> None:
        self.number = number
        self.title = title
        self.value: Any = None
        self.error: BaseException | None = None
        self._on_end = on_end
        self._started = time.monotonic()
        self._ended: float | None = None
        self._loop = asyncio.new_event_loop()
        # Its output belongs to the cell that started it, which ipykernel finds in the context: the
        # task has one copy of the context, the thread another.
        self._task: asyncio.Task[Any] = self._loop.create_task(work())
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name=f"snakepit-job-{number}",
            daemon=True,
        )

    def start(self) -> None:
        """Start the job's thread."""
        running_jobs.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._loop.run_until_complete(self._task)
        except (
            SnakepitError,
            ExceptionGroup,
            asyncio.CancelledError,
            OSError,
            TypeError,
            ValueError,
        ) as error:
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._ended = time.monotonic()
        self._on_end(self)

    def cancel(self) -> bool:
        """Interrupt the job; return whether it was still running."""
        if self._ended is not None:
            return False
        with contextlib.suppress(RuntimeError):  # it ends at this moment
            self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(bounded(timeout))

    @property
    def state(self) -> str:
        """State of the job, in one word."""
        if self._ended is None:
            return "running"
        if isinstance(self.error, asyncio.CancelledError):
            return "cancelled"
        return "done" if self.error is None else "failed"

    def __repr__(self) -> str:
        seconds = (self._ended or time.monotonic()) - self._started
        return f"job {self.number} {self.state} after {seconds:.1f} s: {printable(self.title)}"
