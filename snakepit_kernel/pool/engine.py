"""The engine of a pool: its workers, its queue, and how work gets from one to the other.

Three kinds of threads meet here: callers, who drive the lane of the worker they hold; the
supervisor, which starts and ends processes and drives the lanes of futures; and event loops of
callers who await. ``Engine._lock`` guards the scheduler, the states of workers and the counters,
and is held for moments only. A worker's lane and channels belong to whoever holds the worker.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import zmq
import zmq.asyncio

from ..errors import (
    CallTimeout,
    PoolClosed,
    PoolSaturated,
    QueueTimeout,
    SnakepitError,
    ToolError,
    WorkerDied,
)
from ..lane.exchange import Exchange, Interrupted, OnOutput, echo
from ..processes.folders import make_folder, remove_folder, sweep_folders
from ..processes.supervisor import Supervisor
from ..protocol.frames import Segment
from ..protocol.messages import ToolInfo
from .cells import Cell
from .config import PoolConfig
from .crew import Crew
from .driver import Driver, insisting
from .futures import CallFuture
from .results import CellResult
from .scheduler import QueueFull, Scheduler
from .states import WorkerEvent, WorkerState
from .status import PoolStats, PoolStatus, WorkerStatus, memory_of, status_path
from .work import OUTCOMES, Work, outcome_of
from .worker import Worker

logger = logging.getLogger(__name__)

STATUS_INTERVAL = 1.0
"""Seconds between looks whether the file that `snakepit status` reads is out of date."""

COUNTERS = ("submitted", *OUTCOMES)

FAREWELL = 0.5
"""Seconds that those who held the workers of a pool that has ended may take to let go."""

MakeFrames = Callable[[Worker, int], list[Segment]]
"""Lays out a call's request for one worker, with the id of the call there."""


