"""Cells that run in the background."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from snakepit_kernel import CellResult, SnakepitError

WorkFactory = Callable[[], Coroutine[Any, Any, list[CellResult]]]


class Job:
    """One cell in the background, with a thread that waits for it.

    Parameters
    ----------
    number
        Number of the job, for people.
    title
        First line of the cell.
    work
        Makes the coroutine that runs it.
    on_end
        Gets the job when it has ended, in the job's thread.

    Attributes
    ----------
    results
        What it gave, once it has ended well.
    error
        Why it did not.
    """

    def __init__(
        self, number: int, title: str, work: WorkFactory, on_end: Callable[[Job], None]
    ) -> None:
        self.number = number
        self.title = title
        self.results: list[CellResult] = []
        self.error: BaseException | None = None
        self._work = work
        self._on_end = on_end
        self._started = time.monotonic()
        self._ended: float | None = None
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[list[CellResult]] | None = None
        # Its output belongs to the cell that started it, which ipykernel finds in the context.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=f"snakepit-job-{number}", daemon=True
        )

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._task = self._loop.create_task(self._work())
            self.results = self._loop.run_until_complete(self._task)
        except (SnakepitError, asyncio.CancelledError, OSError, TypeError, ValueError) as error:
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._ended = time.monotonic()
        self._on_end(self)

    def cancel(self) -> bool:
        """Interrupt the cell; say whether it was still running."""
        if self._ended is not None or self._task is None:
            return False
        self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(timeout)

    @property
    def state(self) -> str:
        """How it stands, in one word."""
        if self._ended is None:
            return "running"
        if isinstance(self.error, asyncio.CancelledError):
            return "cancelled"
        if self.error is not None or not all(result.ok for result in self.results):
            return "failed"
        return "done"

    def __str__(self) -> str:
        seconds = (self._ended or time.monotonic()) - self._started
        return f"job {self.number} {self.state} after {seconds:.1f} s: {self.title}"
