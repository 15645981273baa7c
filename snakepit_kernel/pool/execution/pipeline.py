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
from .calls import INTERRUPT_AGAIN, AsyncHostCalls
from .host_tools import HostToolServer

PREFETCH_SECONDS = 2e-3
"""Seconds of work that a worker is given ahead."""

MAX_PREFETCHED = 64
"""Calls that a worker is given ahead at most."""

PATIENCE = 5e-3
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
    served: AsyncHostCalls | None = None

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

    def note(self, seconds: float) -> None:
        """Take in how long one took."""
        self._seconds += (seconds - self._seconds) / 8

    def slow_down(self) -> None:
        """Give nothing ahead until it is known again that it goes fast."""
        self._seconds = max(self._seconds, PATIENCE)

    @property
    def ahead(self) -> int:
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

    def __init__(self, dispatcher: PipelineHost, lane: PooledLane, name: str) -> None:
        self.name = name
        self.finished = False
        self._dispatcher = dispatcher
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[int, FutureItem] = {}  # in the order in which the worker does them
        self._since = time.perf_counter()  # the first of them is being done
        self._patience: asyncio.TimerHandle | None = None
        self._is_going_on = False
        self._done: list[tuple[FutureItem, Exchange]] = []
        self._reading = self._lane.read_in(self._loop)
        self._lane.on_returned = self._unassign

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
            exchange.on_news = partial(self._hear, item)
            exchange.on_host_call = partial(self._serve, item)
            item.exchange = exchange
            try:
                segments += item.encode(self._lane, exchange.call_id)
            except Exception as error:  # noqa: BLE001 - it is the future's outcome
                self._dispatcher.end(item, outcome_of(error), error)
                continue
            self._lane.begin(exchange)
            self._under_way[exchange.call_id] = item
            if item.deadline is not None:
                left = item.deadline - time.monotonic()
                item.set_timer(self._loop.call_later(left, self._time_out, item))
        self._lane.put(segments)
        try:
            self._lane.flush_soon()
        except LaneClosed:
            self._fail()
            return
        self._go_on_soon()
        if len(self._under_way) > 1 and self._patience is None:
            self._patience = self._loop.call_later(PATIENCE, self._lose_patience)

    def _go_on_soon(self) -> None:
        if not self._is_going_on:
            self._is_going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take more errands along, or give the lane back; then tell of those that are done."""
        self._is_going_on = False
        if not self.finished:
            self._prefetch()
        done, self._done = self._done, []
        for item, exchange in done:
            self._conclude(item, exchange)

    def _prefetch(self) -> None:
        ahead = self._dispatcher.window.ahead
        if len(self._under_way) * 2 <= ahead:
            more = self._dispatcher.prefetch(self._lane, ahead - len(self._under_way))
            if more:
                self._load(more)
        if not self._under_way:
            self._end()

    def _end(self) -> None:
        self.finished = True
        self._lane.on_returned = None
        if self._patience is not None:
            self._patience.cancel()
        self._reading.__exit__(None, None, None)
        self._dispatcher.release(self)

    @property
    def lane(self) -> PooledLane:
        """The lane that it holds."""
        return self._lane

    def caller_of(self, call_id: int) -> object:
        """Return whose a call is that it has at the worker."""
        item = self._under_way.get(call_id)
        return None if item is None else item.caller_of(call_id)

    # -- and back ------------------------------------------------------------------------------

    def _hear(self, item: FutureItem, error: BaseException | None) -> None:
        """Take in the answer to an errand, or that the lane has failed."""
        if error is not None:
            if not self.finished:
                self._fail()
            return
        assert item.exchange is not None
        if not item.exchange.is_answered:
            return
        now = time.perf_counter()
        self._dispatcher.window.note(now - self._since)
        self._since = now
        self._drop(item)
        self._done.append((item, item.exchange))
        self._go_on_soon()

    def _conclude(self, item: FutureItem, exchange: Exchange) -> None:
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:
            if item.error is not None:  # its time was up
                self._dispatcher.end(item, "timeout", item.error)
            elif (closed := self._dispatcher.closed()) is not None:
                self._dispatcher.end(item, "lost", closed)
            else:
                message = f"{exchange.name} was interrupted in its worker"
                told = ToolError("KeyboardInterrupt", message, interrupted.traceback)
                self._dispatcher.end(item, "cancelled", told)
        except BaseException as error:  # noqa: BLE001 - it is the future's outcome
            # Less the frames here, which refer to the future, and say nothing to its owner.
            self._dispatcher.end(item, "error", error.with_traceback(None))
        else:
            self._dispatcher.end(item, "ok", value=value)

    def _drop(self, item: FutureItem) -> None:
        """Have nothing more to do with an errand."""
        assert item.exchange is not None
        self._lane.end(item.exchange)
        self._under_way.pop(item.exchange.call_id, None)
        item.exchange.on_news = item.exchange.on_host_call = None
        if item.served is not None:
            item.served.end()
            item.served = None
        item.set_timer(None)

    def _fail(self) -> None:
        """Tell who was being served that the worker is gone; the others go to another one."""
        items = list(self._under_way.values())
        for item in items:
            self._drop(item)
        self._dispatcher.stop_scheduling(self._lane.worker)  # or its lane is lent again
        self._end()
        self._dispatcher.report_death(self._lane, items)

    def _serve(self, item: FutureItem, call: HostCall, frame: Frame) -> None:
        if item.served is None:
            assert item.exchange is not None
            item.served = AsyncHostCalls(
                self._dispatcher.host,
                self._lane,
                item.exchange,
                item,
                item.context,
                in_threads=True,
            )
        item.served.begin(call, frame)

    # -- calling back --------------------------------------------------------------------------

    def _lose_patience(self) -> None:
        """Call back what stands behind a call that takes long."""
        self._patience = None
        if len(self._under_way) < 2:
            return
        waited = time.perf_counter() - self._since
        if waited >= PATIENCE:
            self._dispatcher.window.slow_down()
            self._lane.recall()
            waited -= INTERRUPT_AGAIN  # the signal may be lost
        self._patience = self._loop.call_later(PATIENCE - waited, self._lose_patience)

    def _unassign(self, ids: list[int]) -> None:
        """Take back what the worker had not begun."""
        for call_id in sorted(ids, reverse=True):  # each to the head of the queue
            item = self._under_way.get(call_id)
            if item is not None:
                self._drop(item)
                self._dispatcher.requeue(item)
        for item in list(self._under_way.values()):
            if item.future.cancelled():  # it had begun
                self._interrupt(item, time.monotonic() + self._dispatcher.grace)
        self._go_on_soon()

    def cancel(self, item: FutureItem) -> None:
        """End an errand that nobody wants any more."""
        if item.exchange is None or item.exchange.call_id not in self._under_way:
            return
        if next(iter(self._under_way.values())) is item:
            self._interrupt(item, time.monotonic() + self._dispatcher.grace)
        else:  # until it is returned, or begins: then it is interrupted, or its worker replaced
            self._lane.recall()
            self._loop.call_later(INTERRUPT_AGAIN, self.cancel, item)

    def _time_out(self, item: FutureItem) -> None:
        """Note where a call is whose time is up, and end it."""
        timeout = item.timeout
        assert timeout is not None
        until = time.monotonic() + self._dispatcher.grace

        def stop(stacks: asyncio.Future[str]) -> None:
            name = self._lane.worker.name
            item.error = CallTimeout(item.name, timeout, name, stacks.result())
            self._interrupt(item, until)

        # In a thread: it takes a moment, and other workers have their turn here meanwhile.
        self._loop.run_in_executor(None, self._lane.worker.stacks).add_done_callback(stop)

    def _interrupt(self, item: FutureItem, until: float) -> None:
        """Interrupt a call until it has heard; replace a worker that does not."""
        assert item.exchange is not None
        if item.exchange.call_id not in self._under_way:
            return
        if time.monotonic() >= until:
            if isinstance(late := item.error, CallTimeout):
                item.error = CallTimeout(
                    late.what, late.timeout, late.worker, late.stacks, was_replaced=True
                )
            self._dispatcher.terminate(self._lane)
            return
        if item.served is not None:
            item.served.release()
        self._lane.interrupt(item.exchange.call_id)
        self._loop.call_later(INTERRUPT_AGAIN, self._interrupt, item, until)
