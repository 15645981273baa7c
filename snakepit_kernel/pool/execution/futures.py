"""Work that nobody waits for: futures, which the pool's supervisor takes to the workers."""

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
from ..work_item import WorkItem, outcome_of
from ..workers.worker import Seat, Worker
from .host_tools import HostToolServer
from .pipeline import FutureItem, LanePipeline, PrefetchWindow


class FutureRunner:
    """Takes futures to workers.

    Parameters
    ----------
    admission
        The queue.
    supervisor
        The loop that does it.
    host
        Serves the calls that come back.
    pool
        Name of the pool.
    grace
        Seconds that a worker may take to heed an interrupt.
    strand
        Has a worker lent no more.
    condemn, explain
        As `CallRunner` has them.
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
        condemn: Callable[[Seat], None],
        explain: Callable[[Worker, WorkerDied], SnakepitError],
    ) -> None:
        self._pool = pool
        self.host = host
        self.grace = grace
        self.stop_scheduling = stop_scheduling
        self.condemn = condemn
        self.pace = PrefetchWindow()
        self._dispatcher = dispatcher
        self._loop_thread = loop_thread
        self._explain = explain

    def submit(self, work: WorkItem) -> CallFuture[Any]:
        """Run a call on a worker; return its future."""
        item = FutureItem(work)
        item.future.correlation_id = work.correlation
        item.future.keeper = self._loop_thread
        work.item = item
        work.kind = "future"
        begin = partial(self._loop_thread.soon, self._begin, item)
        work.on_assigned = begin
        item.future.on_cancel(partial(self._cancel_queued, item))
        try:
            self._dispatcher.admit(work)
            if work.seat is not None:
                begin()
            elif work.queue_deadline is not None:
                self._loop_thread.soon(self._expire_later, item)
        except KeyboardInterrupt:
            self._loop_thread.soon(self._abandon, item)
            raise
        except SnakepitError as error:
            describe_error(error, work, self._pool)
            self._dispatcher.finish(work, outcome_of(error), error)
            raise
        return item.future

    def _abandon(self, item: FutureItem) -> None:
        """End work whose future nobody got, because Ctrl-C came first."""
        if item.future.running():
            item.future.cancel()
        else:
            self._dispatcher.repair(item.work)

    def _begin(self, item: FutureItem) -> None:
        work, future = item.work, item.future
        if future.running():  # told twice, see Admission.mend
            return
        item.set_timer(None)
        if work.settled or not future.begin():
            self._end_cancelled(item)
        elif work.seat is None and self._dispatcher.closed_because is not None:
            self._end_cancelled(item)
            future.cancel()
        elif work.seat is None:
            self.end(item, "lost", self._dispatcher.unserved(work))
        else:
            pipeline = LanePipeline(self, work.seat, work.name)
            self._dispatcher.board(work, pipeline)
            self._watch(item, pipeline)
            pipeline.begin(item)

    def _watch(self, item: FutureItem, pipeline: LanePipeline) -> None:
        cancel = partial(self._loop_thread.soon, pipeline.cancel, item)
        item.future.on_cancel(cancel)
        if item.future.cancelled():  # just before
            cancel()

    def closed(self) -> PoolClosed | None:
        """Return what to tell of work that ends with the pool, if that ends."""
        return self._dispatcher.dismissal()

    def take_along(self, seat: Seat, count: int) -> list[FutureItem]:
        """Return errands from the head of the queue that a seat can have as well."""
        items = []
        for work in self._dispatcher.take_along(seat, count):
            item: FutureItem = work.item
            item.set_timer(None)
            assert isinstance(seat.holder, LanePipeline)
            if item.future.begin():
                self._watch(item, seat.holder)
                items.append(item)
            else:
                self._end_cancelled(item)
        return items

    def requeue(self, item: FutureItem) -> None:
        """Put an errand that was not begun to the head of the queue."""
        if not item.future.wait_again():
            self._end_cancelled(item)
            return
        item.future.on_cancel(partial(self._cancel_queued, item))
        if item.work.queue_deadline is not None:
            self._expire_later(item)
        self._dispatcher.requeue(item.work)
        if item.future.cancelled():  # just before
            self._cancel_queued(item)

    def release(self, pipeline: LanePipeline) -> None:
        """Give the seat of a conveyor back."""
        with self._dispatcher.lock:
            self._dispatcher.release(pipeline.seat, pipeline.name)

    def bury(self, seat: Seat, items: list[FutureItem]) -> None:
        """Tell the one who was being served that the worker died; the others go to another one."""
        self._loop_thread.spawn(self._bury(seat.worker, items))

    async def _bury(self, worker: Worker, items: list[FutureItem]) -> None:
        error = self._explain(worker, await worker.adeath())
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
        """Count how an errand ended, and tell its future."""
        if item.future.cancelled():
            outcome = "cancelled"
        describe_error(error, item.work, self._pool)
        self._dispatcher.finish(item.work, outcome, error)
        self._let_go(item)
        item.future.deliver(value, error)

    def _end_cancelled(self, item: FutureItem) -> None:
        """Count an errand whose future was cancelled before it was begun."""
        self._dispatcher.finish(item.work, "cancelled")
        self._let_go(item)

    def _let_go(self, item: FutureItem) -> None:
        """Refer no more to one another: the garbage collector need not come for them."""
        item.work.item = None
        item.future.on_cancel(None)

    def _cancel_queued(self, item: FutureItem) -> None:
        if self._dispatcher.withdraw(item.work):
            self._end_cancelled(item)
            self._loop_thread.soon(item.set_timer, None)

    def _expire_later(self, item: FutureItem) -> None:
        work = item.work
        assert work.queue_deadline is not None
        if work.settled or item.future.running():
            return
        left = max(0.0, work.queue_deadline - time.monotonic())
        item.set_timer(asyncio.get_running_loop().call_later(left, self._expire, item))

    def _expire(self, item: FutureItem) -> None:
        if self._dispatcher.withdraw(item.work):
            self.end(item, "timeout", self._dispatcher.late(item.work))
