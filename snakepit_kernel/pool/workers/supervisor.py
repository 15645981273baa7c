"""Supervision of a pool's workers: start, watch, restart after a death, and shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ...errors import StartFailed
from ...loggers import get_logger
from ...processes.template import why_not
from ...protocol.messages import ToolInfo
from ..scheduling.scheduler import Scheduler
from ..status import WorkerEnd
from .background import BackgroundTasks
from .factory import WorkerFactory
from .lifecycle import Slot, Slots, WorkerEvent, WorkerState
from .standby import StandbyWorkers
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
    factory
        Makes, starts and ends the workers.
    standby
        The standby workers, the first to fill a slot whose worker has ended.
    tasks
        Run in the background, until the pool ends.
    lock
        Guards ``workers`` and the scheduler.
    scheduler
        Assigns the workers' lanes; its items are notified when the worker they wait for leaves.

    Attributes
    ----------
    workers
        The current worker of each slot.
    slots
        The slots.
    tools
        The tools that the workers offer, by name.
    last_problem
        How the last worker ended that did no work.
    ends
        The most recent ends of workers.
    started, died
        How many workers were started, and died unexpectedly.
    is_closing
        Whether the pool is shutting down: no worker is replaced any more.
    on_available
        Called, under the lock, with each worker whose lanes can be assigned from now on.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        standby: StandbyWorkers,
        tasks: BackgroundTasks,
        *,
        lock: threading.RLock,
        scheduler: Scheduler[PooledLane],
    ) -> None:
        self.workers: dict[int, Worker] = {}
        self.slots = Slots(factory.config.workers)
        self.tools: dict[str, ToolInfo] = {}
        self.last_problem = "it has no workers"
        self.ends: deque[WorkerEnd] = deque(maxlen=MAX_ENDS)
        self.started = 0
        self.died = 0
        self.is_closing = False
        self.on_available: list[Callable[[Worker], None]] = []
        self._factory = factory
        self._standby = standby
        self._tasks = tasks
        self._lock = lock
        self._scheduler = scheduler
        self._retired: set[Worker] = set()

    # -- looking -------------------------------------------------------------------------------

    def worker_in(self, number: int) -> Worker:
        """Return the worker of a slot.

        Raises
        ------
        ValueError
            There is no such slot, or no worker in it.
        """
        if number not in self.workers:
            known = ", ".join(map(str, sorted(self.workers)))
            msg = f"there is no worker {number}; there are {known}"
            raise ValueError(msg)
        return self.workers[number]

    def collect_tools(self) -> None:
        """Forget the tools that no worker offers any more."""
        with self._lock:
            self.tools = {}
            for worker in self.workers.values():
                self.tools = worker.tools | self.tools

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

    # -- slots ---------------------------------------------------------------------------------

    def remove_slot(self, slot: Slot) -> Worker | None:
        """Remove a slot; return its worker, if it has one. The lock is held."""
        self.slots.remove(slot)
        return self.workers.pop(slot.number, None)

    def slot_to_fill(self, worker: Worker) -> Slot | None:
        """Return the slot of a worker, unless that is filled already, or the slot was removed."""
        slot = self.slots.get(worker.slot)
        if slot is None or slot.is_filling or self.workers.get(slot.number) is not worker:
            return None
        return slot

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every slot; return when each worker is ready.

        Raises
        ------
        StartFailed
            A worker could not start.
        """
        await self.start_workers(self.slots)
        if self._factory.config.standby:
            self._tasks.run(self._standby.keep())

    async def start_workers(self, slots: Iterable[Slot]) -> None:
        """Fill slots, a limited number at the same time; stop at the first failure."""
        is_forked = self._factory.config.kernel.has_lane and not why_not()
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
        while slot in self.slots:
            worker = self._factory.make(slot.number)
            with self._lock:
                self._install(worker)
            await self._factory.make_ready(worker)
            with self._lock:
                if slot in self.slots and worker.config is self._factory.config:
                    self._activate(slot, worker)
                    return
            await self._factory.end(worker, 0.0)

    def put_in_service(self, slot: Slot, worker: Worker) -> None:
        """Make a worker that is ready the current one of a slot. The lock is held."""
        self._install(worker)
        self._activate(slot, worker)

    def _install(self, worker: Worker) -> None:
        """Make a worker the current one of its slot. The lock is held."""
        predecessor = self.workers.get(worker.slot)
        if predecessor is not None:
            for lane, successor in zip(predecessor.lanes, worker.lanes, strict=True):
                self._scheduler.replace(lane, successor)
        self.workers[worker.slot] = worker
        self.started += 1

    def _activate(self, slot: Slot, worker: Worker) -> None:
        """Make the lanes of a worker available, and watch it. The lock is held."""
        self.tools = worker.tools | self.tools
        slot.mark_filled()
        worker.ready_at = time.monotonic()
        self.make_available(worker)
        self._tasks.run(self._watch(worker))

    def make_available(self, worker: Worker) -> None:
        """Announce that the lanes of a worker can be assigned. The lock is held."""
        for announce in self.on_available:
            announce(worker)

    # -- replacing those that end --------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of a worker; refill its slot if the end was unexpected."""
        await worker.process.died.wait()
        with self._lock:
            self.stop_scheduling(worker)  # else a lane released now would be assigned again
            is_lost = not self.is_closing and worker not in self._retired
            self._retired.discard(worker)
            self.died += is_lost
        if not is_lost:
            return
        await self._factory.end(worker, 0.0)
        reason = worker.process.describe_end()
        self.record_end(worker, reason, was_wanted=True)
        slot = self.slot_to_fill(worker)
        if slot is None:
            return
        if worker.is_proven:
            slot.record_success()
        elif slot.record_failure(time.monotonic(), reason):
            self._degrade(slot)
            return
        await self._fill(slot)

    def refill(self, slot: Slot) -> None:
        """Start a worker in an empty slot, in the background."""
        slot.is_filling = True
        self._tasks.run(self._fill(slot))

    async def _fill(self, slot: Slot) -> None:
        """Start a worker in an empty slot; degrade the slot when that fails too often."""
        slot.is_filling = True
        try:
            while not self.is_closing and slot in self.slots:
                try:
                    if (standby := self._standby.take(slot.number)) is None:
                        await self._start_worker(slot)
                    else:
                        with self._lock:
                            self.put_in_service(slot, standby)
                except StartFailed as error:
                    logger.warning("pool %s: %s", self._factory.config.name, error)
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
            self._factory.config.name,
            slot.number,
            rest,
            slot.problem,
        )
        with self._lock:
            self.last_problem = slot.problem
            removed = self.workers.pop(slot.number, None)
            if removed is not None:
                self.notify_waiting(removed)
            for item in [] if self.workers else self._scheduler.drain():
                item.on_assigned()

    def reconcile(self) -> None:
        """Compare the slots with their workers; fill empty slots, a few at a time."""
        now = time.monotonic()
        empty = []
        for slot in self.slots:
            worker = self.workers.get(slot.number)
            if worker is not None and worker.is_proven:
                slot.record_success()
            is_empty = worker is None or worker.state is WorkerState.DEAD
            if is_empty and not slot.is_filling and not slot.backoff_left(now):
                empty.append(slot)
        for slot in empty[:RESPAWNS]:
            self.refill(slot)

    def record_end(self, worker: Worker, reason: str, *, was_wanted: bool) -> None:
        """Record how a worker has ended while the pool goes on.

        Parameters
        ----------
        worker
            The worker.
        reason
            Why, in words.
        was_wanted
            Whether it ended unexpectedly.
        """
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
            if event is WorkerEvent.RETIRE:
                self._retired.add(worker)
            was_in_service = worker.state.is_in_service
            worker.apply(event)
            if was_in_service:
                self.notify_waiting(worker)

    def notify_waiting(self, worker: Worker) -> None:
        """Notify the items that wait for a worker which has left. The lock is held."""
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

    def terminate(self, worker: Worker) -> None:
        """Terminate an unresponsive worker; its slot is refilled when it is gone."""
        self.stop_scheduling(worker)
        worker.process.terminate()

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End all workers; return when that is verified."""
        await self._tasks.cancel()  # restarts in progress, too
        await self._factory.end_all(grace)
        with self._lock:
            self.workers.clear()
            self._retired.clear()
        self._standby.take_all()
