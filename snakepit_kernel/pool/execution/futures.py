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
from ..work_item import Work, outcome_of
from ..workers.worker import Seat, Worker
from .host_tools import HostToolServer
from .pipeline import FutureItem, LanePipeline, MakeFrames, PrefetchWindow


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

    def submit(self, work: Work, make_frames: MakeFrames) -> CallFuture[Any]:
        """Run a call on a worker; return its future."""
        errand = FutureItem(work, make_frames)
        errand.future.correlation_id = work.correlation
        errand.future.keeper = self._loop_thread
        work.errand = errand
        work.kind = "future"
        begin = partial(self._loop_thread.soon, self._begin, errand)
        work.on_assigned = begin
        errand.future.on_cancel(partial(self._cancel_queued, errand))
        try:
            self._dispatcher.admit(work)
            if work.seat is not None:
                begin()
            elif work.queue_deadline is not None:
                self._loop_thread.soon(self._expire_later, errand)
        except KeyboardInterrupt:
            self._loop_thread.soon(self._abandon, errand)
            raise
        except SnakepitError as error:
            describe_error(error, work, self._pool)
            self._dispatcher.finish(work, outcome_of(error), error)
            raise
        return errand.future

    def _abandon(self, errand: FutureItem) -> None:
        """End work whose future nobody got, because Ctrl-C came first."""
        if errand.future.running():
            errand.future.cancel()
        else:
            self._dispatcher.repair(errand.work)

    def _begin(self, errand: FutureItem) -> None:
        work, future = errand.work, errand.future
        if future.running():  # told twice, see Admission.mend
            return
        errand.set_timer(None)
        if work.settled or not future.begin():
            self._end_cancelled(errand)
        elif work.seat is None and self._dispatcher.closed_because is not None:
            self._end_cancelled(errand)
            future.cancel()
        elif work.seat is None:
            self.end(errand, "lost", self._dispatcher.unserved(work))
        else:
            pipeline = LanePipeline(self, work.seat, work.name)
            self._dispatcher.board(work, pipeline)
            self._watch(errand, pipeline)
            pipeline.begin(errand)

    def _watch(self, errand: FutureItem, pipeline: LanePipeline) -> None:
        cancel = partial(self._loop_thread.soon, pipeline.cancel, errand)
        errand.future.on_cancel(cancel)
        if errand.future.cancelled():  # just before
            cancel()

    def closed(self) -> PoolClosed | None:
        """Return what to tell of work that ends with the pool, if that ends."""
        return self._dispatcher.dismissal()

    def take_along(self, seat: Seat, count: int) -> list[FutureItem]:
        """Return errands from the head of the queue that a seat can have as well."""
        errands = []
        for work in self._dispatcher.take_along(seat, count):
            errand: FutureItem = work.errand
            errand.set_timer(None)
            assert isinstance(seat.holder, LanePipeline)
            if errand.future.begin():
                self._watch(errand, seat.holder)
                errands.append(errand)
            else:
                self._end_cancelled(errand)
        return errands

    def requeue(self, errand: FutureItem) -> None:
        """Put an errand that was not begun to the head of the queue."""
        if not errand.future.wait_again():
            self._end_cancelled(errand)
            return
        errand.future.on_cancel(partial(self._cancel_queued, errand))
        if errand.work.queue_deadline is not None:
            self._expire_later(errand)
        self._dispatcher.requeue(errand.work)
        if errand.future.cancelled():  # just before
            self._cancel_queued(errand)

    def release(self, pipeline: LanePipeline) -> None:
        """Give the seat of a conveyor back."""
        self._dispatcher.release(pipeline.seat, pipeline.name)

    def bury(self, seat: Seat, errands: list[FutureItem]) -> None:
        """Tell the one who was being served that the worker died; the others go to another one."""
        self._loop_thread.spawn(self._bury(seat.worker, errands))

    async def _bury(self, worker: Worker, errands: list[FutureItem]) -> None:
        error = self._explain(worker, await worker.adeath())
        for errand in reversed(errands[1:]):
            if self.closed() is None:
                self.requeue(errand)
            else:
                self.end(errand, outcome_of(error), error)
        if errands[0].error is not None:
            self.end(errands[0], "timeout", errands[0].error)
        else:
            self.end(errands[0], outcome_of(error), error)

    def end(
        self,
        errand: FutureItem,
        outcome: str,
        error: BaseException | None = None,
        *,
        value: Any = None,
    ) -> None:
        """Count how an errand ended, and tell its future."""
        if errand.future.cancelled():
            outcome = "cancelled"
        describe_error(error, errand.work, self._pool)
        self._dispatcher.finish(errand.work, outcome, error)
        self._let_go(errand)
        errand.future.deliver(value, error)

    def _end_cancelled(self, errand: FutureItem) -> None:
        """Count an errand whose future was cancelled before it was begun."""
        self._dispatcher.finish(errand.work, "cancelled")
        self._let_go(errand)

    def _let_go(self, errand: FutureItem) -> None:
        """Refer no more to one another: the garbage collector need not come for them."""
        errand.work.errand = None
        errand.future.on_cancel(None)

    def _cancel_queued(self, errand: FutureItem) -> None:
        if self._dispatcher.withdraw(errand.work):
            self._end_cancelled(errand)
            self._loop_thread.soon(errand.set_timer, None)

    def _expire_later(self, errand: FutureItem) -> None:
        work = errand.work
        assert work.queue_deadline is not None
        if work.settled or errand.future.running():
            return
        left = max(0.0, work.queue_deadline - time.monotonic())
        errand.set_timer(asyncio.get_running_loop().call_later(left, self._expire, errand))

    def _expire(self, errand: FutureItem) -> None:
        if self._dispatcher.withdraw(errand.work):
            self.end(errand, "timeout", self._dispatcher.late(errand.work))
