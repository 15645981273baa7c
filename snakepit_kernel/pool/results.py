"""Results of work in a pool: cell results, futures of calls, and streams."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import math
import re
import reprlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING
from dataclasses import dataclass, field
from numbers import Real
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ..errors import CellError
from ..locks import Condition, RLock
from ..output.display import Display
from ..output.progress_bars import Settings
from ..printable import printable
from ..processes.concurrency import LoopThread
from ..tracebacks import hide_own_frames, hides_own_frames
from ..validation import bounded

MAX_REPR = 400
"""Characters of the repr of a cell's result."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

_STREAM_STATES = {
    inspect.GEN_CREATED: "not begun",
    inspect.GEN_RUNNING: "running",
    inspect.GEN_SUSPENDED: "begun",
    inspect.GEN_CLOSED: "at its end",
}


@hides_own_frames
@dataclass(slots=True, kw_only=True, repr=False)
class CellResult:
    """The result of a cell that ran in a worker.

    Attributes
    ----------
    outputs
        The cell's outputs in order, as in a notebook file (nbformat 4 output dictionaries);
        consecutive texts of one stream are one output.
    error
        The exception that ended the cell, or None.
    value
        The value of the cell's last expression, or None. If it cannot be pickled, the error is in
        `CellResult.value_error`, and its text is in ``outputs`` all the same.
    pulled
        The variables requested by ``pull``, by name.
    value_error
        Why ``value`` could not be sent back, or None.
    execution_count
        The worker's prompt number.
    worker
        Name of the worker that ran it.
    pages
        The cell's output for the pager, such as that of ``len?``: dictionaries by MIME type.
    """

    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: CellError | None = None
    value: Any = None
    value_error: Exception | None = None
    pulled: dict[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    worker: str = ""
    pages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the cell ended without an exception."""
        return self.error is None

    def check(self) -> CellResult:
        """Raise the cell's exception if there is one; else return this result.

        Raises
        ------
        CellError
            The cell raised. In a notebook it shows the worker's traceback; elsewhere that is a
            note of the exception.
        """
        return checked(self)

    @property
    def stdout(self) -> str:
        """What the cell wrote to standard output."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """What the cell wrote to standard error."""
        return self._stream("stderr")

    def __repr__(self) -> str:
        told = [f"of {self.worker}"] if self.worker else []
        if self.error is not None:
            told.append(f"{self.error.type_name}: {self.error.message}")
        elif self.value is not None:
            told.append(f"value {reprlib.repr(self.value)}")
        elif self.value_error is not None:
            told.append(f"a value that could not be sent: {self.value_error}")
        streams = {name: self._stream(name) for name in ("stdout", "stderr")}
        told += [f"{name} {reprlib.repr(text)}" for name, text in streams.items() if text]
        shown = sum(output["output_type"] == "display_data" for output in self.outputs)
        if shown:
            told.append(f"{shown} displayed")
        state = "ok" if self.ok else "failed"
        return printable(f"<CellResult {', '.join([state, *told])}>", limit=MAX_REPR)

    def _stream(self, name: str) -> str:
        return "".join(
            output["text"]
            for output in self.outputs
            if output["output_type"] == "stream" and output["name"] == name
        )


def checked(result: CellResult) -> CellResult:
    """Do what `CellResult.check` does."""
    error = result.error
    if error is None:
        return result
    text = plain_traceback(error).strip()
    note = f"in worker {result.worker}:\n{text}"
    if text and note not in getattr(error, "__notes__", ()):
        error.add_note(note)  # for those who show exceptions as Python does
    error.__traceback__ = None  # of an earlier call
    raise error


def plain_traceback(error: CellError) -> str:
    """Return the traceback of a cell without its colours."""
    return _COLOUR.sub("", "\n".join(error.traceback))


T = TypeVar("T")


class FutureCall(Protocol):
    """The call of a future, until it has ended."""

    def cancel(self) -> None:
        """Stop the call, whose future was cancelled."""

    def fetch(self, seconds: float) -> None:
        """Let this thread, which waits for the outcome, get it if it comes within some seconds."""


class CallFuture(concurrent.futures.Future[T]):
    """A future of a call, whose `cancel` also stops a call that is running.

    A queued call is removed from the queue and never runs. A running one is interrupted; the
    future is cancelled at once, and the worker serves others as soon as the call has stopped.

    Attributes
    ----------
    correlation_id
        Correlation id of the call, the same in its worker, its host tools and its events.
    keeper
        The event loop thread that delivers the outcome.
    call
        The call; None once it has ended.
    """

    correlation_id: str = ""
    keeper: LoopThread | None = None
    call: FutureCall | None = None
    _is_running = False

    def __init__(self) -> None:
        # Not the base class's: there may be many thousands, and for most of them nobody ever needs
        # its condition and its lists. `__getattr__` makes them when they are needed.
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in _SHARED:
            msg = f"a CallFuture has no attribute {name!r}"
            raise AttributeError(msg)
        namespace = vars(self)
        made = {"_waiters": [], "_done_callbacks": [], "_condition": Condition()}
        with _making:  # nothing is made here: the garbage collector would run code of others
            if name not in namespace:
                namespace.update(made)
        return namespace[name]

    def cancel(self) -> bool:
        """Cancel the call; return whether it is cancelled: False if it had ended before."""
        with self._condition:
            if self.cancelled():
                return True
            if self.done():
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self._invoke_callbacks()
        if (call := self.call) is not None:
            call.cancel()
        return True

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome; return the value, or raise the exception.

        Parameters
        ----------
        timeout
            Seconds, up to infinity; None for no limit.

        Raises
        ------
        TimeoutError
            There was no outcome in time.
        RuntimeError
            It was called in the pool's own thread, by the callback of a future or while a result
            is unpickled: the thread would wait for itself. Or in a forked child, which has no part
            of the pool.
        """
        try:
            self._wait(timeout)
            if self._state == FINISHED and self._exception is None:
                value: T = self._result
                return value
            if self._exception is not None:
                self._exception.__traceback__ = None  # of an earlier call
            return super().result(0)
        except BaseException as error:
            hide_own_frames(error)
            raise
        finally:
            self = None  # type: ignore[assignment] # noqa: PLW0642 - the traceback has this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome; return the exception, or None. Otherwise the same as `result`."""
        try:
            self._wait(timeout)
            return super().exception(0)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def _wait(self, timeout: float | None) -> None:
        """Wait until there is an outcome, or for some seconds."""
        if self.done():
            return
        self._check_wait(timeout)
        timeout = bounded(timeout)
        until = math.inf if timeout is None else time.monotonic() + timeout
        if (call := self.call) is not None and (timeout is None or timeout > 0):
            call.fetch(math.inf if timeout is None else timeout)
            if self.done():
                return
        with self._condition:
            self._condition.wait_for(
                self.done, None if timeout is None else until - time.monotonic()
            )

    def _check_wait(self, timeout: float | None) -> None:
        if self.keeper is None or (timeout is not None and timeout <= 0):
            return
        if not self.keeper.is_here and not self.done():
            msg = "the pool of this future belongs to another process, of which this one is a fork"
            raise RuntimeError(msg)
        if self.keeper.is_current:
            msg = (
                "this code runs in the pool's own thread, as callbacks of futures and __setstate__ "
                "of results do, and would wait for a result that this very thread has to bring. "
                "pool.call() and pool.run() work here while a worker is free; a future's result is "
                "for another thread, or for a callback of that future (add_done_callback)"
            )
            raise RuntimeError(msg)

    def __await__(self) -> Generator[Any, None, T]:
        """Wait for the outcome in an event loop; cancelling the task cancels the call."""
        return asyncio.wrap_future(self).__await__()

    def done(self) -> bool:
        """Whether there is an outcome, or the call was cancelled."""
        return self._state != PENDING

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._state == CANCELLED_AND_NOTIFIED

    def running(self) -> bool:
        """Whether the call has been sent to a worker, and has not ended."""
        return self._is_running and not self.done()

    def begin(self) -> bool:
        """Mark the call as running; return whether it is still wanted: not cancelled."""
        self._is_running = True
        return not self.cancelled()

    def wait_again(self) -> bool:
        """Mark the call as queued again; return whether it is still wanted: not cancelled."""
        self._is_running = False
        return not self.cancelled()

    def deliver(self, value: Any = None, exception: BaseException | None = None) -> None:
        """Set the outcome, unless the future was cancelled."""
        if self.deliver_unnoticed(value, exception):
            return
        with self._condition:
            if self.done():
                return
            self._result, self._exception, self._state = value, exception, FINISHED
            for waiter in self._waiters:
                waiter.add_result(self) if exception is None else waiter.add_exception(self)
            self._condition.notify_all()
        self._invoke_callbacks()

    def deliver_unnoticed(self, value: Any, exception: BaseException | None = None) -> bool:
        """Set the outcome if nobody is to be notified, nor was; return whether it was set."""
        namespace = vars(self)
        with _making:
            if self._state != PENDING or "_condition" in namespace:
                return False
            self._result, self._exception, self._state = value, exception, FINISHED
            return True


_SHARED = frozenset({"_condition", "_waiters", "_done_callbacks"})
"""What those who wait for a future share with the thread that delivers its outcome."""

_making = RLock()
"""Held while these are made, and while an outcome is set because they are not."""


@hides_own_frames
class Stream(Iterator[Any]):
    """The chunks of a streaming tool, in order.

    The tool starts when the first chunk is requested, and never runs further ahead than the
    stream's ``room``. Leaving the stream before its end, by ``break``, by `close` or by dropping
    the last reference to it, closes the generator in the worker, whose ``finally`` runs then.

    Parameters
    ----------
    chunks
        The generator that drives it.
    must_not_block
        Returns whether the current thread must not wait for a worker.
    """

    def __init__(
        self, chunks: Generator[Any, None, None], must_not_block: Callable[[], bool]
    ) -> None:
        self._chunks = chunks
        self._must_not_block = must_not_block

    def __next__(self) -> Any:
        try:
            return next(self._chunks)
        except BaseException as error:
            hide_own_frames(error)
            raise

    def __repr__(self) -> str:
        state = _STREAM_STATES[inspect.getgeneratorstate(self._chunks)]
        return f"<Stream, {state}: iterate over it, or show() it>"

    def close(self) -> None:
        """Leave the stream; return when the generator in the worker is closed."""
        self._chunks.close()

    def show(self) -> Any:
        """Consume the stream to its end, and show the chunks as they arrive.

        A chunk that is a dictionary with a number from 0 to 1 as ``"progress"`` moves one bar; its
        other entries are shown next to the bar. All other chunks are displayed in a notebook, and
        printed elsewhere.

        Returns
        -------
        object
            The last chunk that did not move the bar; None when there was none.

        Raises
        ------
        ToolError, CallTimeout, WorkerDied
            As when iterating over the chunks. Ctrl-C closes the stream, too.
        """
        with self, LiveView() as view:
            for chunk in self:
                view.take(chunk)
        return view.last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if inspect.getgeneratorstate(self._chunks) != inspect.GEN_SUSPENDED:
            return  # it has ended, or was never started
        if self._must_not_block():  # the garbage collector may run in any thread
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=self._chunks.close, daemon=True).start()
        else:
            self._chunks.close()


