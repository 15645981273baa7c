"""The workers of a pool: one in each slot, started, watched, replaced when they die, and ended."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import zmq.asyncio

from ..errors import SnakepitError, StartFailed
from ..processes.supervisor import Supervisor
from ..processes.template import why_not
from ..protocol.messages import ToolInfo, WorkerSetup
from .config import PoolConfig
from .foreign import ForeignWorker
from .scheduler import Scheduler
from .spares import Spares
from .states import WorkerEvent, WorkerState
from .worker import KernelSpecs, Seat, Worker

logger = logging.getLogger(__name__)

START_BATCH = 8
"""Workers that are executed at the same time at most."""

FORK_BATCH = 64
"""The same where they are forked from a template."""

MAX_START_FAILURES = 3
"""Starts that may fail one after the other before a slot is given up."""

RESTART_BACKOFF = 0.2
"""Seconds before a failed start is tried again; doubles each time."""


class Crew:
    """The slots of a pool, and who is in them. Its coroutines run in the supervisor's loop.

    Parameters
    ----------
    config
        The pool's options.
    folder
        Where the workers' sockets and logs lie.
    context
        For the workers' Jupyter channels.
    supervisor
        The loop that watches the workers.
    lock
        Guards ``workers`` and the scheduler.
    scheduler
        Lends the workers; what waits for one that leaves is told.
    lend
        Called, under the lock, with each seat of a worker that is free for the first time.

    Attributes
    ----------
    workers
        The present worker of each slot.
    tools
        What the workers offer, by name.
    problem
        Why the last start failed, until one succeeds.
    started, died
        How many workers were started, and how many of them died unasked.
    is_dismissed
        No worker is replaced any more.
    """

    def __init__(
        self,
        config: PoolConfig,
        folder: Path,
        context: zmq.asyncio.Context,
        *,
        supervisor: Supervisor,
        lock: threading.RLock,
        scheduler: Scheduler[Seat],
        lend: Callable[[Seat], None],
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.tools: dict[str, ToolInfo] = {}
        self.problem: StartFailed | None = None
        self.started = 0
        self.died = 0
        self.is_dismissed = False
        self._config = config
        self._folder = folder
        self._context = context
        self._supervisor = supervisor
        self._lock = lock
        self._scheduler = scheduler
        self._lend = lend
        self._specs = KernelSpecs(config.kernel)
        self._watchers: set[asyncio.Task[Any]] = set()
        self._spares = Spares(config.standby, self._start_spare)

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every slot; return when each worker is ready.

        Raises
        ------
        StartFailed
            One of them could not start.
        """
        is_forked = self._config.kernel.has_lane and not why_not()
        gate = asyncio.Semaphore(FORK_BATCH if is_forked else START_BATCH)

        async def start(slot: int) -> None:
            async with gate:
                await self._start_worker(slot, 1)

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for slot in range(1, self._config.workers + 1):
                    group.create_task(start(slot))
        except ExceptionGroup as failures:
            failure = failures.exceptions[0]
        if failure is not None:
            raise failure  # by itself: a group in its context is all that IPython would show
        if self._config.standby:
            self._watch_over(self._spares.keep())

    async def _start_worker(self, slot: int, incarnation: int) -> None:
        worker = self._make_worker(slot, incarnation)
        self._seat(worker)
        await self._make_ready(worker)
        self._put_to_work(worker)

    def _make_worker(self, slot: int, incarnation: int) -> Worker:
        make = Worker if self._config.kernel.has_lane else ForeignWorker
        return make(
            self._config,
            slot,
            incarnation,
            folder=self._folder,
            context=self._context,
            specs=self._specs,
        )

    def _seat(self, worker: Worker) -> None:
        """Make a worker the one of its slot."""
        with self._lock:
            predecessor = self.workers.get(worker.slot)
            if predecessor is not None:
                for seat, successor in zip(predecessor.seats, worker.seats, strict=True):
                    self._scheduler.replace(seat, successor)
            self.workers[worker.slot] = worker
            self.started += 1

    async def _make_ready(self, worker: Worker) -> None:
        setup = WorkerSetup(
            adapter=self._config.adapter,
            import_path=self._config.kernel.import_path(),
            pool=self._config.name,
            worker=worker.name,
            preload=list(self._config.preload),
            has_threads=self._config.profile == "thread",
            codec=self._config.codec,
            limits=self._config.limits.of_process(),
        )
        await worker.start(setup)
        worker.apply(WorkerEvent.ANSWER)

    def _put_to_work(self, worker: Worker) -> None:
        """Have a worker lent, and watch it."""
        assert worker.configured is not None
        with self._lock:
            self.tools = {tool.name: tool for tool in worker.configured.tools} | self.tools
            for seat in worker.seats:
                self._lend(seat)
        self._watch_over(self._watch(worker))

    def _watch_over(self, work: Coroutine[Any, Any, object]) -> None:
        watcher = self._supervisor.spawn(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _start_spare(self, slot: int, incarnation: int) -> Worker:
        worker = self._make_worker(slot, incarnation)
        await self._make_ready(worker)
        return worker

    # -- replacing -----------------------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of a worker; refill its slot if nobody asked for it."""
        await worker.died.wait()
        with self._lock:
            self.strand(worker)  # or whoever gives it back now would have it lent again
            if not self.is_dismissed:
                self.died += 1
        if self.is_dismissed:
            return
        await worker.end(0.0)
        await self._refill(worker.slot, worker.incarnation + 1)

    async def _refill(self, slot: int, incarnation: int) -> None:
        for attempt in range(MAX_START_FAILURES):
            if self.is_dismissed:
                return
            try:
                spare = self._spares.take()
                if spare is None:
                    await self._start_worker(slot, incarnation + attempt)
                else:
                    spare.take_slot(slot, incarnation + attempt)
                    self._seat(spare)
                    self._put_to_work(spare)
            except StartFailed as error:
                logger.warning("pool %s: %s", self._config.name, error)
                self.problem = error
                await asyncio.sleep(RESTART_BACKOFF * 2**attempt)  # else it fails as fast as it can
            else:
                self.problem = None
                return
        with self._lock:  # give the slot up; with none left, tell everybody who waits
            given_up = self.workers.pop(slot, None)
            if given_up is not None:
                self._tell_stranded(given_up)
            for ticket in [] if self.workers else self._scheduler.drain():
                ticket.on_grant()

    def strand(self, worker: Worker) -> None:
        """Lend a worker no more, and tell those who wait for it alone.

        Who asks for it later waits for its successor.
        """
        with self._lock:
            if worker.state not in {WorkerState.STOPPING, WorkerState.DEAD}:
                worker.apply(WorkerEvent.STOP)
                self._tell_stranded(worker)

    def _tell_stranded(self, worker: Worker) -> None:
        for seat in worker.seats:
            for ticket in self._scheduler.remove(seat):
                ticket.on_grant()

    def condemn(self, seat: Seat) -> None:
        """Have a worker ended that does not listen; its slot is refilled when it is gone.

        Other calls that it serves at the same time come to their end first.
        """
        worker = seat.worker
        with self._lock:
            self.strand(worker)
            worker.is_condemned = True
            others = [other for other in worker.seats if other is not seat]
            if any(other.holder is not None for other in others):
                return
        worker.condemn()

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End all workers; return when that is verified."""
        for watcher in list(self._watchers):  # refills that are under way
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        workers = [*self.workers.values(), *self._spares.take_all()]
        await asyncio.gather(*(self._end_worker(worker, grace) for worker in workers))
        with self._lock:
            self.workers.clear()

    async def _end_worker(self, worker: Worker, grace: float) -> None:
        try:
            await worker.end(grace)
        except SnakepitError as error:
            logger.warning("%s: %s", worker.name, error)
