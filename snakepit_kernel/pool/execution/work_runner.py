"""Runs work items on the workers of a pool, and again what failed and may be retried."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from ...errors import ToolError
from ...lane.exchange import Exchange
from ...lane.replies import Interrupted
from ...processes.concurrency import LoopThread
from ...tracebacks import hide_own_frames
from ..call_events import describe_error
from ..config import PoolConfig
from ..dispatcher import Dispatcher
from ..policies import Recovery
from ..results import CellResult
from ..work_item import HostCallContext, WorkItem, call_chain, outcome_of
from ..workers.jupyter import Cell, ShellRequest, where_interrupted
from ..workers.worker import PooledLane
from .calls import (
    INTERRUPT_INTERVAL,
    AsyncStream,
    CallRunner,
    interrupt_until_heard,
    note_stop,
)
from .lane_waiter import LaneWaiter

Answer = dict[str, Any] | None
"""Content of a reply, if there was one."""


class WorkRunner:
    """Runs calls, streams and cells, each driven by its caller's thread or event loop.

    Parameters
    ----------
    config
        The pool's options.
    dispatcher
        Releases the lanes, and counts the work.
    waiter
        Admits the work, and waits for its lanes.
    loop_thread
        Repairs the dispatcher's state after a KeyboardInterrupt.
    calls
        Drives the lanes.
    """

    def __init__(
        self,
        config: PoolConfig,
        dispatcher: Dispatcher,
        waiter: LaneWaiter,
        loop_thread: LoopThread,
        calls: CallRunner,
    ) -> None:
        self._pool = config.name
        self._grace = config.grace
        self._recovery = Recovery(barrier=config.crash_barrier, retry=config.retry)
        self._dispatcher = dispatcher
        self._waiter = waiter
        self._loop_thread = loop_thread
        self._calls = calls

    # -- blocking calls ------------------------------------------------------------------------

    def call(
        self,
        work: WorkItem,
        *,
        raise_original: bool = False,
    ) -> Any:
        """Run a call on a worker, driven by this thread, and return its value."""
        try:
            while True:
                try:
                    return self._try_call(work, raise_original)
                except BaseException as error:
                    pause = self._prepare_retry(work, error)
                    if pause is None:
                        raise
                self._waiter.back_off(work, pause)
        except KeyboardInterrupt as error:
            self._fail(work, error)
            self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _try_call(self, work: WorkItem, raise_original: bool) -> Any:
        nesting = None if work.host_call is None else self._nesting(work, can_hop=True)
        lane = self._waiter.wait(work, nesting)
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        segments = work.encode(lane, exchange.call_id)
        if work.nested_in is None or work.nested_in.is_here:
            self._calls.drive(lane, exchange, segments, work)
        else:  # another thread's loop reads that lane
            drive = self._calls.drive_async(lane, exchange, segments, work)
            assert work.nested_in.loop is not None
            asyncio.run_coroutine_threadsafe(drive, work.nested_in.loop).result()
        return self._conclude(work, exchange)

    def stream(self, begin: Callable[[], WorkItem], room: int) -> Generator[Any, None, None]:
        """Run a stream on a worker, driven by the thread that consumes its chunks."""
        work = begin()
        work.kind = "stream"
        try:
            while True:
                try:
                    yield from self._try_stream(work, room)
                    break
                except BaseException as error:
                    pause = self._prepare_retry(work, error)
                    if pause is None:
                        raise
                self._waiter.back_off(work, pause)
        except KeyboardInterrupt as error:
            self._fail(work, error)
            self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _try_stream(self, work: WorkItem, room: int) -> Generator[Any, None, None]:
        lane = self._waiter.wait(work, self._nesting(work, can_hop=False))
        exchange = Exchange(lane.new_call_id(), work.name)
        segments = work.encode(lane, exchange.call_id)
        yield from self._calls.stream(lane, exchange, segments, work, room)
        self._conclude(work, exchange)

    def run_cell(self, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by this thread."""
        try:
            return self._run_assigned(self._waiter.wait(work), work, cell)
        except BaseException as error:
            self._fail(work, error)
            if isinstance(error, KeyboardInterrupt):
                self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def run_request(self, work: WorkItem, request: ShellRequest) -> None:
        """Run a request other than a cell in the one process that can, driven by this thread.

        Raises
        ------
        WorkerDied
            The process has ended, or ends now.
        PoolClosed
            The pool accepts no work.
        """
        try:
            lane = self._waiter.wait(work)
            if work.only is not None and lane is not work.only:  # the successor of its process
                worker = work.only.worker
                raise worker.process.describe_death(worker.name)
            self._calls.run_request(lane, work, request)
        except BaseException as error:
            self._fail(work, error)
            raise
        self._dispatcher.finish(work, "ok")

    def ask_if_idle(self, work: WorkItem, request: ShellRequest) -> Callable[[], Answer] | None:
        """Reserve the last worker of a session for a request, if it is idle.

        Returns
        -------
        callable or None
            Runs the request, in any thread, and returns the content of its reply. None if the
            worker is busy, or the session has none.
        """
        try:
            lane = self._dispatcher.admit_if_idle(work)
        except BaseException as error:
            self._fail(work, error)
            raise
        return None if lane is None else partial(self._ask, lane, work, request)

    def _ask(self, lane: PooledLane, work: WorkItem, request: ShellRequest) -> Answer:
        try:
            run = self._calls.run_request(lane, work, request)
        except BaseException as error:
            self._fail(work, error)
            raise
        self._dispatcher.finish(work, "ok")
        return run.reply

    def run_cells(self, cells: Mapping[WorkItem, Cell]) -> list[CellResult | Exception]:
        """Run cells on several workers at the same time, each driven by a thread of its own.

        Returns
        -------
        list
            For each its result, or the exception that has ended it.
        """
        with ThreadPoolExecutor(max_workers=max(1, len(cells))) as threads:
            # Each in a copy of the context, which tells the notebook the cell of an output.
            running = [
                threads.submit(contextvars.copy_context().run, self.run_cell, work, cell)
                for work, cell in cells.items()
            ]
            try:
                wait(running)
                return [_outcome(future) for future in running]
            except KeyboardInterrupt as interrupt:
                self._stop_cells(interrupt, dict(zip(cells, running, strict=True)))
                raise

    def _stop_cells(
        self, interrupt: KeyboardInterrupt, running: Mapping[WorkItem, Future[CellResult]]
    ) -> None:
        """Interrupt cells that other threads run until they have ended; terminate late workers."""
        ids: dict[WorkItem, int] = {}
        until = time.monotonic() + self._grace
        left = set(running.values())
        try:
            while left and time.monotonic() < until:
                for work in [work for work, future in running.items() if future in left]:
                    work.is_given_up = True
                    if work.lane is not None:
                        work.lane.interrupt(ids.setdefault(work, work.lane.new_call_id()))
                    elif self._dispatcher.withdraw(work):  # it waits for a lane
                        work.on_assigned()
                left = wait(left, timeout=INTERRUPT_INTERVAL).not_done
        finally:  # a second Ctrl-C
            for work, future in running.items():
                if future in left and work.lane is not None:
                    self._dispatcher.supervisor.terminate_when_idle(work.lane)
                    note_stop(interrupt, work.lane.worker.name, ended_in_time=False)
        for future in running.values():
            if future.done() and future.exception() is None:
                result = future.result()
                where = where_interrupted(result.error)
                note_stop(interrupt, result.worker, where, ended_in_time=True)

    # -- calls of an event loop ----------------------------------------------------------------

    async def acall(self, work: WorkItem, *, raise_original: bool = False) -> Any:
        """Run a call on a worker, driven by the running event loop, and return its value."""
        while True:
            try:
                return await self._try_acall(work, raise_original)
            except BaseException as error:
                pause = self._prepare_retry(work, error)
                if pause is None:
                    raise
            await self._back_off(work, pause)

    async def _try_acall(self, work: WorkItem, raise_original: bool) -> Any:
        lane = await self._waiter.wait_async(work, self._nesting(work, can_hop=True))
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        segments = work.encode(lane, exchange.call_id)
        drive = self._calls.drive_async(lane, exchange, segments, work)
        nested = work.nested_in
        if nested is None or nested.is_here:
            await drive
        else:  # another thread's loop reads that lane
            assert nested.loop is not None
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(drive, nested.loop))
        return self._conclude(work, exchange)

    async def astream(self, begin: Callable[[], WorkItem], room: int) -> AsyncGenerator[Any, None]:
        """Run a stream on a worker, driven by the running event loop."""
        try:
            work = begin()
            work.kind = "stream"
            while True:
                try:
                    lane = await self._waiter.wait_async(work, self._nesting(work, can_hop=False))
                    exchange = Exchange(lane.new_call_id(), work.name)
                    segments = work.encode(lane, exchange.call_id)
                    async with AsyncStream(
                        self._calls, lane, exchange, work, segments=segments, room=room
                    ) as stream:
                        while await stream.has_more():
                            yield exchange.next_chunk()
                    self._conclude(work, exchange)
                    break
                except BaseException as error:
                    pause = self._prepare_retry(work, error)
                    if pause is None:
                        raise
                await self._back_off(work, pause)
        except BaseException as error:
            hide_own_frames(error)
            raise

    async def arun_cell(self, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by a thread, without blocking the event loop."""
        try:
            lane = await self._waiter.wait_async(work)
        except BaseException as error:
            self._fail(work, error)
            raise
        context = contextvars.copy_context()
        # Not a task: asyncio.run() cancels the remaining tasks, and the thread would go on alone.
        run = asyncio.get_running_loop().run_in_executor(
            None, context.run, self._run_assigned, lane, work, cell
        )
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            work.is_given_up = True
            with interrupt_until_heard(lane, lane.new_call_id()):
                done, _ = await asyncio.wait({run}, timeout=self._grace)
            if not done:
                self._dispatcher.supervisor.terminate_when_idle(lane)
            await asyncio.gather(run, return_exceptions=True)
            raise

    # -- each attempt ---------------------------------------------------------------------------

    def _nesting(self, work: WorkItem, *, can_hop: bool) -> HostCallContext | None:
        """Return the host call that the work is made from, if its worker can run it meanwhile.

        For work that is bound to a worker, outer host calls of the chain qualify as well.

        Parameters
        ----------
        work
            The work.
        can_hop
            Whether the event loop that drives that worker's lane may drive the work.
        """
        if work.host_call is None:
            return None
        for host_call in call_chain(work.host_call):
            if self._dispatcher.supervisor.has(host_call.lane.worker):
                in_reach = host_call.is_here or (can_hop and host_call.loop is not None)
                if host_call.reentrant and in_reach and work.fits(host_call.lane):
                    return host_call
                if work.home is None:
                    return None
        return None

    def _run_assigned(self, lane: PooledLane, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on its assigned lane, and release the lane from the same thread."""
        work.title = cell.title
        try:
            result = self._calls.run_cell(lane, work, cell)
        except BaseException as error:
            self._fail(work, error, "cancelled" if work.is_given_up else "")
            raise
        for problem in (result.error, result.value_error):
            describe_error(problem, work, self._pool)
        outcome = "ok" if result.ok else "error"
        self._dispatcher.finish(work, "cancelled" if work.is_given_up else outcome, result.error)
        return result

    def _conclude(self, work: WorkItem, exchange: Exchange) -> Any:
        """Return the value of an answered call, or raise its exception."""
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:  # not by its caller
            if (closed := self._dispatcher.refusals.closing_error()) is not None:
                raise closed from None  # by the pool's shutdown
            work.ends_as = "cancelled"
            message = f"{work.name} was interrupted in its worker"
            raise ToolError("KeyboardInterrupt", message, interrupted.traceback) from None
        except BaseException:
            work.ends_as = "error"
            raise
        self._dispatcher.finish(work, "ok")
        return value

    def _prepare_retry(self, work: WorkItem, error: BaseException) -> float | None:
        """Prepare failed work for a retry, or finish it.

        Returns
        -------
        float or None
            Seconds to back off before the retry; None if there is none, and the work is finished.
        """
        pause = self._pause_after(work, error)
        if pause is None:
            self._fail(work, error)
        else:
            self._dispatcher.prepare_retry(work, work.attempt_that_failed(error))
        return pause

    def _pause_after(self, work: WorkItem, error: BaseException) -> float | None:
        """Return the seconds to back off before failed work is retried; None for no retry."""
        if work.finished or self._dispatcher.supervisor.is_closing:
            return None
        if work.nested_in is not None or work.ends_as == "cancelled" or work.has_given:
            return None
        left = None if work.deadline is None else work.deadline - time.monotonic()
        return self._recovery.pause(
            error, work.attempts, idempotent=work.idempotent, seconds_left=left
        )

    def _fail(self, work: WorkItem, error: BaseException, outcome: str = "") -> None:
        """Finish work that ended with an error, and add the call's details to the error."""
        describe_error(error, work, self._pool)
        self._dispatcher.finish(work, outcome or work.ends_as or outcome_of(error), error)

    async def _back_off(self, work: WorkItem, pause: float) -> None:
        """Wait for the back-off before the next attempt of a work item."""
        try:
            await self._waiter.back_off_async(work, pause)
        except BaseException as error:
            self._fail(work, error)
            raise


def _outcome(running: Future[CellResult]) -> CellResult | Exception:
    error = running.exception()
    if error is None or isinstance(error, Exception):
        return error or running.result()
    raise error
