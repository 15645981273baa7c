"""Futures on their way to a worker and back, several at a time.

A worker that gets its next call when the answer to the last one has been read does nothing most of
the time, if calls are short. So it gets some ahead, as many as it is likely to do within a moment.
When one of them takes long, those behind it are called back, and go to other workers.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from ...errors import CallTimeout, PoolClosed, ToolError
from ...lane.exchange import Exchange
from ...lane.owner_end import LaneClosed
from ...lane.replies import Interrupted
from ...output.display import Display
from ...protocol.frames import Frame, Segment
from ...protocol.messages import HostCall
from ..results import CallFuture
from ..work_item import WorkItem, outcome_of
from ..workers.worker import PooledLane, Worker
from .calls import INTERRUPT_INTERVAL, AsyncHostCalls
from .host_tools import HostToolServer

PREFETCH_SECONDS = 2e-3
"""Seconds of work that a worker is given ahead."""

MAX_PREFETCHED = 64
"""Calls that a worker is given ahead at most."""

RECALL_AFTER = 5e-3
"""Seconds that a call may take before those behind it are called back."""


class FutureItem(WorkItem):
    """Work that nobody waits for. The parameters are those of `WorkItem`.

    Attributes
    ----------
    future
        Told of its end.
    context
        That of the caller.
    exchange
        Its conversation with a worker, while that has it.
    timer
        What ends its wait, or its run.
    error
        Why it is being ended, if it is.
    served
        Its host calls, if it has made any.
    """

    kind = "future"
    exchange: Exchange | None = None
    timer: asyncio.TimerHandle | None = None
    error: BaseException | None = None
    host_calls: AsyncHostCalls | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.future: CallFuture[Any] = CallFuture()
        self.context = contextvars.copy_context()

    def set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        """Have one timer, or none: what ends its wait, or its run."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


class PrefetchWindow:
    """How long a pool's futures take lately, and so how many a worker is given ahead."""

    def __init__(self) -> None:
        self._seconds = PREFETCH_SECONDS

    def record(self, seconds: float) -> None:
        """Take in how long one took."""
        self._seconds += (seconds - self._seconds) / 8

    def slow_down(self) -> None:
        """Give nothing ahead until it is known again that it goes fast."""
        self._seconds = max(self._seconds, RECALL_AFTER)

    @property
    def size(self) -> int:
        """Calls that may be under way to a worker at a time."""
        return max(1, min(MAX_PREFETCHED, int(PREFETCH_SECONDS / self._seconds)))


class PipelineHost(Protocol):
    """Who has the errands, and hears of them; `FutureRunner` is one."""

    host: HostToolServer
    grace: float
    window: PrefetchWindow
    terminate: Callable[[PooledLane], None]
    stop_scheduling: Callable[[Worker], None]

    def closed(self) -> PoolClosed | None:
        """Return what to tell of work that ends with the pool, if that ends."""

    def prefetch(self, lane: PooledLane, count: int) -> list[FutureItem]:
        """Return errands that a lane can have beside its first."""

    def requeue(self, item: FutureItem) -> None:
        """Take back an errand that was not begun."""

    def end(
        self,
        item: FutureItem,
        outcome: str,
        error: BaseException | None = None,
        *,
        value: Any = None,
    ) -> None:
        """Hear how an errand ended."""

    def report_death(self, lane: PooledLane, items: list[FutureItem]) -> None:
        """Hear that a worker is gone, and what it had; the first of these it had begun."""

    def release(self, pipeline: LanePipeline) -> None:
        """Take the lane back."""