class Engine:
    """Runs a pool's work on its workers.

    Parameters
    ----------
    config
        The pool's options.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.pid = os.getpid()
        self._closed_because: str | None = None
        self._lock = threading.RLock()
        self._quiet = threading.Condition(self._lock)
        self._closing = threading.Lock()
        self._scheduler: Scheduler[Worker] = Scheduler(config.max_queue)
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._pending = 0
        self._published: object = None
        self._sessions: dict[str, None] = {}
        sweep_folders()
        self._folder = make_folder(config.name)
        self._context: zmq.Context[Any] = zmq.Context()
        self._supervisor = Supervisor(f"snakepit-{config.name}")
        self._crew = Crew(
            config,
            self._folder,
            zmq.asyncio.Context(self._context),
            supervisor=self._supervisor,
            lock=self._lock,
            scheduler=self._scheduler,
            lend=self._lend_next,
        )
        self._driver = Driver(config.grace, self._context, self._crew.condemn, self._explain)
        atexit.register(self.close)
        _engines.add(self)

    # -- workers -------------------------------------------------------------------------------

    def open(self) -> None:
        """Start all workers; return when each is ready.

        Raises
        ------
        StartFailed
            One of them could not start. Nothing is left running.
        """
        starting = self._supervisor.ask(self._open())
        try:
            starting.result()
        except BaseException:
            starting.cancel()
            self.close("it did not start", grace=0.0)
            raise

    async def _open(self) -> None:
        await self._crew.start()
        self._publish()
        self._supervisor.spawn(self._publish_status())

    def _explain(self, worker: Worker, death: WorkerDied) -> SnakepitError:
        """Say why a worker left whoever held it."""
        self._crew.strand(worker)  # or it is lent again before the supervisor has seen that it died
        if self._crew.is_dismissed:
            return PoolClosed(self.config.name, self._closed_because or "it was shut down")
        if death.status is None and not worker.died.is_set():
            worker.condemn()  # it lives, but nobody can talk to it
        return death

    @property
    def tools(self) -> dict[str, ToolInfo]:
        """What the workers offer, by name."""
        return self._crew.tools

    # -- admission -----------------------------------------------------------------------------

    def check_open(self) -> None:
        """Do nothing while the pool takes work.

        Raises
        ------
        PoolClosed
            It does not any more.
        """
        if self._closed_because is not None:
            raise PoolClosed(self.config.name, self._closed_because)

    def _admit(self, work: Work) -> None:
        """Count a piece of work, and give it a worker or a place in the queue."""
        with self._lock:
            self.check_open()
            if work.slot is not None:
                work.wanted = self._worker_in(work.slot)
            work.settled = False
            self._counts["submitted"] += 1
            self._pending += 1
            if work.session is not None:
                self._sessions[work.session] = None
            try:
                if not self._crew.workers:
                    raise self._unserved(work)
                if self._scheduler.request(work, bounded=work.bounded):
                    self._hold(work)
            except QueueFull:
                self._settle(work, "saturated")
                raise PoolSaturated(self.config.name, self.config.max_queue) from None
            except SnakepitError:
                self._settle(work, "lost")
                raise

    def _worker_in(self, slot: int) -> Worker:
        if slot not in self._crew.workers:
            msg = f"there is no worker {slot}; there are {sorted(self._crew.workers)}"
            raise ValueError(msg)
        return self._crew.workers[slot]

    def _hold(self, work: Work) -> None:
        worker = work.worker
        assert worker is not None
        worker.holder = work
        worker.apply(WorkerEvent.LEND)
        worker.current = work.name
        worker.calls += 1

    def _lend_next(self, worker: Worker) -> None:
        ticket = self._scheduler.add(worker)
        if ticket is not None:
            assert isinstance(ticket, Work)
            self._hold(ticket)
            ticket.on_grant()
            self._scheduler.granted = None

    def _withdraw(self, work: Work) -> bool:
        with self._lock:
            return self._scheduler.withdraw(work)

    def _settle(self, work: Work, outcome: str) -> None:
        """Count how a piece of work ended, and give its worker, or its place, to the next."""
        with self._lock:
            if work.settled:
                return
            work.settled = True  # these three belong together: no call between them, no Ctrl-C
            self._counts[outcome] += 1
            self._pending -= 1
            worker = work.worker
            if worker is None:
                self._scheduler.withdraw(work)
            else:
                self._take_back(worker)
            if self._pending == 0:
                self._quiet.notify_all()

    def _take_back(self, worker: Worker) -> None:
        worker.holder = None
        worker.current = None
        if worker.state is not WorkerState.READY:  # else Ctrl-C came before it was lent
            worker.apply(WorkerEvent.GIVE_BACK)
        if worker.state is WorkerState.READY and not self._scheduler.is_idle(worker):
            self._lend_next(worker)
        elif worker.state is WorkerState.DEAD:
            worker.close_channels()

    def _mend(self, work: Work) -> None:
        """Put the books in order that Ctrl-C may have left in the middle of an entry.

        It comes between any two calls of the main thread: when a worker has left the list of the
        idle ones and nobody has it yet, when a ticket has left the queue and nobody was told. The
        supervisor does this, because no signal handler runs in its thread.
        """
        with self._lock:
            self._settle(work, "cancelled")
            self._scheduler.withdraw(work)
            ticket = self._scheduler.granted
            if isinstance(ticket, Work) and ticket.worker is not None and not ticket.settled:
                self._scheduler.granted = None
                if ticket.worker.holder is not ticket:
                    self._hold(ticket)
                with contextlib.suppress(RuntimeError):  # it was told already
                    ticket.on_grant()
            for worker in self._crew.workers.values():
                worker.defined.clear()  # what was to be sent may not have been
                holder = worker.holder
                if isinstance(holder, Work) and not holder.settled:
                    continue
                if worker.state in {WorkerState.BUSY, WorkerState.READY}:
                    self._take_back(worker)
            if self._pending == 0:
                self._quiet.notify_all()

    def _unserved(self, work: Work) -> SnakepitError:
        """Say why a piece of work will never get a worker."""
        if self._crew.problem is not None:
            return self._crew.problem
        if work.wanted is not None and self._closed_because is None:
            return work.wanted.death()
        return PoolClosed(self.config.name, self._closed_because or "it has no workers")

    def _late(self, work: Work) -> SnakepitError:
        """Say that a piece of work waited too long."""
        if work.timeout is not None and work.queue_deadline == work.deadline:
            return CallTimeout(work.name, work.timeout)
        return QueueTimeout(self.config.name, time.monotonic() - work.asked)

    # -- work of a thread that waits -----------------------------------------------------------

    def call(
        self,
        work: Work,
        make_frames: MakeFrames,
        *,
        on_output: OnOutput | None = None,
        raise_original: bool = False,
    ) -> Any:
        """Run a call on a worker, driven by this thread, and return its value."""
        try:
            try:
                worker = self._lend(work)
                exchange = Exchange(
                    worker.lane.new_call_id(),
                    work.name,
                    on_output=on_output,
                    raise_original=raise_original,
                )
                self._driver.drive(worker, exchange, make_frames(worker, exchange.call_id), work)
            except BaseException as error:
                self._settle(work, outcome_of(error))
                raise
            return self._conclude(work, exchange)
        except KeyboardInterrupt:
            self._supervisor.soon(self._mend, work)
            raise

    def run_cell(self, work: Work, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by this thread."""
        try:
            return self._run_lent(self._lend(work), work, cell)
        except KeyboardInterrupt:
            self._settle(work, "cancelled")
            self._supervisor.soon(self._mend, work)
            raise
        except BaseException as error:
            self._settle(work, outcome_of(error))
            raise

    def _lend(self, work: Work) -> Worker:
        """Wait for a worker."""
        with self._lock:
            self._admit(work)
            if work.worker is not None:
                return work.worker
            gate = threading.Lock()
            gate.acquire()
            work.on_grant = gate.release
        until = work.queue_deadline
        wait = -1 if until is None else max(0.0, until - time.monotonic())
        if not gate.acquire(timeout=wait) and self._withdraw(work):
            raise self._late(work)
        if work.worker is None:
            raise self._unserved(work)
        return work.worker

    def _conclude(self, work: Work, exchange: Exchange) -> Any:
        """Return the value of a call that has its answer, or raise its exception."""
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:  # by somebody else than its caller
            self._settle(work, "cancelled")
            message = f"{work.name} was interrupted in its worker"
            raise ToolError("KeyboardInterrupt", message, interrupted.traceback) from None
        except BaseException:
            self._settle(work, "error")
            raise
        self._settle(work, "ok")
        return value

    # -- work of an event loop -----------------------------------------------------------------

    async def acall(
        self, work: Work, make_frames: MakeFrames, *, raise_original: bool = False
    ) -> Any:
        """Run a call on a worker, driven by the running event loop, and return its value."""
        try:
            worker = await self._lend_async(work)
            exchange = Exchange(worker.lane.new_call_id(), work.name, raise_original=raise_original)
            segments = make_frames(worker, exchange.call_id)
            await self._driver.drive_async(worker, exchange, segments, work)
        except BaseException as error:
            self._settle(work, outcome_of(error))
            raise
        return self._conclude(work, exchange)

    async def arun_cell(self, work: Work, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by a thread, while the running event loop goes on."""
        try:
            worker = await self._lend_async(work)
        except BaseException as error:
            self._settle(work, outcome_of(error))
            raise
        context = contextvars.copy_context()
        # Not a task: asyncio.run() cancels those that are left, and the thread would go on alone.
        run = asyncio.get_running_loop().run_in_executor(
            None, context.run, self._run_lent, worker, work, cell
        )
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            work.is_given_up = True
            with insisting(worker, worker.lane.new_call_id()):
                done, _ = await asyncio.wait({run}, timeout=self.config.grace)
            if not done:
                self._crew.condemn(worker)
            await asyncio.gather(run, return_exceptions=True)
            raise

    def _run_lent(self, worker: Worker, work: Work, cell: Cell) -> CellResult:
        """Run a cell; the thread that does is the one to give the worker back."""
        try:
            result = self._driver.run_cell(worker, work, cell)
        except BaseException as error:
            self._settle(work, "cancelled" if work.is_given_up else outcome_of(error))
            raise
        outcome = "ok" if result.ok else "error"
        self._settle(work, "cancelled" if work.is_given_up else outcome)
        return result

    async def _lend_async(self, work: Work) -> Worker:
        loop = asyncio.get_running_loop()
        granted = asyncio.Event()
        work.on_grant = partial(self._grant_in, loop, granted, work)
        self._admit(work)
        if work.worker is None:
            until = work.queue_deadline
            try:
                async with asyncio.timeout(None if until is None else until - time.monotonic()):
                    await granted.wait()
            except TimeoutError:
                if self._withdraw(work):
                    raise self._late(work) from None
            if work.worker is None:
                raise self._unserved(work)
        return work.worker

    def _grant_in(
        self, loop: asyncio.AbstractEventLoop, granted: asyncio.Event, work: Work
    ) -> None:
        try:
            loop.call_soon_threadsafe(granted.set)
        except RuntimeError:  # the loop was closed with the task still in it
            self._settle(work, "cancelled")

    # -- work nobody waits for -----------------------------------------------------------------

    def submit(self, work: Work, make_frames: MakeFrames) -> CallFuture[Any]:
        """Run a call on a worker, driven by the supervisor; return its future."""
        future: CallFuture[Any] = CallFuture()
        context = contextvars.copy_context()

        def output(stream: str, text: str) -> None:
            context.run(echo, stream, text)  # to the cell that submitted it

        begin = partial(self._begin, work, make_frames, future, output)
        work.on_grant = partial(self._supervisor.soon, begin)
        future.on_cancel(partial(self._cancel_queued, work))
        try:
            self._admit(work)
            if work.worker is not None:
                self._supervisor.soon(begin)
            elif work.queue_deadline is not None:
                self._supervisor.soon(self._expire_later, work, future)
        except KeyboardInterrupt:
            self._supervisor.soon(self._abandon, work, future)
            raise
        return future

    def _abandon(self, work: Work, future: CallFuture[Any]) -> None:
        """End work whose future nobody got, because Ctrl-C came first."""
        if future.running():
            future.cancel()
        else:
            self._mend(work)

    def _begin(
        self, work: Work, make_frames: MakeFrames, future: CallFuture[Any], output: OnOutput
    ) -> None:
        if future.running():  # told twice, see _mend
            return
        if work.settled or not future.begin():
            self._settle(work, "cancelled")
        elif work.worker is None and self._closed_because is not None:
            self._settle(work, "cancelled")
            future.cancel()
        elif work.worker is None:
            self._settle(work, "lost")
            future.deliver(exception=self._unserved(work))
        else:
            task = self._supervisor.spawn(self._run_future(work, make_frames, future, output))
            future.on_cancel(partial(self._supervisor.soon, task.cancel))
            if future.cancelled():  # between the two lines above
                task.cancel()

    async def _run_future(
        self, work: Work, make_frames: MakeFrames, future: CallFuture[Any], output: OnOutput
    ) -> None:
        worker = work.worker
        assert worker is not None
        exchange = Exchange(
            worker.lane.new_call_id(), work.name, on_output=output, raise_original=True
        )
        try:
            segments = make_frames(worker, exchange.call_id)
            await self._driver.drive_async(worker, exchange, segments, work)
            value = self._conclude(work, exchange)
        except asyncio.CancelledError:
            self._settle(work, "cancelled")
            future.cancel()
        except BaseException as error:  # noqa: BLE001 - it is the future's outcome
            self._settle(work, outcome_of(error))
            future.deliver(exception=error)
        else:
            future.deliver(value)

    def _cancel_queued(self, work: Work) -> None:
        if self._withdraw(work):
            self._settle(work, "cancelled")

    def _expire_later(self, work: Work, future: CallFuture[Any]) -> None:
        assert work.queue_deadline is not None

        def expire() -> None:
            if self._withdraw(work):
                self._settle(work, "timeout")
                future.deliver(exception=self._late(work))

        loop = asyncio.get_running_loop()
        loop.call_later(max(0.0, work.queue_deadline - time.monotonic()), expire)

    # -- looking -------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the counters."""
        with self._lock:
            waiting = self._scheduler.waiting
            return PoolStats(
                **self._counts,
                started=self._crew.started,
                died=self._crew.died,
                queued=waiting,
                running=self._pending - waiting,
            )

    def status(self) -> PoolStatus:
        """Return what the pool looks like now."""
        now = time.monotonic()
        with self._lock:
            workers = [
                WorkerStatus(
                    name=worker.name,
                    pid=worker.pid,
                    state=worker.state.value,
                    seconds=now - worker.since,
                    calls=worker.calls,
                    memory_bytes=memory_of(worker.pid),
                    running=worker.current,
                    run_id=worker.run_id,
                )
                for _, worker in sorted(self._crew.workers.items())
            ]
            return PoolStatus(
                name=self.config.name,
                owner_pid=self.pid,
                adapter=self.config.adapter_name,
                workers=workers,
                stats=self.stats(),
                sessions=list(self._sessions),
                problem=str(self._crew.problem) if self._crew.problem else self._closed_because,
            )

    def logs(self) -> dict[str, str]:
        """Return the last output of each worker's process, by the worker's name."""
        with self._lock:
            workers = [worker for _, worker in sorted(self._crew.workers.items())]
        return {worker.name: worker.last_output() for worker in workers}

    def slots(self) -> list[int]:
        """Return the numbers of the workers."""
        with self._lock:
            return sorted(self._crew.workers)

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the supervisor's thread, in which the callbacks of futures run."""
        return self._supervisor.is_current

    @property
    def is_open(self) -> bool:
        """Whether the pool takes work."""
        return self._closed_because is None

    async def _publish_status(self) -> None:
        """Keep the file that `snakepit status` reads up to date."""
        while True:
            # A look at intervals: telling of each call would cost the call.
            await asyncio.sleep(STATUS_INTERVAL)
            self._publish()

    def _publish(self) -> None:
        status = self.status()
        news = (status.stats, [(worker.name, worker.state) for worker in status.workers])
        if news != self._published:
            self._published = news
            path = status_path(self._folder)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(status.as_json()))
            temporary.replace(path)

    # -- ending --------------------------------------------------------------------------------

    def stop_accepting(self, *, cancel_queued: bool) -> None:
        """Take no more work; what is queued still runs, unless it is to be cancelled."""
        if os.getpid() != self.pid:
            return
        with self._lock:
            self._closed_because = self._closed_because or "it was shut down"
            if not cancel_queued:
                return
            cancelled = self._scheduler.drain()
        for ticket in cancelled:
            ticket.on_grant()

    def wait_until_quiet(self) -> None:
        """Return when nothing is queued or running."""
        if os.getpid() != self.pid:
            return  # what runs, runs for the parent of this forked child
        with self._lock:
            self._quiet.wait_for(lambda: self._pending == 0)

    def disown(self) -> None:
        """Take no work in a forked child, which has neither the thread nor the processes."""
        self._closed_because = f"it belongs to process {self.pid}; a forked child cannot use it"

    def close(self, reason: str = "it was shut down", grace: float | None = None) -> None:
        """End everything now; return when it is verified gone. What runs is interrupted."""
        if os.getpid() != self.pid:
            return  # a forked child has neither the thread nor the processes
        if self.is_own_thread:  # a future's callback closes the pool: it cannot wait for itself
            self.stop_accepting(cancel_queued=True)
            threading.Thread(target=self.close, args=(reason, grace), daemon=True).start()
            return
        with self._closing:
            if self._crew.is_dismissed:
                return
            self._closed_because = self._closed_because or reason
            self.stop_accepting(cancel_queued=True)
            with self._lock:
                self._crew.is_dismissed = True
            try:
                self._supervisor.ask(
                    self._crew.end(self.config.grace if grace is None else grace)
                ).result()
                with self._lock:  # who held a worker has noticed, unless its event loop stands
                    self._quiet.wait_for(lambda: self._pending == 0, FAREWELL)
                self._supervisor.close()
                self._context.destroy(linger=0)
            finally:  # a second Ctrl-C: the guardians go on by themselves
                remove_folder(self._folder)
                atexit.unregister(self.close)


_engines: WeakSet[Engine] = WeakSet()


def _disown_in_child() -> None:
    for engine in list(_engines):
        engine.disown()


os.register_at_fork(after_in_child=_disown_in_child)
