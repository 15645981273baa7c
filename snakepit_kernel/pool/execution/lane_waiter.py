"""Waits of callers: for a lane, and between two attempts."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from functools import partial

from ...processes.concurrency import LoopThread
from ..config import PoolConfig
from ..dispatcher import Dispatcher
from ..scheduling.wait_notice import NOTICE_AFTER, wait_listener
from ..work_item import HostCallContext, WorkItem
from ..workers.worker import PooledLane


class LaneWaiter:
    """Lets the callers of work wait, by blocking their thread or without blocking an event loop.

    Parameters
    ----------
    config
        The pool's options.
    dispatcher
        Admits the work and assigns lanes to it.
    loop_thread
        The pool's own thread, in which workers are released, and which must not wait for one.
    """

    def __init__(self, config: PoolConfig, dispatcher: Dispatcher, loop_thread: LoopThread) -> None:
        self._pool = config.name
        self._futures_queue_timeout = config.futures_queue_timeout
        self._dispatcher = dispatcher
        self._loop_thread = loop_thread
        self._backing_off: set[WorkItem] = set()  # between two attempts

    # -- for a lane ----------------------------------------------------------------------------

    def wait(self, work: WorkItem, nesting: HostCallContext | None = None) -> PooledLane:
        """Admit work, and block this thread until a lane is assigned."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            if work.finished:
                dispatcher.admit(work, nesting)
            else:
                dispatcher.admit_again(work)
            if work.lane is not None:
                return work.lane
            if self._loop_thread.is_current:
                dispatcher.scheduler.withdraw(work)
                msg = (
                    f"no worker is free for {work.name}, and this code must not wait for one: it "
                    "runs in the pool's own thread, as callbacks of futures and __setstate__ of "
                    "results do, and workers are given back there; use submit(), or another thread"
                )
                raise RuntimeError(msg)
            gate = threading.Lock()
            gate.acquire()
            work.on_assigned = gate.release
        if not self._wait_for_gate(gate, work) and dispatcher.withdraw(work):
            raise work.late_error(self._pool)
        if work.lane is None and work.is_given_up:
            raise asyncio.CancelledError  # by the thread that has asked for it
        if work.lane is None:
            raise dispatcher.refusals.unserved(work)
        return work.lane

    def _wait_for_gate(self, gate: threading.Lock, work: WorkItem) -> bool:
        """Wait for a gate until the queue deadline; return whether it was opened in time."""
        listener = wait_listener()
        if listener is not None:
            work.wait_in_queue(self._futures_queue_timeout)
            if _seconds_until(work.queue_deadline) > NOTICE_AFTER:
                if gate.acquire(timeout=NOTICE_AFTER):
                    return True
                listener(self._description_of_wait(work))
        seconds = _seconds_until(work.queue_deadline)
        return gate.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def _description_of_wait(self, work: WorkItem) -> str:
        """Describe to the user what queued work waits for."""
        dispatcher = self._dispatcher
        with dispatcher.lock:
            busy = [
                f"{worker.name} runs {' and '.join(worker.current)}"
                for worker in dispatcher.supervisor.workers.values()
                if worker.current and (work.home is None or work.home.takes(worker.lanes[0]))
            ]
            others = dispatcher.scheduler.waiting - 1
        doing = "; ".join(busy) or "its workers start"
        queue = f" {others} more wait." if others > 0 else ""
        return (
            f"{work.name} waits for a worker of pool {self._pool!r}: {doing}.{queue} "
            "Stop ends the wait."
        )

    async def wait_async(
        self, work: WorkItem, nesting: HostCallContext | None = None
    ) -> PooledLane:
        """Admit work, and wait until a lane is assigned without blocking the event loop."""
        dispatcher = self._dispatcher
        loop = asyncio.get_running_loop()
        assigned = asyncio.Event()
        work.on_assigned = partial(self._notify_in, loop, assigned, work)
        if work.finished:
            dispatcher.admit(work, nesting)
        else:
            dispatcher.admit_again(work)
        if work.lane is None:
            until = work.queue_deadline
            try:
                async with asyncio.timeout(None if until is None else until - time.monotonic()):
                    await assigned.wait()
            except TimeoutError:
                if dispatcher.withdraw(work):
                    raise work.late_error(self._pool) from None
            if work.lane is None:
                raise dispatcher.refusals.unserved(work)
        return work.lane

    def _notify_in(
        self, loop: asyncio.AbstractEventLoop, event: asyncio.Event, work: WorkItem
    ) -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop was closed while the task was still waiting
            self._dispatcher.finish(work, "cancelled")

    # -- between two attempts ------------------------------------------------------------------

    def back_off(self, work: WorkItem, seconds: float) -> None:
        """Block this thread for the back-off before a retry, or until the pool is closed."""
        gate = threading.Lock()
        gate.acquire()
        if self._begin_backoff(work, gate.release):
            try:
                gate.acquire(timeout=seconds)
            finally:
                self._backing_off.discard(work)

    async def back_off_async(self, work: WorkItem, seconds: float) -> None:
        """Wait for the back-off before a retry without blocking the event loop."""
        woken = asyncio.Event()
        wake = partial(self._notify_in, asyncio.get_running_loop(), woken, work)
        if self._begin_backoff(work, wake):
            try:
                await asyncio.wait_for(woken.wait(), seconds)
            except TimeoutError:
                pass
            finally:
                self._backing_off.discard(work)

    def _begin_backoff(self, work: WorkItem, wake: Callable[[], None]) -> bool:
        """Register work to be woken when the pool is closed; return whether it is still open."""
        with self._dispatcher.lock:
            work.on_assigned = wake
            self._backing_off.add(work)
            return not self._dispatcher.supervisor.is_closing

    def end_backoffs(self) -> None:
        """Let all work between two attempts begin the next one, or be refused, at once."""
        with self._dispatcher.lock:
            ended = list(self._backing_off)
            self._backing_off.clear()
        for item in ended:
            item.on_assigned()


def _seconds_until(deadline: float | None) -> float:
    return math.inf if deadline is None else max(0.0, deadline - time.monotonic())
