"""Runs submitted futures on the event loop of the pool's supervisor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ...errors import PoolClosed, SnakepitError, WorkerDied
from ...processes.concurrency import LoopThread
from ..call_events import describe_error
from ..dispatcher import Dispatcher
from ..results import CallFuture
from ..work_item import outcome_of
from ..workers.worker import PooledLane, Worker
from .host_tools import HostToolServer
from .pipeline import FutureItem, LanePipeline, PrefetchWindow


class FutureRunner:
    """Queues futures, runs them in pipelines on the lanes of workers, and delivers their outcomes.

    Parameters
    ----------
    dispatcher
        Admits the futures and assigns lanes to them.
    loop_thread
        The thread of the event loop that runs them.
    host
        Serves the host calls that they make.
    pool
        Name of the pool.
    grace
        Seconds that a worker may take to respond to an interrupt.
    stop_scheduling
        Stops the assignment of a worker's lanes.
    terminate, error_for_death
        As for `CallRunner`.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        loop_thread: LoopThread,
        host: HostToolServer,
        *,
        pool: str,
        grace: float,
        stop_scheduling: Callable[[Worker], None],
        terminate: Callable[[PooledLane], None],
        error_for_death: Callable[[Worker, WorkerDied], SnakepitError],
    ) -> None:
        self._pool = pool
        self.host = host
        self.grace = grace
        self.stop_scheduling = stop_scheduling
        self.terminate = terminate
        self.window = PrefetchWindow()
        self._dispatcher = dispatcher
        self._loop_thread = loop_thread
        self._error_for_death = error_for_death

    def submit(self, item: FutureItem) -> CallFuture[Any]:
        """Run a call on a worker; return its future."""
        item.future.correlation_id = item.correlation
        item.future.keeper = self._loop_thread
        begin = partial(self._loop_thread.soon, self._begin, item)
        item.on_assigned = begin
        item.future.on_cancel(partial(self._cancel_queued, item))
        try:
            self._dispatcher.admit(item)
            if item.lane is not None:
                begin()
            elif item.queue_deadline is not None:
                self._loop_thread.soon(self._expire_later, item)
        except KeyboardInterrupt:
            self._loop_thread.soon(self._abandon, item)
            raise
        except SnakepitError as error:
            describe_error(error, item, self._pool)
            self._dispatcher.finish(item, outcome_of(error), error)
            raise
        return item.future

    def _abandon(self, item: FutureItem) -> None:
        """Stop an item whose future was not returned, because of a KeyboardInterrupt."""
        if item.future.running():
            item.future.cancel()
        else:
            self._dispatcher.repair(item)

    def _begin(self, item: FutureItem) -> None:
        future = item.future
        if future.running():  # notified twice, see Dispatcher.repair
            return
        item.set_timer(None)
        if item.finished or not future.begin():
            self._end_cancelled(item)
        elif item.lane is None and self._dispatcher.closed_because is not None:
            self._end_cancelled(item)
            future.cancel()
        elif item.lane is None:
            self.end(item, "lost", self._dispatcher.unserved(item))
        else:
            pipeline = LanePipeline(self, item.lane, item.name)
            self._dispatcher.start_pipeline(item, pipeline)
            self._watch(item, pipeline)
            pipeline.begin(item)

    def _watch(self, item: FutureItem, pipeline: LanePipeline) -> None:
        cancel = partial(self._loop_thread.soon, pipeline.cancel, item)
        item.future.on_cancel(cancel)
        if item.future.cancelled():  # before `on_cancel` was set
            cancel()

    def closed(self) -> PoolClosed | None:
        """Return the error for work that the pool's shutdown ends; None while it is not closing."""
        return self._dispatcher.closing_error()

    def prefetch(self, lane: PooledLane, count: int) -> list[FutureItem]:
        """Take further items for a lane from the head of the queue."""
        items = []
        for item in self._dispatcher.prefetch(lane, count):
            assert isinstance(item, FutureItem)
            item.set_timer(None)
            assert isinstance(lane.holder, LanePipeline)
            if item.future.begin():
                self._watch(item, lane.holder)
                items.append(item)
            else:
                self._end_cancelled(item)
        return items

    def requeue(self, item: FutureItem) -> None:
        """Return an item that was not started to the head of the queue."""
        if not item.future.wait_again():
            self._end_cancelled(item)
            return
        item.future.on_cancel(partial(self._cancel_queued, item))
        if item.queue_deadline is not None:
            self._expire_later(item)
        self._dispatcher.requeue(item)
        if item.future.cancelled():  # before it was queued
            self._cancel_queued(item)

    def release(self, pipeline: LanePipeline) -> None:
        """Release the lane of a pipeline."""
        with self._dispatcher.lock:
            self._dispatcher.release(pipeline.lane, pipeline.name)

    def report_death(self, lane: PooledLane, items: list[FutureItem]) -> None:
        """Fail the running item, and requeue the others, after a worker died."""
        self._loop_thread.spawn(self._report_death(lane.worker, items))

    async def _report_death(self, worker: Worker, items: list[FutureItem]) -> None:
        error = self._error_for_death(worker, await worker.adeath())
        for item in reversed(items[1:]):
            if self.closed() is None:
                self.requeue(item)
            else:
                self.end(item, outcome_of(error), error)
        if items[0].error is not None:
            self.end(items[0], "timeout", items[0].error)
        else:
            self.end(items[0], outcome_of(error), error)

    def end(
        self,
        item: FutureItem,
        outcome: str,
        error: BaseException | None = None,
        *,
        value: Any = None,
    ) -> None:
        """Count the outcome of an item, and deliver it to its future."""
        if item.future.cancelled():
            outcome = "cancelled"
        describe_error(error, item, self._pool)
        self._dispatcher.finish(item, outcome, error)
        self._break_cycle(item)
        item.future.deliver(value, error)

    def _end_cancelled(self, item: FutureItem) -> None:
        """Count an item whose future was cancelled before it was started."""
        self._dispatcher.finish(item, "cancelled")
        self._break_cycle(item)

    def _break_cycle(self, item: FutureItem) -> None:
        """Break the reference cycle of item and future, so that the garbage collector need not."""
        item.future.on_cancel(None)

    def _cancel_queued(self, item: FutureItem) -> None:
        if self._dispatcher.withdraw(item):
            self._end_cancelled(item)
            self._loop_thread.soon(item.set_timer, None)

    def _expire_later(self, item: FutureItem) -> None:
        assert item.queue_deadline is not None
        if item.finished or item.future.running():
            return
        left = max(0.0, item.queue_deadline - time.monotonic())
        item.set_timer(asyncio.get_running_loop().call_later(left, self._expire, item))

    def _expire(self, item: FutureItem) -> None:
        if self._dispatcher.withdraw(item):
            self.end(item, "timeout", self._dispatcher.late(item))
