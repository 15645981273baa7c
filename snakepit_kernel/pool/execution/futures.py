"""Runs submitted futures.

The thread that submits a future sends its request at once if a worker is idle, and a thread that
waits for its result receives the answer if that comes soon: then no other thread is woken. The
event loop of the pool's supervisor does all else. It takes such a future over when an answer
arrives that nobody waits for, when the wait is long, when something else than a plain answer comes,
and after Ctrl-C or a cancellation.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from ...errors import SnakepitError
from ...lane.exchange import Exchange
from ...lane.owner_end import PlainAnswer
from ...output.display import Display
from ...processes.concurrency import LoopThread
from ..call_events import describe_error
from ..dispatcher import Dispatcher
from ..results import CallFuture
from ..work_item import outcome_of
from ..workers.worker import PooledLane, Worker
from .host_tools import HostToolServer
from .lane_watch import LaneWatch
from .pipeline import FutureItem, LanePipeline, PrefetchWindow

SOON = 5e-3
"""Seconds that a thread which waits for a future waits for its answer; then the loop does."""


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
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        loop_thread: LoopThread,
        host: HostToolServer,
        *,
        pool: str,
        grace: float,
    ) -> None:
        self._pool = pool
        self.host = host
        self.grace = grace
        self.supervisor = dispatcher.supervisor
        self.refusals = dispatcher.refusals
        self.window = PrefetchWindow()
        self._dispatcher = dispatcher
        self._loop_thread = loop_thread
        self._watch: LaneWatch[FutureItem] = LaneWatch()
        loop_thread.read(self._watch.fileno(), self._take_over_arrived)

    def close(self) -> None:
        """Free the descriptor of the watch, after the loop has ended."""
        self._watch.close()

    def submit(self, item: FutureItem) -> CallFuture[Any]:
        """Run a call on a worker; return its future."""
        item.future.correlation_id = item.correlation
        item.future.keeper = self._loop_thread
        item.runner = self
        item.future.call = item
        try:
            with self._dispatcher.lock:
                self._dispatcher.admit(item)
                lane = item.lane  # a queued item may get one any moment, and is begun by the loop
            if lane is not None and item.deadline is None:
                self._begin_here(item, lane)
            elif lane is not None:
                self.begin_soon(item)
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
        lane, exchange = item.lane, item.exchange
        if lane is not None and exchange is not None and lane.has_request_of(exchange):
            item.future.begin()  # its request was sent
        if item.future.running():
            item.future.cancel()
        else:
            self._dispatcher.repair(item)

    # -- without the loop ----------------------------------------------------------------------

    def _begin_here(self, item: FutureItem, lane: PooledLane) -> None:
        """Send the request of an item in this thread."""
        exchange = Exchange(
            lane.new_call_id(), item.name, display=Display(item.context), raise_original=True
        )
        try:
            segments = item.encode(lane, exchange.call_id)
        except Exception as error:  # noqa: BLE001 - it is the future's outcome
            self.end(item, outcome_of(error), error)
            return
        item.claim = threading.Lock()
        lane.begin(exchange)
        item.exchange = exchange
        is_sent = lane.send_now(segments)
        item.future.begin()
        item.sent = time.perf_counter()
        if not is_sent or not self._watch.begin(lane, item):
            self._loop_thread.soon(self._take_over, item)

    def fetch(self, item: FutureItem, seconds: float) -> None:
        """Receive the answer of an item in this thread, which waits for it, if it comes soon."""
        lane, exchange, claim = item.lane, item.exchange, item.claim
        if lane is None or exchange is None or claim is None or lane.fileno() < 0:
            return
        claimed: list[bool] = []
        try:
            claimed.extend(map(claim.acquire, (False,)))  # in C: Ctrl-C cannot lose the claim
            if not claimed[0]:
                return
            self._watch.end(lane)
            found = lane.await_answer(exchange, min(seconds, SOON))
            if found is not None and self._restore(lane, exchange, found):
                lane.end(exchange)
                value = exchange.outcome()
                self._dispatcher.finish(item, "cancelled" if item.future.cancelled() else "ok")
                item.future.call = None
                if item.future.deliver_unnoticed(value):
                    return
            self._loop_thread.soon(self._adopt, item)
        except BaseException:
            if claimed and claimed[0]:
                self._loop_thread.soon(self._adopt_after_interrupt, item)
            raise

    def _restore(self, lane: PooledLane, exchange: Exchange, found: PlainAnswer) -> bool:
        """Restore a value; its code must not wait for the lane, which is still assigned."""
        stand_ins, here = self._loop_thread.stand_ins, threading.get_ident()
        try:
            stand_ins.add(here)
            return lane.take_answer(exchange, found)
        finally:
            stand_ins.discard(here)

    def _take_over_arrived(self) -> None:
        for item in self._watch.arrived():
            self._take_over(item)

    def _take_over(self, item: FutureItem) -> None:
        """Run an item in the loop, unless a thread that waits for it receives its answer."""
        if item.claim is not None and item.claim.acquire(blocking=False):
            assert item.lane is not None
            self._watch.end(item.lane)
            self._adopt(item)

    def _adopt_after_interrupt(self, item: FutureItem) -> None:
        """Run an item in the loop, or complete its end, after a KeyboardInterrupt in `fetch`."""
        if item.finished:
            self._dispatcher.repair(item)
        self._adopt(item)

    def _adopt(self, item: FutureItem) -> None:
        """Run an item in the loop, with what has arrived for it, if that was not done before."""
        if item.claim is None:
            return
        item.claim = None
        if item.finished:  # only to be delivered: somebody is to be notified
            item.future.call = None
            assert item.exchange is not None
            item.future.deliver(item.exchange.outcome())
        else:
            assert item.lane is not None
            self._open_pipeline(item, item.lane).adopt(item)

    # -- in the loop ---------------------------------------------------------------------------

    def begin_soon(self, item: FutureItem) -> None:
        """Run an item that has its lane, or end one that will not get any; from any thread."""
        self._loop_thread.soon(self._begin, item)

    def _begin(self, item: FutureItem) -> None:
        future = item.future
        if future.running():  # notified twice, see Dispatcher.repair
            return
        item.set_timer(None)
        if item.finished or not future.begin():
            self._end_cancelled(item)
        elif item.lane is None and self._dispatcher.accounting.closed_because is not None:
            self._end_cancelled(item)
            future.cancel()
        elif item.lane is None:
            self.end(item, "lost", self.refusals.unserved(item))
        else:
            self._open_pipeline(item, item.lane).begin(item)

    def _open_pipeline(self, item: FutureItem, lane: PooledLane) -> LanePipeline:
        """Hand the lane of an item to a pipeline, whose first item it is."""
        pipeline = LanePipeline(self, lane, item.name)
        with self._dispatcher.lock:
            lane.holder = pipeline  # which releases it
            item.is_prefetched = True
        self._enter(item, pipeline)
        return pipeline

    def _enter(self, item: FutureItem, pipeline: LanePipeline) -> None:
        item.pipeline = pipeline
        if item.future.cancelled():  # before that
            self._loop_thread.soon(pipeline.cancel, item)

    def prefetch(self, lane: PooledLane, count: int) -> list[FutureItem]:
        """Take further items for a lane from the head of the queue."""
        items = []
        for item in self._dispatcher.prefetch(lane, count):
            assert isinstance(item, FutureItem)
            if item.timer is not None:
                item.set_timer(None)
            assert isinstance(lane.holder, LanePipeline)
            if item.future.begin():
                self._enter(item, lane.holder)
                items.append(item)
            else:
                self._end_cancelled(item)
        return items

    def requeue(self, item: FutureItem) -> None:
        """Return an item that was not started to the head of the queue."""
        if not item.future.wait_again():
            self._end_cancelled(item)
            return
        item.pipeline = None
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
        error = self.refusals.error_for_death(worker, await worker.adeath())
        for item in reversed(items[1:]):
            if self.refusals.closing_error() is None:
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
        item.future.call = None
        item.future.deliver(value, error)

    def _end_cancelled(self, item: FutureItem) -> None:
        """Count an item whose future was cancelled before it was started."""
        self._dispatcher.finish(item, "cancelled")
        item.future.call = None

    def cancel(self, item: FutureItem) -> None:
        """Stop an item whose future was cancelled, from any thread."""
        if item.claim is not None:
            self._loop_thread.soon(self._take_over, item)
        elif item.pipeline is not None:
            self._loop_thread.soon(item.pipeline.cancel, item)
        else:
            self._cancel_queued(item)

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
            self.end(item, "timeout", item.late_error(self._pool))
