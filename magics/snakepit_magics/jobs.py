"""Cells and calls that run in the background."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import math
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator
from html import escape
from queue import Empty, SimpleQueue
from typing import Any

from snakepit_kernel import CellResult
from snakepit_kernel.locks import Lock
from snakepit_kernel.output.progress_bars import Bar, Settings, bars_cleared, open_bar
from snakepit_kernel.pool.background_jobs import running_jobs
from snakepit_kernel.pool.workers.jupyter import CellRun
from snakepit_kernel.printable import printable
from snakepit_kernel.tracebacks import hides_own_frames
from snakepit_kernel.validation import check_seconds

WorkFactory = Callable[["Job"], Coroutine[Any, Any, Any]]

TICK = 1.0
"""Seconds between updates of the time beside the bar of a job that is waited for."""


@hides_own_frames
class Job:
    """One cell or call in the background, with a thread that waits for it.

    What a cell shows appears below the cell that began it, or, while that waits, below the one that
    waits by `wait_interactive`.

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
    show
        Shows a message of the cell.
    unit, total
        What the progress bar counts: the workers that run the cell, or one call.

    Attributes
    ----------
    value
        Its result, once it has succeeded: of a cell the `CellResult`, or a list with one for each
        worker; of a call its value.
    error
        Its error, if it has failed.
    results
        The result of the cell in each worker, once it has ended, by the number of the worker.
    """

    def __init__(
        self,
        number: int,
        title: str,
        work: WorkFactory,
        on_end: Callable[[Job], None],
        *,
        show: Callable[[dict[str, Any]], None] | None = None,
        unit: str = "call",
        total: int = 1,
    ) -> None:
        self.number = number
        self.title = title
        self.value: Any = None
        self.error: BaseException | None = None
        self.results: dict[int, CellResult] = {}
        self._on_end = on_end
        self._show = show
        self._unit, self._total = unit, total
        self._runs: dict[int, CellRun] = {}  # what the cell has shown so far, by worker
        self._ended_in: set[int] = set()
        self._failed_in: set[int] = set()
        self._watching = Lock()
        self._watchers: list[SimpleQueue[Callable[[], None] | None]] = []
        self._outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._outcome.set_running_or_notify_cancel()  # so that nobody who waits can cancel it
        self._clock = time.strftime("%H:%M:%S")
        self._started = time.monotonic()
        self._ended: float | None = None
        self._loop = asyncio.new_event_loop()
        # Its output belongs to the cell that started it, which ipykernel finds in the context: the
        # task has one copy of the context, the thread another.
        self._task: asyncio.Task[Any] = self._loop.create_task(work(self))
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
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is the outcome
            self.error = error
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._ended = time.monotonic()
        if self.results:
            self._runs.clear()
        try:
            self._on_end(self)
        finally:
            self._deliver()

    def _deliver(self) -> None:
        """Tell all that wait for it."""
        error = self.error
        if isinstance(error, asyncio.CancelledError):
            error = concurrent.futures.CancelledError(f"job {self.id} was cancelled")
        if error is None:
            self._outcome.set_result(self.value)
        else:
            self._outcome.set_exception(error)
        with self._watching:
            for watcher in self._watchers:
                watcher.put(None)

    # -- what it shows -------------------------------------------------------------------------

    def take(self, message: dict[str, Any]) -> None:
        """Note and show an iopub message of the cell."""
        worker, content = message.get("worker", 0), message["content"]
        if message["msg_type"] == "error":
            self._failed_in.add(worker)
        elif content.get("execution_state") == "idle":
            self._ended_in.add(worker)
        if self._ended is None:
            run = self._runs.get(worker)
            if run is None:
                run = self._runs[worker] = CellRun("", CellResult(), None, 0)
            run.take(message)
        if (show := self._show) is not None:
            self.present(lambda: show(message))

    def present(self, show: Callable[[], None]) -> None:
        """Show something below the cell that waits for this job, or else where it was begun."""
        with self._watching:
            if self._watchers:
                self._watchers[-1].put(show)
                return
        show()

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """What the cell has shown so far, as in a notebook file; by workers if there are several.

        What a tool shows is not kept: the list is empty for a call.
        """
        shown = self.results or {worker: run.result for worker, run in self._runs.copy().items()}
        return [output for _, result in sorted(shown.items()) for output in result.outputs]

    @property
    def stdout(self) -> str:
        """What the cell has written to standard output so far."""
        return CellResult(outputs=self.outputs).stdout

    @property
    def stderr(self) -> str:
        """What the cell has written to standard error so far."""
        return CellResult(outputs=self.outputs).stderr

    # -- its outcome ---------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it has ended."""
        return self._outcome.done()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for its end; return what it has given, or raise its error as the cell would.

        Parameters
        ----------
        timeout
            Seconds to wait; None for no limit.

        Returns
        -------
        object
            Of a cell its `CellResult`; of a cell with ``--all`` a list with that of each worker; of
            a call its value.

        Raises
        ------
        CellError
            The cell, or the tool, raised.
        CancelledError
            It was cancelled.
        TimeoutError
            It has not ended in time; it goes on.
        """
        if not self.wait(timeout):
            msg = f"job {self.id} has not ended within {timeout:g} s; it goes on"
            raise TimeoutError(msg)
        if self.error is not None:
            self.error.__traceback__ = None  # of an earlier call
        return self._outcome.result()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, or for some seconds; return whether it has ended."""
        seconds = check_seconds("timeout", timeout, allow_zero=True)
        concurrent.futures.wait([self._outcome], seconds)
        return self.done()

    def wait_interactive(self, timeout: float | None = None) -> None:
        """Wait until it has ended, and show here what it shows from now on, and a progress bar.

        Stop ends the wait; the job goes on.

        Parameters
        ----------
        timeout
            Seconds to wait; None for no limit.
        """
        seconds = check_seconds("timeout", timeout, allow_zero=True)
        until = math.inf if seconds is None else time.monotonic() + seconds
        bar = open_bar(self._settings())
        try:
            with self._watched() as news:
                self._follow(news, until, bar)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"job {self.id} goes on; %snakepit cancel {self.id} ends it")
            raise
        finally:
            bar.close(self._settings())

    def _follow(self, news: SimpleQueue[Callable[[], None] | None], until: float, bar: Bar) -> None:
        """Show what comes until the job has ended, or the time is over."""
        drawn = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            try:
                show = news.get(timeout=min(left, TICK))
            except Empty:  # the time beside the bar goes on
                show = _nothing
            if show is None:
                return
            with bars_cleared():
                show()
            if time.monotonic() - drawn >= TICK:  # not with each line of output
                drawn = time.monotonic()
                bar.show(self._settings())

    @contextlib.contextmanager
    def _watched(self) -> Iterator[SimpleQueue[Callable[[], None] | None]]:
        """Let this thread show what the job shows."""
        news: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        try:
            with self._watching:
                self._watchers.append(news)
                if self.done():
                    news.put(None)
            yield news
        finally:
            with self._watching:
                self._watchers.remove(news)
            while not news.empty():
                if (show := news.get()) is not None:
                    show()

    def _settings(self) -> Settings:
        ended = self._total if self._ended is not None else min(len(self._ended_in), self._total)
        failed = max(len(self._failed_in), int(self.status == "failed"))
        return {
            "n": ended,
            "total": self._total,
            "unit": self._unit,
            "prefix": f"job {self.id}: ",
            "postfix": f"{failed} failed" if failed else None,
            "elapsed": self.seconds,
        }

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait for `result` in an event loop; cancelling the task does not cancel the job."""
        return asyncio.wrap_future(self._outcome).__await__()

    def cancel(self) -> bool:
        """Interrupt the job; return whether it was still running."""
        if self._ended is not None:
            return False
        with contextlib.suppress(RuntimeError):  # it ends at this moment
            self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    # -- looking -------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Its number, as `%snakepit jobs` lists it."""
        return self.number

    @property
    def status(self) -> str:
        """``"running"``, ``"done"``, ``"failed"`` or ``"cancelled"``."""
        if self._ended is None:
            return "running"
        if isinstance(self.error, asyncio.CancelledError):
            return "cancelled"
        return "done" if self.error is None else "failed"

    @property
    def state(self) -> str:
        """The same as `status`."""
        return self.status

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self._ended or time.monotonic()) - self._started

    def __repr__(self) -> str:
        how_long = "for" if self._ended is None else "after"
        told = f"job {self.id} {self.status} {how_long} {self.seconds:.1f} s"
        return f"{told}: {printable(self.title)}"

    def _repr_html_(self) -> str:
        title = escape(printable(self.title))
        if self._ended is not None:
            return (
                f"<div>job {self.id} <b>{self.status}</b> after {self.seconds:.1f} s: "
                f"<code>{title}</code></div>"
            )
        return (  # no duration: it stays in the notebook as it is
            f"<div>job {self.id}, begun at {self._clock}: <code>{title}</code></div>"
            f"<div><small><code>%snakepit wait {self.id}</code> shows its output here, "
            f"<code>%snakepit cancel {self.id}</code> ends it</small></div>"
        )


def _nothing() -> None:
    pass
