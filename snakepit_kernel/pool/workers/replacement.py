"""Rolling replacement of living workers: the successor is ready before a worker ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

from ...errors import StartFailed
from ...loggers import get_logger
from ...printable import counted
from ...processes.concurrency import LoopThread
from ..config import PoolConfig
from ..scheduling.scheduler import Scheduler
from .background import BackgroundTasks
from .factory import WorkerFactory
from .lifecycle import Slot, WorkerEvent, WorkerState
from .standby import StandbyWorkers
from .supervisor import WorkerSupervisor
from .worker import PooledLane, Worker

logger = get_logger(__name__)

REPLACEMENT_BACKOFF = 5.0
"""Seconds before a failed replacement of a living worker is retried."""


class RollingReplacement:
    """Replaces, adds and removes workers while work goes on.

    Its coroutines run in the pool's loop thread.

    Parameters
    ----------
    supervisor
        Has the workers.
    factory, standby, tasks, lock, scheduler
        As for `WorkerSupervisor`.
    loop_thread
        Runs what other threads ask for.

    Attributes
    ----------
    recycled
        How many workers were replaced on purpose.
    """

    def __init__(
        self,
        supervisor: WorkerSupervisor,
        factory: WorkerFactory,
        standby: StandbyWorkers,
        tasks: BackgroundTasks,
        *,
        loop_thread: LoopThread,
        lock: threading.RLock,
        scheduler: Scheduler[PooledLane],
    ) -> None:
        self.recycled = 0
        self._supervisor = supervisor
        self._factory = factory
        self._standby = standby
        self._tasks = tasks
        self._loop_thread = loop_thread
        self._lock = lock
        self._scheduler = scheduler
        self._changing = asyncio.Lock()  # one resize, reload or recycle at a time
        self._replacing = asyncio.Lock()  # one replacement at a time
        self._replacement_due = asyncio.Event()
        supervisor.on_available.append(self._limit_age)
        factory.on_quitting = self.replace_quitting

    # -- requests for replacement --------------------------------------------------------------

    def _limit_age(self, worker: Worker) -> None:
        """Request the replacement of a worker for the time when it will be too old."""
        max_age = self._factory.config.max_age
        if max_age is not None and worker.retirement is None:
            reason = f"{max_age:g} s old (max_age)"
            on_max_age = partial(self.request_replacement, worker, reason, keep_while_home=True)
            worker.retirement = asyncio.get_running_loop().call_later(max_age, on_max_age)

    def retry(self) -> None:
        """Retry replacements that failed."""
        if any(worker.replacement_reason for worker in self._supervisor.workers.values()):
            self._replacement_due.set()

    def request_replacement(
        self, worker: Worker, reason: str, *, at_once: bool = False, keep_while_home: bool = False
    ) -> None:
        """Request that a worker is replaced soon, from any thread; its successor starts first.

        Parameters
        ----------
        worker
            The worker.
        reason
            Why, in words.
        at_once
            Whether it is quarantined until then: it gets no more work.
        keep_while_home
            Whether it stays as long as a session is bound to it.
        """
        with self._lock:
            if worker.state is not WorkerState.READY or (worker.replacement_reason and not at_once):
                return
            worker.replacement_reason = worker.replacement_reason or reason
            worker.keep_while_home = keep_while_home
            if at_once:
                worker.apply(WorkerEvent.QUARANTINE)
                for lane in worker.lanes:
                    self._scheduler.quarantine(lane)
        with contextlib.suppress(RuntimeError):  # the pool has ended
            self._loop_thread.soon(self._replacement_due.set)

    def note_max_calls(self, worker: Worker) -> None:
        """Request the replacement of a worker that has had all its calls; the lock is held.

        It gets no more work, unless a session is bound to it.
        """
        if not worker.replacement_reason:
            reason = f"{counted(worker.calls, 'call')} (max_calls {worker.config.max_calls})"
            is_home = self._is_home(worker)
            self.request_replacement(worker, reason, at_once=not is_home, keep_while_home=is_home)

    def taint(self, worker: Worker, error: BaseException) -> None:
        """Quarantine a worker that an error left unusable, and request its replacement."""
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        self._quarantine(worker, cause, f"tainted by {cause}")

    def _quarantine(self, worker: Worker, cause: str, reason: str) -> None:
        with self._lock:
            worker.tainted = worker.tainted or cause
            if worker.state is WorkerState.READY:  # else it is quarantined already, or is ending
                worker.replacement_reason = ""
                self.request_replacement(worker, reason, at_once=True)

    def replace_quitting(self, worker: Worker) -> None:
        """Quarantine a worker whose own code asked it to exit, and request its replacement.

        From any thread. Calls that were prefetched to it go to other workers.
        """
        self._quarantine(worker, "it was told to end", "its code has told it to end")
        for lane in worker.lanes:
            if lane.on_returned is not None:
                lane.recall()

    def kept_values(self, worker: Worker) -> list[str]:
        """Return the types of the values that stay in a worker; the caller holds the lock."""
        return self._scheduler.homes.kinds(worker.main_lane)

    def _is_home(self, worker: Worker) -> bool:
        return self._scheduler.homes.has_home(worker.main_lane)

    # -- replacing -----------------------------------------------------------------------------

    async def replace_due(self) -> None:
        """Perform requested replacements, one at a time, until this is cancelled."""
        while True:
            await self._replacement_due.wait()
            self._replacement_due.clear()
            due = [each for each in self._supervisor.workers.values() if each.replacement_reason]
            for worker in due:
                if worker.keep_while_home and self._is_home(worker):
                    continue
                try:
                    await self.replace(worker, worker.replacement_reason)
                except StartFailed as error:
                    logger.warning(
                        "pool %s: %s goes on, because its successor does not start: %s",
                        self._factory.config.name,
                        worker.name,
                        error,
                    )
                    self._offer_again(worker)
                    await asyncio.sleep(REPLACEMENT_BACKOFF)

    def _offer_again(self, worker: Worker) -> None:
        """Take a worker out of quarantine, unless it is tainted."""
        with self._lock:
            if worker.state is WorkerState.QUARANTINED and not worker.tainted:
                worker.apply(WorkerEvent.RESTORE)
                self._supervisor.make_available(worker)

    async def replace(self, worker: Worker, reason: str) -> bool:
        """Start a successor of a worker, and retire the worker when the successor is ready.

        Returns
        -------
        bool
            Whether it was replaced; False when it had ended by itself.

        Raises
        ------
        StartFailed
            The successor could not start; the worker goes on.
        """
        supervisor = self._supervisor
        async with self._replacing:
            slot = supervisor.slot_to_fill(worker)
            if slot is None:
                return False
            slot.is_filling = True
            try:
                successor = self._standby.take(slot.number)
                if successor is None:
                    successor = await self._factory.start(slot.number)
            except BaseException:
                if worker.process.died.is_set() and not supervisor.is_closing:
                    supervisor.refill(slot)
                else:
                    slot.is_filling = False
                raise
            slot.is_filling = False
            with self._lock:
                is_wanted = slot in supervisor.slots
                if is_wanted:
                    self._succeed(slot, worker, successor, reason)
            if not is_wanted:
                await self._factory.end(successor, self._factory.config.grace)
            return is_wanted

    def _succeed(self, slot: Slot, worker: Worker, successor: Worker, reason: str) -> None:
        """Put a successor in the slot of a worker, which retires; the lock is held."""
        self._supervisor.put_in_service(slot, successor)
        if not worker.process.died.is_set():
            self.recycled += 1
            self._retire(worker, reason)

    def _retire(self, worker: Worker, reason: str) -> None:
        """Let a worker finish its work, then end it; the lock is held."""
        worker.process.end_reason = reason
        self._supervisor.stop_scheduling(worker, WorkerEvent.RETIRE)
        if not worker.is_held:
            self.stop_retired(worker)

    def stop_retired(self, worker: Worker) -> None:
        """End a retired worker that has no assigned lane any more; from any thread."""
        with contextlib.suppress(RuntimeError):  # the pool has ended
            self._loop_thread.soon(self._stop_retired_later, worker)

    def _stop_retired_later(self, worker: Worker) -> None:
        if not self._supervisor.is_closing:
            self._tasks.run(self._stop_retired(worker))

    async def _stop_retired(self, worker: Worker) -> None:
        await self._factory.end(worker, self._factory.config.grace)
        self._supervisor.record_end(worker, worker.process.end_reason, was_wanted=False)

    # -- changing all workers ------------------------------------------------------------------

    async def in_turn(self, change: Coroutine[Any, Any, None]) -> None:
        """Run one of the following changes after earlier ones; the pool's end cancels it."""
        self._tasks.add_current()
        try:
            if self._supervisor.is_closing:
                raise asyncio.CancelledError
            async with self._changing:
                await change
        finally:
            change.close()

    async def resize(self, count: int) -> None:
        """Change the number of workers; those that are removed finish their work first.

        Raises
        ------
        StartFailed
            A worker could not start; the number of workers is unchanged.
        """
        supervisor = self._supervisor
        fewer = len(supervisor.slots) - count
        if fewer > 0:
            with self._lock:
                for slot in sorted(supervisor.slots, key=self._removal_cost)[:fewer]:
                    self._remove_slot(slot, f"the pool was resized to {count}")
            return
        new = supervisor.slots.add(-fewer)
        try:
            for slot in new:
                slot.is_filling = True
            await supervisor.start_workers(new)
        except BaseException:
            with self._lock:
                for slot in new:
                    self._remove_slot(slot, "the pool was not resized")
            raise
        finally:
            for slot in new:
                slot.is_filling = False

    def _removal_cost(self, slot: Slot) -> tuple[bool, bool, bool, int]:
        """Return a sort key: slots with the least to lose first, among equals the last slot."""
        worker = self._supervisor.workers.get(slot.number)
        if worker is None or not worker.state.is_in_service:
            return False, False, False, -slot.number
        return self._is_home(worker), worker.is_held, True, -slot.number

    def _remove_slot(self, slot: Slot, reason: str) -> None:
        """Remove a slot. The lock is held.

        A ready worker finishes its work. One that is starting or dying is ended by the task that
        starts or watches it.
        """
        worker = self._supervisor.remove_slot(slot)
        if worker is None:
            return
        if worker.state.is_in_service:
            self._retire(worker, reason)
        else:
            worker.process.end_reason = worker.process.end_reason or reason
            self._supervisor.notify_waiting(worker)

    async def reload(self, config: PoolConfig) -> None:
        """Replace every worker, one after the other, by one with new options.

        Raises
        ------
        StartFailed
            A successor could not start; the worker it was for, and those after it, stay.
        """
        supervisor, factory = self._supervisor, self._factory
        previous, factory.config = factory.config, config
        for standby in self._standby.take_all():
            self._tasks.run(factory.end(standby, config.grace))
        replaced = 0
        try:
            for worker in list(supervisor.workers.values()):
                replaced += await self.replace(worker, "the pool was reloaded")
        except BaseException:
            if not replaced:
                factory.config = previous
            raise
        supervisor.collect_tools()

    async def recycle(self, slots: Sequence[int]) -> None:
        """Replace the workers of some slots, one after the other."""
        for slot in slots:
            if (worker := self._supervisor.workers.get(slot)) is not None:
                await self.replace(worker, "recycled by hand")
