"""The workers of a pool: one in each slot, started, watched, replaced when they die, and ended."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any
from weakref import WeakSet

import zmq.asyncio

from ...errors import SnakepitError, StartFailed
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

logger = logging.getLogger(__name__)

START_BATCH = 8
"""Workers that are executed at the same time at most."""

FORK_BATCH = 64
"""The same where they are forked from a template."""

RESTART_BACKOFF = 0.2
"""Seconds before a failed start is tried again."""

RESPAWNS = 2
"""Empty slots that are filled at one reconciliation at most."""

MAX_ENDS = 20
"""Ends of workers that are remembered."""


class WorkerSupervisor:
    """The slots of a pool, and who is in them. Its coroutines run in the supervisor's loop.

    Parameters
    ----------
    config
        The pool's options.
    folder
        Where the sockets and logs of new workers lie.
    context
        For the workers' Jupyter channels.
    supervisor
        The loop that watches the workers.
    lock
        Guards ``workers`` and the scheduler.
    scheduler
        Lends the workers; what waits for one that leaves is told.
    lend
        Called, under the lock, with each lane of a worker that is free for the first time.

    Attributes
    ----------
    workers
        The present worker of each slot.
    tools
        What the workers offer, by name.
    last_problem
        How the last worker ended that was of no use.
    ends
        How workers ended lately.
    started, died, recycled
        How many workers were started, died unasked, and were replaced on purpose.
    is_draining
        No worker is replaced any more.
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
        self._incarnations: Counter[int] = Counter()  # by slot, also of those that are gone
        self._made: WeakSet[Worker] = WeakSet()
        self._retired: set[Worker] = set()
        self._watchers: set[asyncio.Task[Any]] = set()
        self._standby = StandbyWorkers(config.standby, partial(self._start_detached, STANDBY_SLOT))

    # -- looking -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._slots)

    @property
    def is_own_thread(self) -> bool:
        """Whether the code that asks keeps workers from being started and given back."""
        return self._loop_thread.is_current

    @property
    def config(self) -> PoolConfig:
        """The options that workers are started with now."""
        return self._config

    @property
    def problem(self) -> str | None:
        """Why there are fewer, while slots are degraded."""
        problems = {slot.number: slot.problem for slot in self._slots.values() if slot.problem}
        if not problems:
            return None
        numbers = ", ".join(map(str, sorted(problems)))
        return f"slot {numbers} is degraded: {problems[min(problems)]}"

    def living(self) -> list[Worker]:
        """Return the workers that have become ready and not begun to end."""
        with self._lock:
            return [worker for worker in self.workers.values() if worker.state is WorkerState.READY]

    def has(self, worker: Worker) -> bool:
        """Whether a worker is one of the pool's, be it that it only ends what it does."""
        return self.workers.get(worker.slot) is worker or worker in self._retired

    def _has_slot(self, slot: Slot) -> bool:
        return self._slots.get(slot.number) is slot

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every slot; return when each worker is ready.

        Raises
        ------
        StartFailed
            One of them could not start.
        """
        await self._start_workers(self._slots.values())
        if self._config.standby:
            self.run_in_background(self._standby.keep())

    async def _start_workers(self, slots: Iterable[Slot]) -> None:
        """Fill some slots, not too many at the same time; the first failure ends that."""
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
            raise failure  # by itself: a group in its context is all that IPython would show

    async def _start_worker(self, slot: Slot) -> None:
        """Start the worker of a slot, unless the pool has that no more when it is ready."""
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
        """Return a worker that is ready, with the options that the pool has by then."""
        while True:
            worker = self._make_worker(number)
            await self._make_ready(worker)
            if worker.config is self._config:
                return worker
            await self._end_worker(worker, 0.0)  # the pool was reloaded meanwhile

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
        """Make a worker the one of its slot. The lock is held."""
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
        """Have a worker lent, and watch it. The lock is held."""
        self.tools = worker.tools | self.tools
        self._slots[worker.slot].mark_filled()
        worker.ready_at = time.monotonic()
        for lane in worker.lanes:
            self._offer(lane)
        self.run_in_background(self._watch(worker))

    def run_in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something beside, until it is done or the crew ends."""
        watcher = self._loop_thread.spawn(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    # -- replacing those that end --------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of a worker; refill its slot if nobody asked for it."""
        await worker.died.wait()
        with self._lock:
            self.stop_scheduling(worker)  # or whoever gives it back now would have it lent again
            is_lost = not self.is_draining and not worker.is_retired
            self.died += is_lost
        if not is_lost:
            return
        await self._end_worker(worker, 0.0)
        reason = worker.describe_end()
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
        """Give an empty slot a worker, unless that fails too often."""
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
                    await asyncio.sleep(RESTART_BACKOFF)  # else it fails as fast as it can
                else:
                    return
        finally:
            slot.is_filling = False

    def _degrade(self, slot: Slot) -> None:
        """Leave a slot empty for a while; with no worker left, tell everybody who waits."""
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
        """Compare the slots with their workers; fill those that are empty, a few at a time."""
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
            pid=worker.pid,
            at=time.time(),
            seconds=time.monotonic() - worker.ready_at,
            calls=worker.calls,
            was_wanted=was_wanted,
            reason=reason,
        )
        with self._lock:
            self.ends.append(end)

    # -- letting go ----------------------------------------------------------------------------

    def stop_scheduling(self, worker: Worker) -> None:
        """Lend a worker no more, and tell those who wait for it alone.

        Who asks for it later waits for its successor.
        """
        with self._lock:
            if worker.state not in {WorkerState.STOPPING, WorkerState.DEAD}:
                worker.apply(WorkerEvent.STOP)
                self._notify_waiting(worker)

    def _notify_waiting(self, worker: Worker) -> None:
        for lane in worker.lanes:
            for item in self._scheduler.remove(lane):
                item.on_assigned()

    def terminate_when_idle(self, lane: PooledLane) -> None:
        """Have a worker ended that does not listen; its slot is refilled when it is gone.

        Other calls that it serves at the same time come to their end first.
        """
        worker = lane.worker
        with self._lock:
            self.stop_scheduling(worker)
            worker.is_terminating = True
            others = [other for other in worker.lanes if other is not lane]
            if any(other.holder is not None for other in others):
                return
        worker.terminate()

    def end_standby_without_main_thread(self) -> None:
        """End those that are kept ready and whose main thread has ended."""
        self._standby.end_without_main_thread()

    def terminate(self, worker: Worker) -> None:
        """End a worker that has stopped; its slot is refilled when it is gone."""
        self.stop_scheduling(worker)
        worker.terminate()

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End all workers; return when that is verified."""
        for watcher in list(self._watchers):  # refills that are under way
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
    """Return the seconds between two beats of a worker's pulse; 0 for none."""
    policy = config.heartbeat
    return 0.0 if policy is None else min(policy.interval, policy.timeout) / 2