class LiveView:
    """Context manager that shows the chunks of a stream as they arrive, see `Stream.show`.

    Attributes
    ----------
    last
        The last chunk that did not move the bar.
    """

    def __init__(self) -> None:
        self.last: Any = None
        self._display = Display()

    def take(self, chunk: Any) -> None:
        """Show a chunk."""
        progress = _progress_of(chunk)
        if progress is None:
            self.last = chunk
            self._display.value(chunk)
        else:
            self._display.move(0, _bar_at(progress, chunk))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.close()


_SHOWN_WITHOUT_NAME = {"message", "desc"}
"""Entries of a progress chunk whose names are not shown next to the bar."""


def _progress_of(chunk: object) -> float | None:
    """Return the progress that a chunk reports, from 0 to 1; None for an ordinary chunk."""
    number = chunk.get("progress") if isinstance(chunk, dict) else None
    if not isinstance(number, Real) or isinstance(number, bool):
        return None
    progress = float(number)
    # The sum of many small steps may slightly exceed 1. Values such as 45 and nan are no fraction.
    return min(progress, 1.0) if 0 <= progress <= 1 + 1e-6 else None


def _bar_at(progress: float, chunk: Mapping[str, Any]) -> Settings:
    entries = [
        str(value) if name in _SHOWN_WITHOUT_NAME else f"{name}={_short(value)}"
        for name, value in chunk.items()
        if name != "progress" and value is not None
    ]
    return {
        "n": progress,
        "total": 1.0,
        "postfix": ", ".join(entries) or None,
        "bar_format": "{l_bar}{bar}| [{elapsed}<{remaining}{postfix}]",
    }


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
