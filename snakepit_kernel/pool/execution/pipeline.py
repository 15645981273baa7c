"""Pipelines several futures on one lane.

With short calls, a worker would be idle most of the time if it got its next call only after the
answer to the last one had been read. So calls are prefetched: as many as it is likely to run within
`PREFETCH_SECONDS`. When a call takes long, those queued behind it in the worker are recalled, and
go to other workers.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from ...errors import CallTimeout, ToolError
from ...lane.exchange import Exchange
from ...lane.owner_end import LaneClosed
from ...lane.replies import Interrupted
from ...output.display import Display
from ...protocol.frames import Frame, Segment
from ...protocol.messages import HostCall
from ..refusals import Refusals
from ..results import CallFuture
from ..work_item import WorkItem, outcome_of
from ..workers.supervisor import WorkerSupervisor
from ..workers.worker import PooledLane
from .calls import INTERRUPT_INTERVAL, AsyncHostCalls
from .host_tools import HostToolServer

PREFETCH_SECONDS = 2e-3
"""Seconds of work that is prefetched for a worker."""

MAX_PREFETCHED = 64
"""Most calls in flight to a worker."""

RECALL_AFTER = 5e-3
"""Seconds that a call may take before those behind it are recalled."""


class ItemRunner(Protocol):
    """Runs the items of futures; `FutureRunner` does."""

    def begin_soon(self, item: FutureItem) -> None:
        """Run an item that was queued, or end it if it has no lane."""

    def cancel(self, item: FutureItem) -> None:
        """Stop an item whose future was cancelled."""

    def fetch(self, item: FutureItem, seconds: float) -> None:
        """Let this thread, which waits for the outcome of an item, get it if it comes soon."""


class FutureItem(WorkItem):
    """A work item of a submitted future. The parameters are those of `WorkItem`.

    Attributes
    ----------
    future
        Receives the outcome.
    runner
        Runs it.
    context
        The context variables of the caller.
    exchange
        The exchange of its last attempt with a worker, if any.
    timer
        The timer of its queue timeout, or of its timeout.
    error
        The reason why it is being stopped, if it is.
    host_calls
        Its host calls, if it has made any.
    claim
        Acquired once by who receives its answer, if its request was not sent by a pipeline: a
        thread that waits for it, or the loop.
    sent
        `time.perf_counter` at which it was sent in that case.
    pipeline
        The pipeline that has it, if any.
    """

    kind = "future"
    exchange: Exchange | None = None
    timer: asyncio.TimerHandle | None = None
    error: BaseException | None = None
    host_calls: AsyncHostCalls | None = None
    claim: threading.Lock | None = None
    sent = 0.0
    pipeline: LanePipeline | None = None
    runner: ItemRunner

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.future: CallFuture[Any] = CallFuture()
        self.context = contextvars.copy_context()

    def on_assigned(self) -> None:
        """Run it, or end it if it has no lane."""
        self.runner.begin_soon(self)

    def cancel(self) -> None:
        """Stop it, because its future was cancelled."""
        self.runner.cancel(self)

    def fetch(self, seconds: float) -> None:
        """Let this thread, which waits for its future, get the outcome if it comes soon."""
        self.runner.fetch(self, seconds)

    def set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        """Replace the timer, and cancel the previous one; None for no timer."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


class PrefetchWindow:
    """The number of calls to keep in flight to a worker, from a pool's recent run times."""

    def __init__(self) -> None:
        self._seconds = PREFETCH_SECONDS

    def record(self, seconds: float) -> None:
        """Add the run time of a call to the moving average."""
        self._seconds += (seconds - self._seconds) / 8

    def slow_down(self) -> None:
        """Prefetch nothing until calls are seen to be short again."""
        self._seconds = max(self._seconds, RECALL_AFTER)

    @property
    def size(self) -> int:
        """Most calls that may be in flight to a worker."""
        return max(1, min(MAX_PREFETCHED, int(PREFETCH_SECONDS / self._seconds)))


class PipelineHost(Protocol):
    """The owner of a pipeline, which supplies its items; `FutureRunner` is one."""

    host: HostToolServer
    grace: float
    window: PrefetchWindow
    supervisor: WorkerSupervisor
    refusals: Refusals

    def prefetch(self, lane: PooledLane, count: int) -> list[FutureItem]:
        """Return further queued items for a lane."""

    def requeue(self, item: FutureItem) -> None:
        """Requeue an item that was not started."""

    def end(
        self,
        item: FutureItem,
        outcome: str,
        error: BaseException | None = None,
        *,
        value: Any = None,
    ) -> None:
        """Finish an item with its outcome."""

    def report_death(self, lane: PooledLane, items: list[FutureItem]) -> None:
        """Handle the death of a worker and its unanswered items, the first of which was running."""

    def release(self, pipeline: LanePipeline) -> None:
        """Release the lane of a pipeline."""


