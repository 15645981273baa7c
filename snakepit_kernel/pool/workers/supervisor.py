"""Supervision of a pool's workers: start, watch, restart after a death, and shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any
from weakref import WeakSet

import zmq.asyncio

from ...errors import SnakepitError, StartFailed
from ...loggers import get_logger
from ...processes.concurrency import LoopThread
from ...processes.run_folders import Folder
from ...processes.template import why_not
from ...protocol.messages import ToolInfo, WorkerSetup
from ..config import PoolConfig
from ..scheduling.scheduler import Scheduler
from ..status import WorkerEnd
from .foreign import ForeignWorker
from .jupyter import KernelSpecs
from .lifecycle import Slot, WorkerEvent, WorkerState
from .standby import STANDBY_SLOT, StandbyWorkers
from .worker import PooledLane, Worker

logger = get_logger(__name__)

START_BATCH = 8
"""Most worker processes that start at the same time when each is executed."""

FORK_BATCH = 64
"""The same when they are forked from a template."""

RESTART_BACKOFF = 0.2
"""Seconds before a failed start is retried."""

RESPAWNS = 2
"""Most empty slots that one reconciliation fills."""

MAX_ENDS = 20
"""Most recent ends of workers that are kept."""


class WorkerSupervisor:
    """The slots of a pool and the workers in them. Its coroutines run in the pool's loop thread.

    Parameters
    ----------
    config
        The pool's options.
    folder
        Holds the sockets and logs of new workers.
    context
        ZeroMQ context of the workers' Jupyter channels.
    loop_thread
        Runs the event loop that watches the workers.
    lock
        Guards ``workers`` and the scheduler.
    scheduler
        Assigns the workers' lanes; its items are notified when the worker they wait for leaves.
    offer
        Called, under the lock, with each lane of a worker that has become available.

    Attributes
    ----------
    workers
        The current worker of each slot.
    tools
        The tools that the workers offer, by name.
    last_problem
        How the last worker ended that did no work.
    ends
        The most recent ends of workers.
    started, died, recycled
        How many workers were started, died unexpectedly, and were replaced on purpose.
    is_draining
        Whether the pool is shutting down: no worker is replaced any more.
    """

    def __init__(
        self,
        config: PoolConfig,
        folder: Folder,
        context: zmq.asyncio.Context,
        *,
        loop_thread: LoopThread,
        lock: threading.RLock,
        scheduler: Scheduler[PooledLane],
        offer: Callable[[PooledLane], None],
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.tools: dict[str, ToolInfo] = {}
        self.last_problem = "it has no workers"
        self.ends: deque[WorkerEnd] = deque(maxlen=MAX_ENDS)
        self.started = 0
        self.died = 0
        self.recycled = 0
        self.is_draining = False
        self._config = config
        self._folder = folder
        self._context = context
        self._loop_thread = loop_thread
        self._lock = lock
        self._scheduler = scheduler
        self._offer = offer
        self._specs = KernelSpecs(config.kernel)
        self._slots = {number: Slot(number) for number in range(1, config.workers + 1)}
        self._incarnations: Counter[int] = Counter()  # by slot, including removed slots
        self._made: WeakSet[Worker] = WeakSet()
        self._retired: set[Worker] = set()
        self._watchers: set[asyncio.Task[Any]] = set()
        self._standby = StandbyWorkers(config.standby, partial(self._start_detached, STANDBY_SLOT))

    # -- looking -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The number of workers that the pool should have."""
        return len(self._slots)

    @property
    def config(self) -> PoolConfig:
        """The options that new workers are started with."""
        return self._config

    @property
    def problem(self) -> str | None:
        """Why slots are degraded, if any are; else None."""
        problems = {slot.number: slot.problem for slot in self._slots.values() if slot.problem}
        if not problems:
            return None
        numbers = ", ".join(map(str, sorted(problems)))
        return f"slot {numbers} is degraded: {problems[min(problems)]}"

    def living(self) -> list[Worker]:
        """Return the workers that are in service."""
        with self._lock:
            return [worker for worker in self.workers.values() if worker.state.is_in_service]

    def at_work(self) -> list[Worker]:
        """Return the workers of the slots, and retired ones that finish their work."""
        return [*self.workers.values(), *self._retired]

    def has(self, worker: Worker) -> bool:
        """Whether a worker belongs to the pool; retired ones that finish their work count."""
        return self.workers.get(worker.slot) is worker or worker in self._retired

    def _has_slot(self, slot: Slot) -> bool:
        return self._slots.get(slot.number) is slot

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every slot; return when each worker is ready.

        Raises
        ------
        StartFailed
            A worker could not start.
        """
        await self._start_workers(self._slots.values())
        if self._config.standby:
            self.run_in_background(self._standby.keep())

    async def _start_workers(self, slots: Iterable[Slot]) -> None:
        """Fill slots, a limited number at the same time; stop at the first failure."""
        is_forked = self._config.kernel.has_lane and not why_not()
        gate = asyncio.Semaphore(FORK_BATCH if is_forked else START_BATCH)

        async def start(slot: Slot) -> None:
            async with gate:
                await self._start_worker(slot)

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for slot in list(slots):
                    group.create_task(start(slot))
        except ExceptionGroup as failures:
            failure = failures.exceptions[0]
        if failure is not None:
            raise failure  # outside of its group: IPython would show only the group

    async def _start_worker(self, slot: Slot) -> None:
        """Start the worker of a slot; end it if the slot was removed in the meantime."""
        while self._has_slot(slot):
            worker = self._make_worker(slot.number)
            with self._lock:
                self._install(worker)
            await self._make_ready(worker)
            with self._lock:
                if self._has_slot(slot) and worker.config is self._config:
                    self._activate(worker)
                    return
            await self._end_worker(worker, 0.0)

    async def _start_detached(self, number: int) -> Worker:
        """Start a worker with the current options and return it, not yet installed in a slot."""
        while True:
            worker = self._make_worker(number)
            await self._make_ready(worker)
            if worker.config is self._config:
                return worker
            await self._end_worker(worker, 0.0)  # the pool was reloaded in the meantime

    def _next_incarnation(self, number: int) -> int:
        self._incarnations[number] += 1
        return self._incarnations[number]

    def _make_worker(self, number: int) -> Worker:
        make = Worker if self._config.kernel.has_lane else ForeignWorker
        incarnation = self._next_incarnation(number)
        try:
            worker = make(
                self._config,
                number,
                incarnation,
                folder=self._folder.present(),
                context=self._context,
                specs=self._specs,
            )
        except OSError as error:  # no descriptors, no memory
            name = f"worker {self._config.name}-{number}.{incarnation}"
            raise StartFailed(name, str(error)) from error
        self._made.add(worker)
        return worker

    def _install(self, worker: Worker) -> None:
        """Make a worker the current one of its slot. The lock is held."""
        predecessor = self.workers.get(worker.slot)
        if predecessor is not None:
            for lane, successor in zip(predecessor.lanes, worker.lanes, strict=True):
                self._scheduler.replace(lane, successor)
        self.workers[worker.slot] = worker
        self.started += 1

    async def _make_ready(self, worker: Worker) -> None:
        setup = WorkerSetup(
            adapter=worker.config.adapter,
            import_path=worker.config.kernel.import_path(),
            pool=worker.config.name,
            worker=worker.name,
            preload=list(worker.config.preload),
            has_threads=worker.config.profile == "thread",
            codec=worker.config.codec,
            limits=worker.config.limits.of_process(),
            beat_seconds=_beat_seconds(worker.config),
            autoreload=worker.config.autoreload,
        )
        await worker.start(setup)
        worker.apply(WorkerEvent.ANSWER)

    def _activate(self, worker: Worker) -> None:
        """Offer the lanes of a worker for assignment, and watch it. The lock is held."""
        self.tools = worker.tools | self.tools
        self._slots[worker.slot].mark_filled()
        worker.ready_at = time.monotonic()
        for lane in worker.lanes:
            self._offer(lane)
        self.run_in_background(self._watch(worker))

    def run_in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine as a task, which is cancelled when the pool ends."""
        watcher = self._loop_thread.spawn(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    # -- replacing those that end --------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of a worker; refill its slot if the end was unexpected."""
        await worker.process.died.wait()
        with self._lock:
            self.stop_scheduling(worker)  # else a lane released now would be assigned again
            is_lost = not self.is_draining and worker not in self._retired
            self._retired.discard(worker)
            self.died += is_lost
        if not is_lost:
            return
        await self._end_worker(worker, 0.0)
        reason = worker.process.describe_end()
        self._record_end(worker, reason, was_wanted=True)
        slot = self._slots.get(worker.slot)
        if slot is None or slot.is_filling or self.workers.get(slot.number) is not worker:
            return
        if worker.is_proven:
            slot.record_success()
        elif slot.record_failure(time.monotonic(), reason):
            self._degrade(slot)
            return
        await self._fill(slot)

    async def _fill(self, slot: Slot) -> None:
        """Start a worker in an empty slot; degrade the slot when that fails too often."""
        slot.is_filling = True
        try:
            while not self.is_draining and self._has_slot(slot):
                try:
                    if (standby := self._standby.take()) is None:
                        await self._start_worker(slot)
                    else:
                        standby.take_slot(slot.number, self._next_incarnation(slot.number))
                        with self._lock:
                            self._install(standby)
                            self._activate(standby)
                except StartFailed as error:
                    logger.warning("pool %s: %s", self._config.name, error)
                    if slot.record_failure(time.monotonic(), str(error), has_started=False):
                        self._degrade(slot)
                        return
                    await asyncio.sleep(
                        RESTART_BACKOFF
                    )  # else failed starts would follow each other in a tight loop
                else:
                    return
        finally:
            slot.is_filling = False

    def _degrade(self, slot: Slot) -> None:
        """Leave a slot empty for its back-off; with no worker left, notify all queued items."""
        assert slot.problem is not None
        rest = slot.backoff_left(time.monotonic())
        logger.warning(
            "pool %s: slot %d is degraded, and tried again in %.0f s: %s",
            self._config.name,
            slot.number,
            rest,
            slot.problem,
        )
        with self._lock:
            self.last_problem = slot.problem
            removed = self.workers.pop(slot.number, None)
            if removed is not None:
                self._notify_waiting(removed)
            for item in [] if self.workers else self._scheduler.drain():
                item.on_assigned()

    def reconcile(self) -> None:
        """Compare the slots with their workers; fill empty slots, a few at a time."""
        now = time.monotonic()
        empty = []
        for slot in self._slots.values():
            worker = self.workers.get(slot.number)
            if worker is not None and worker.is_proven:
                slot.record_success()
            is_empty = worker is None or worker.state is WorkerState.DEAD
            if is_empty and not slot.is_filling and not slot.backoff_left(now):
                empty.append(slot)
        for slot in empty[:RESPAWNS]:
            slot.is_filling = True
            self.run_in_background(self._fill(slot))

    def _record_end(self, worker: Worker, reason: str, *, was_wanted: bool) -> None:
        end = WorkerEnd(
            name=worker.name,
            pid=worker.process.pid,
            at=time.time(),
            seconds=time.monotonic() - worker.ready_at,
            calls=worker.calls,
            was_wanted=was_wanted,
            reason=reason,
        )
        with self._lock:
            self.ends.append(end)

    # -- taking out of service -----------------------------------------------------------------

    def stop_scheduling(self, worker: Worker, event: WorkerEvent = WorkerEvent.WITHDRAW) -> None:
        """Assign no more work to a worker, and notify items that wait for it alone.

        Later requests for it wait for its successor.

        Parameters
        ----------
        worker
            The worker.
        event
            Why: it is dying, is replaced, or ignores interrupts.
        """
        with self._lock:
            was_in_service = worker.state.is_in_service
            worker.apply(event)
            if was_in_service:
                self._notify_waiting(worker)

    def _notify_waiting(self, worker: Worker) -> None:
        for lane in worker.lanes:
            for item in self._scheduler.remove(lane):
                item.on_assigned()

    def terminate_when_idle(self, lane: PooledLane) -> None:
        """Terminate a worker that ignores interrupts; its slot is refilled when it is gone.

        Other calls that it runs at the same time end first.
        """
        worker = lane.worker
        with self._lock:
            self.stop_scheduling(worker, WorkerEvent.TERMINATE)
            lane.is_stuck = True
            if worker.is_waited_for:
                return
        worker.process.terminate()

    def end_standby_without_main_thread(self) -> None:
        """End standby workers whose main thread has ended."""
        self._standby.end_without_main_thread()

    def terminate(self, worker: Worker) -> None:
        """Terminate an unresponsive worker; its slot is refilled when it is gone."""
        self.stop_scheduling(worker)
        worker.process.terminate()

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End all workers; return when that is verified."""
        for watcher in list(self._watchers):  # cancels restarts in progress
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        workers = [worker for worker in self._made if worker.state is not WorkerState.DEAD]
        await asyncio.gather(*(self._end_worker(worker, grace) for worker in workers))
        with self._lock:
            self.workers.clear()
            self._retired.clear()
        self._standby.take_all()

    async def _end_worker(self, worker: Worker, grace: float) -> None:
        try:
            await worker.end(grace)
        except SnakepitError as error:
            logger.warning("%s: %s", worker.name, error)


def _beat_seconds(config: PoolConfig) -> float:
    """Return the seconds between two heartbeats of a worker; 0 for none."""
    policy = config.heartbeat
    return 0.0 if policy is None else min(policy.interval, policy.timeout) / 2