class LanePipeline:
    """Takes errands to one lane, which it holds, and their answers back, until none is left.

    It runs in the loop of the pool's supervisor.

    Parameters
    ----------
    dispatcher
        Where it gets them from.
    lane
        The lane.

    Attributes
    ----------
    name
        What it does, for people.
    finished
        Whether it has given the lane back.
    """

    def __init__(self, runner: PipelineHost, lane: PooledLane, name: str) -> None:
        self.name = name
        self.finished = False
        self._runner = runner
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[int, FutureItem] = {}  # in the order in which the worker does them
        self._since = time.perf_counter()  # the first of them is being done
        self._recall_timer: asyncio.TimerHandle | None = None
        self._is_continuing = False
        self._answered: list[tuple[FutureItem, Exchange]] = []
        self._reading = self._lane.read_in(self._loop)
        self._lane.on_returned = self._requeue_returned

    def begin(self, item: FutureItem) -> None:
        """Take the first errand."""
        self._reading.__enter__()
        self._load([item])

    # -- there ---------------------------------------------------------------------------------

    def _load(self, items: Iterable[FutureItem]) -> None:
        segments: list[Segment] = []
        for item in items:
            exchange = Exchange(
                self._lane.new_call_id(),
                item.name,
                display=Display(item.context),  # to the cell that submitted it
                raise_original=True,
            )
            exchange.on_news = partial(self._on_news, item)
            exchange.on_host_call = partial(self._serve, item)
            item.exchange = exchange
            try:
                segments += item.encode(self._lane, exchange.call_id)
            except Exception as error:  # noqa: BLE001 - it is the future's outcome
                self._runner.end(item, outcome_of(error), error)
                continue
            self._lane.begin(exchange)
            self._in_flight[exchange.call_id] = item
            if item.deadline is not None:
                left = item.deadline - time.monotonic()
                item.set_timer(self._loop.call_later(left, self._time_out, item))
        self._lane.put(segments)
        try:
            self._lane.flush_soon()
        except LaneClosed:
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
        """Take more errands along, or give the lane back; then tell of those that are done."""
        self._is_continuing = False
        if not self.finished:
            self._prefetch()
        done, self._answered = self._answered, []
        for item, exchange in done:
            self._conclude(item, exchange)

    def _prefetch(self) -> None:
        ahead = self._runner.window.size
        if len(self._in_flight) * 2 <= ahead:
            more = self._runner.prefetch(self._lane, ahead - len(self._in_flight))
            if more:
                self._load(more)
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
        """Return whose a call is that it has at the worker."""
        item = self._in_flight.get(call_id)
        return None if item is None else item.caller_of(call_id)

    # -- and back ------------------------------------------------------------------------------

    def _on_news(self, item: FutureItem, error: BaseException | None) -> None:
        """Take in the answer to an errand, or that the lane has failed."""
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
            if item.error is not None:  # its time was up
                self._runner.end(item, "timeout", item.error)
            elif (closed := self._runner.closed()) is not None:
                self._runner.end(item, "lost", closed)
            else:
                message = f"{exchange.name} was interrupted in its worker"
                told = ToolError("KeyboardInterrupt", message, interrupted.traceback)
                self._runner.end(item, "cancelled", told)
        except BaseException as error:  # noqa: BLE001 - it is the future's outcome
            # Less the frames here, which refer to the future, and say nothing to its owner.
            self._runner.end(item, "error", error.with_traceback(None))
        else:
            self._runner.end(item, "ok", value=value)

    def _drop(self, item: FutureItem) -> None:
        """Have nothing more to do with an errand."""
        assert item.exchange is not None
        self._lane.end(item.exchange)
        self._in_flight.pop(item.exchange.call_id, None)
        item.exchange.on_news = item.exchange.on_host_call = None
        if item.host_calls is not None:
            item.host_calls.end()
            item.host_calls = None
        item.set_timer(None)

    def _fail(self) -> None:
        """Tell who was being served that the worker is gone; the others go to another one."""
        items = list(self._in_flight.values())
        for item in items:
            self._drop(item)
        self._runner.stop_scheduling(self._lane.worker)  # or its lane is lent again
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

    # -- calling back --------------------------------------------------------------------------

    def _recall_waiting(self) -> None:
        """Call back what stands behind a call that takes long."""
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
        """Take back what the worker had not begun."""
        for call_id in sorted(ids, reverse=True):  # each to the head of the queue
            item = self._in_flight.get(call_id)
            if item is not None:
                self._drop(item)
                self._runner.requeue(item)
        for item in list(self._in_flight.values()):
            if item.future.cancelled():  # it had begun
                self._interrupt(item, time.monotonic() + self._runner.grace)
        self._continue_soon()

    def cancel(self, item: FutureItem) -> None:
        """End an errand that nobody wants any more."""
        if item.exchange is None or item.exchange.call_id not in self._in_flight:
            return
        if next(iter(self._in_flight.values())) is item:
            self._interrupt(item, time.monotonic() + self._runner.grace)
        else:  # until it is returned, or begins: then it is interrupted, or its worker replaced
            self._lane.recall()
            self._loop.call_later(INTERRUPT_INTERVAL, self.cancel, item)

    def _time_out(self, item: FutureItem) -> None:
        """Note where a call is whose time is up, and end it."""
        timeout = item.timeout
        assert timeout is not None
        until = time.monotonic() + self._runner.grace

        def stop(stacks: asyncio.Future[str]) -> None:
            name = self._lane.worker.name
            item.error = CallTimeout(item.name, timeout, name, stacks.result())
            self._interrupt(item, until)

        # In a thread: it takes a moment, and other workers have their turn here meanwhile.
        self._loop.run_in_executor(None, self._lane.worker.stacks).add_done_callback(stop)

    def _interrupt(self, item: FutureItem, until: float) -> None:
        """Interrupt a call until it has heard; replace a worker that does not."""
        assert item.exchange is not None
        if item.exchange.call_id not in self._in_flight:
            return
        if time.monotonic() >= until:
            if isinstance(late := item.error, CallTimeout):
                item.error = CallTimeout(
                    late.what, late.timeout, late.worker, late.stacks, was_replaced=True
                )
            self._runner.terminate(self._lane)
            return
        if item.host_calls is not None:
            item.host_calls.release()
        self._lane.interrupt(item.exchange.call_id)
        self._loop.call_later(INTERRUPT_INTERVAL, self._interrupt, item, until)