class LanePipeline:
    """Runs futures on one lane, which it holds until no queued item is left for it.

    It runs in the event loop of the pool's supervisor.

    Parameters
    ----------
    runner
        The owner, which supplies the items.
    lane
        The lane.
    name
        A name for status displays.

    Attributes
    ----------
    name
        The name for status displays.
    finished
        Whether it has released the lane.
    """

    def __init__(self, runner: PipelineHost, lane: PooledLane, name: str) -> None:
        self.name = name
        self.finished = False
        self._runner = runner
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[int, FutureItem] = {}  # in the order in which the worker runs them
        self._since = time.perf_counter()  # when the first of them became the running one
        self._recall_timer: asyncio.TimerHandle | None = None
        self._is_continuing = False
        self._answered: list[tuple[FutureItem, Exchange]] = []
        self._reading = self._lane.read_in(self._loop)
        self._lane.on_returned = self._requeue_returned

    def begin(self, item: FutureItem) -> None:
        """Send the first item, and start reading the lane."""
        self._reading.__enter__()
        self._send([item])

    def adopt(self, item: FutureItem) -> None:
        """Take over an item whose request was sent by another thread, and start reading the lane.

        Its answer may have been received there, too.
        """
        self._reading.__enter__()
        self._since = item.sent
        exchange = item.exchange
        assert exchange is not None
        self._connect(item, exchange)
        if exchange.is_answered:
            self._on_news(item, None)
        else:
            self._lane.read_arrived()
        if not self.finished:
            self._flush()

    # -- sending -------------------------------------------------------------------------------

    def _send(self, items: Iterable[FutureItem]) -> None:
        segments: list[Segment] = []
        for item in items:
            exchange = Exchange(
                self._lane.new_call_id(),
                item.name,
                display=Display(item.context),  # of the cell that submitted it
                raise_original=True,
            )
            item.exchange = exchange
            try:
                segments += item.encode(self._lane, exchange.call_id)
            except Exception as error:  # noqa: BLE001 - it is the future's outcome
                self._runner.end(item, outcome_of(error), error)
                continue
            self._lane.begin(exchange)
            self._connect(item, exchange)
            if item.deadline is not None:
                left = item.deadline - time.monotonic()
                item.set_timer(self._loop.call_later(left, self._time_out, item))
        self._lane.put(segments)
        self._flush()

    def _connect(self, item: FutureItem, exchange: Exchange) -> None:
        """Let an item that was sent, or will be, get what arrives for it."""
        exchange.on_news = partial(self._on_news, item)
        exchange.on_host_call = partial(self._serve, item)
        self._in_flight[exchange.call_id] = item

    def _flush(self) -> None:
        try:
            self._lane.flush_soon()
        except LaneClosed as error:
            self._lane.end_after_write(error)
            if not self.finished:  # all that it had was answered before
                self._fail()
            return
        self._continue_soon()
        if len(self._in_flight) > 1 and self._recall_timer is None:
            self._recall_timer = self._loop.call_later(RECALL_AFTER, self._recall_waiting)

    def _continue_soon(self) -> None:
        if not self._is_continuing:
            self._is_continuing = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        """Prefetch more items, or release the lane; then finish the answered items."""
        self._is_continuing = False
        if not self.finished:
            self._prefetch()
        answered, self._answered = self._answered, []
        for item, exchange in answered:
            self._conclude(item, exchange)

    def _prefetch(self) -> None:
        size = self._runner.window.size
        if len(self._in_flight) * 2 <= size:
            more = self._runner.prefetch(self._lane, size - len(self._in_flight))
            if more:
                self._send(more)
        if not self._in_flight:
            self._end()

    def _end(self) -> None:
        self.finished = True
        self._lane.on_returned = None
        if self._recall_timer is not None:
            self._recall_timer.cancel()
        self._reading.__exit__(None, None, None)
        self._runner.release(self)

    @property
    def lane(self) -> PooledLane:
        """The lane that it holds."""
        return self._lane

    def caller_of(self, call_id: int) -> object:
        """Return the parent span of what a call in flight does."""
        item = self._in_flight.get(call_id)
        return None if item is None else item.caller_of(call_id)

    # -- receiving -----------------------------------------------------------------------------

    def _on_news(self, item: FutureItem, error: BaseException | None) -> None:
        """Handle the answer to an item, or the failure of the lane."""
        if error is not None:
            if not self.finished:
                self._fail()
            return
        assert item.exchange is not None
        if not item.exchange.is_answered:
            return
        now = time.perf_counter()
        self._runner.window.record(now - self._since)
        self._since = now
        self._drop(item)
        self._answered.append((item, item.exchange))
        self._continue_soon()

    def _conclude(self, item: FutureItem, exchange: Exchange) -> None:
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:
            if item.error is not None:  # it timed out
                self._runner.end(item, "timeout", item.error)
            elif (closed := self._runner.refusals.closing_error()) is not None:
                self._runner.end(item, "lost", closed)
            else:
                message = f"{exchange.name} was interrupted in its worker"
                cancelled = ToolError("KeyboardInterrupt", message, interrupted.traceback)
                self._runner.end(item, "cancelled", cancelled)
        except BaseException as error:  # noqa: BLE001 - it is the future's outcome
            # Without the frames here, which refer to the future, and do not help its owner.
            self._runner.end(item, "error", error.with_traceback(None))
        else:
            self._runner.end(item, "ok", value=value)

    def _drop(self, item: FutureItem) -> None:
        """Detach an item that was answered, requeued or lost from this pipeline."""
        assert item.exchange is not None
        self._lane.end(item.exchange)
        self._in_flight.pop(item.exchange.call_id, None)
        item.exchange.on_news = item.exchange.on_host_call = None
        if item.host_calls is not None:
            item.host_calls.end()
            item.host_calls = None
        if item.timer is not None:
            item.set_timer(None)

    def _fail(self) -> None:
        """Give up the lane of a dead worker, and report the items that it had."""
        items = list(self._in_flight.values())
        for item in items:
            self._drop(item)
        self._runner.supervisor.stop_scheduling(self._lane.worker)  # or its lane is assigned again
        self._end()
        self._runner.report_death(self._lane, items)

    def _serve(self, item: FutureItem, call: HostCall, frame: Frame) -> None:
        if item.host_calls is None:
            assert item.exchange is not None
            item.host_calls = AsyncHostCalls(
                self._runner.host,
                self._lane,
                item.exchange,
                item,
                item.context,
                in_threads=True,
            )
        item.host_calls.begin(call, frame)

    # -- recalling and stopping ----------------------------------------------------------------

    def _recall_waiting(self) -> None:
        """Recall the items behind a call that takes long."""
        self._recall_timer = None
        if len(self._in_flight) < 2:
            return
        waited = time.perf_counter() - self._since
        if waited >= RECALL_AFTER:
            self._runner.window.slow_down()
            self._lane.recall()
            waited -= INTERRUPT_INTERVAL  # the signal may be lost
        self._recall_timer = self._loop.call_later(RECALL_AFTER - waited, self._recall_waiting)

    def _requeue_returned(self, ids: list[int]) -> None:
        """Requeue the items that the worker returned without starting them."""
        for call_id in sorted(ids, reverse=True):  # each goes to the head of the queue
            item = self._in_flight.get(call_id)
            if item is not None:
                self._drop(item)
                self._runner.requeue(item)
        for item in list(self._in_flight.values()):
            if item.future.cancelled():  # it was not returned: the worker had started it
                self._interrupt(item, time.monotonic() + self._runner.grace)
        self._continue_soon()

    def cancel(self, item: FutureItem) -> None:
        """Stop an item whose future was cancelled."""
        if item.exchange is None or item.exchange.call_id not in self._in_flight:
            return
        if next(iter(self._in_flight.values())) is item:
            self._interrupt(item, time.monotonic() + self._runner.grace)
        else:  # until it is returned, or begins: then it is interrupted, or its worker replaced
            self._lane.recall()
            self._loop.call_later(INTERRUPT_INTERVAL, self.cancel, item)

    def _time_out(self, item: FutureItem) -> None:
        """Record the stacks of a call that timed out, and stop it."""
        timeout = item.timeout
        assert timeout is not None
        until = time.monotonic() + self._runner.grace

        def stop(stacks: asyncio.Future[str]) -> None:
            name = self._lane.worker.name
            item.error = CallTimeout(item.name, timeout, name, stacks.result())
            self._interrupt(item, until)

        # In a thread: it takes a moment, and this loop serves other workers meanwhile.
        self._loop.run_in_executor(None, self._lane.worker.stacks).add_done_callback(stop)

    def _interrupt(self, item: FutureItem, until: float) -> None:
        """Interrupt a call repeatedly until it ends; terminate a worker that ignores it."""
        assert item.exchange is not None
        if item.exchange.call_id not in self._in_flight:
            return
        if time.monotonic() >= until:
            if isinstance(late := item.error, CallTimeout):
                item.error = CallTimeout(
                    late.what, late.timeout, late.worker, late.stacks, was_replaced=True
                )
            self._runner.supervisor.terminate_when_idle(self._lane)
            return
        if item.host_calls is not None:
            item.host_calls.release()
        self._lane.interrupt(item.exchange.call_id)
        self._loop.call_later(INTERRUPT_INTERVAL, self._interrupt, item, until)
