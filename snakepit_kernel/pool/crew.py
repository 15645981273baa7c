"""The workers of a pool: one in each slot, started, watched, replaced when they die, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq.asyncio

from ..errors import SnakepitError, StartFailed
from ..processes.supervisor import Supervisor
from ..processes.template import why_not
from ..protocol.messages import ToolInfo, WorkerSetup
from .config import PoolConfig
from .scheduler import Scheduler
from .slots import Slot
from .spares import Spares
from .states import LENDABLE, WorkerEvent, WorkerState
from .status import WorkerEnd
from .worker import KernelSpecs, Seat, Worker, import_path

logger = logging.getLogger(__name__)

START_BATCH = 8
"""Workers that are executed at the same time at most."""

FORK_BATCH = 64
"""The same where they are forked from a template."""

RESTART_BACKOFF = 0.2
"""Seconds before a failed start is tried again."""

RESPAWNS = 2
"""Empty slots that are filled at one reconciliation at most."""

FAILED_RENEWAL_REST = 5.0
"""Seconds after which the replacement of a worker that lives is tried again."""

MAX_ENDS = 20
"""Ends of workers that are remembered."""


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
    last_problem
        How the last worker ended that was of no use.
    ends
        How workers ended lately.
    started, died, recycled
        How many workers were started, died unasked, and were replaced on purpose.
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
        self.last_problem = "it has no workers"
        self.ends: deque[WorkerEnd] = deque(maxlen=MAX_ENDS)
        self.started = 0
        self.died = 0
        self.recycled = 0
        self.is_dismissed = False
        self._config = config
        self._folder = folder
        self._context = context
        self._supervisor = supervisor
        self._lock = lock
        self._scheduler = scheduler
        self._lend = lend
        self._specs = KernelSpecs()
        self._slots = {number: Slot(number) for number in range(1, config.workers + 1)}
        self._retired: set[Worker] = set()
        self._replacing = asyncio.Lock()
        self._due = asyncio.Event()
        self._watchers: set[asyncio.Task[Any]] = set()
        self._spares = Spares(config.standby, self._start_spare)

    # -- looking -------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._slots)

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
            return [worker for worker in self.workers.values() if worker.state in LENDABLE]

    def has(self, worker: Worker) -> bool:
        """Whether a worker is one of the pool's, be it that it only ends what it does."""
        return self.workers.get(worker.slot) is worker or worker in self._retired

    # -- starting ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Fill every slot; return when each worker is ready.

        Raises
        ------
        StartFailed
            One of them could not start.
        """
        gate = asyncio.Semaphore(START_BATCH if why_not() else FORK_BATCH)

        async def start(slot: Slot) -> None:
            async with gate:
                await self._start_worker(slot)

        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for slot in list(self._slots.values()):
                    group.create_task(start(slot))
        except ExceptionGroup as failures:
            failure = failures.exceptions[0]
        if failure is not None:
            raise failure  # by itself: a group in its context is all that IPython would show
        if self._config.standby:
            self.watch_over(self._spares.keep())

    async def _start_worker(self, slot: Slot) -> None:
        worker = self._make_worker(slot.number, slot.next_incarnation())
        with self._lock:
            self._seat(worker)
        await self._make_ready(worker)
        with self._lock:
            self._put_to_work(worker)

    def _make_worker(self, slot: int, incarnation: int) -> Worker:
        return Worker(
            self._config,
            slot,
            incarnation,
            folder=self._folder,
            context=self._context,
            specs=self._specs,
        )

    def _seat(self, worker: Worker) -> None:
        """Make a worker the one of its slot. The lock is held."""
        predecessor = self.workers.get(worker.slot)
        if predecessor is not None:
            for seat, successor in zip(predecessor.seats, worker.seats, strict=True):
                self._scheduler.replace(seat, successor)
        self.workers[worker.slot] = worker
        self.started += 1

    async def _make_ready(self, worker: Worker) -> None:
        setup = WorkerSetup(
            adapter=self._config.adapter,
            import_path=import_path(),
            pool=self._config.name,
            worker=worker.name,
            preload=list(self._config.preload),
            has_threads=self._config.profile == "thread",
            codec=self._config.codec,
            beat_seconds=_beat_seconds(self._config),
        )
        await worker.start(setup)
        worker.apply(WorkerEvent.ANSWER)

    def _put_to_work(self, worker: Worker) -> None:
        """Have a worker lent, and watch it. The lock is held."""
        self.tools = worker.tools | self.tools
        self._slots[worker.slot].fill()
        worker.ready_at = time.monotonic()
        for seat in worker.seats:
            self._lend(seat)
        self.watch_over(self._watch(worker))
        if self._config.max_age is not None:
            reason = f"{self._config.max_age:g} s old (max_age)"
            grow_old = partial(self.note_due, worker, reason, spares_home=True)
            loop = asyncio.get_running_loop()
            worker.retirement = loop.call_later(self._config.max_age, grow_old)

    def watch_over(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something beside, until it is done or the crew ends."""
        watcher = self._supervisor.spawn(work)
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _start_spare(self, slot: int, incarnation: int) -> Worker:
        worker = self._make_worker(slot, incarnation)
        await self._make_ready(worker)
        return worker

    # -- replacing those that end --------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Wait for the end of a worker; refill its slot if nobody asked for it."""
        await worker.died.wait()
        with self._lock:
            self.strand(worker)  # or whoever gives it back now would have it lent again
            is_lost = not self.is_dismissed and not worker.is_retired
            self.died += is_lost
        if not is_lost:
            return
        await worker.end(0.0)
        reason = worker.death_in_words()
        self._note_end(worker, reason, was_wanted=True)
        slot = self._slots.get(worker.slot)
        if slot is None or slot.is_filling or self.workers.get(slot.number) is not worker:
            return
        if worker.is_proven:
            slot.prove()
        elif slot.fail(time.monotonic(), reason):
            self._degrade(slot)
            return
        await self._fill(slot)

    async def _fill(self, slot: Slot) -> None:
        """Give an empty slot a worker, unless that fails too often."""
        slot.is_filling = True
        try:
            while not self.is_dismissed and slot.number in self._slots:
                try:
                    if (spare := self._spares.take()) is None:
                        await self._start_worker(slot)
                    else:
                        spare.take_slot(slot.number, slot.next_incarnation())
                        with self._lock:
                            self._seat(spare)
                            self._put_to_work(spare)
                except StartFailed as error:
                    logger.warning("pool %s: %s", self._config.name, error)
                    if slot.fail(time.monotonic(), str(error)):
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
        rest = slot.seconds_to_rest(time.monotonic())
        logger.warning(
            "pool %s: slot %d is degraded, and tried again in %.0f s: %s",
            self._config.name,
            slot.number,
            rest,
            slot.problem,
        )
        with self._lock:
            self.last_problem = slot.problem
            given_up = self.workers.pop(slot.number, None)
            if given_up is not None:
                self._tell_stranded(given_up)
            for ticket in [] if self.workers else self._scheduler.drain():
                ticket.on_grant()

    def reconcile(self) -> None:
        """Compare the slots with their workers; fill those that are empty, a few at a time."""
        now = time.monotonic()
        empty = []
        for slot in self._slots.values():
            worker = self.workers.get(slot.number)
            if worker is not None and worker.is_proven:
                slot.prove()
            if worker is None and not slot.is_filling and not slot.seconds_to_rest(now):
                empty.append(slot)
        for slot in empty[:RESPAWNS]:
            slot.is_filling = True
            self.watch_over(self._fill(slot))
        if any(worker.due for worker in self.workers.values()):
            self._due.set()

    def _note_end(self, worker: Worker, reason: str, *, was_wanted: bool) -> None:
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

    # -- replacing those that live -------------------------------------------------------------

    def note_due(
        self, worker: Worker, reason: str, *, at_once: bool = False, spares_home: bool = False
    ) -> None:
        """Have a worker replaced soon, from any thread; its successor is made ready first.

        Parameters
        ----------
        worker
            The worker.
        reason
            Why, in words.
        at_once
            Whether it gets no more work even until then.
        spares_home
            Whether it stays as long as a session is bound to it.
        """
        with self._lock:
            if worker.state not in LENDABLE or worker.is_withheld or (worker.due and not at_once):
                return
            worker.due = worker.due or reason
            worker.spares_home = spares_home
            if at_once:
                worker.is_withheld = True
                for seat in worker.seats:
                    self._scheduler.withhold(seat)
        with contextlib.suppress(RuntimeError):  # the pool has ended
            self._supervisor.soon(self._due.set)

    def note_worn(self, worker: Worker, reason: str) -> None:
        """Have a worker replaced soon that has done what it may do; the lock is held.

        It gets no more work, unless a session is bound to it.
        """
        if not worker.due:
            is_home = self._is_home(worker)
            self.note_due(worker, reason, at_once=not is_home, spares_home=is_home)

    def taint(self, worker: Worker, error: BaseException) -> None:
        """Give no more work to a worker that an error left unusable, and have it replaced."""
        with self._lock:
            worker.tainted = (str(error).splitlines() or [type(error).__name__])[0]
            worker.due = ""
            self.note_due(worker, f"tainted by {worker.tainted}", at_once=True)

    def _is_home(self, worker: Worker) -> bool:
        return self._scheduler.homes.has_home(worker.main_seat)

    async def renew(self) -> None:
        """Replace workers that are due, one at a time, until this is cancelled."""
        while True:
            await self._due.wait()
            self._due.clear()
            for worker in [each for each in self.workers.values() if each.due]:
                if worker.spares_home and self._is_home(worker):
                    continue
                try:
                    await self.replace(worker, worker.due)
                except StartFailed as error:
                    logger.warning(
                        "pool %s: %s goes on, because its successor does not start: %s",
                        self._config.name,
                        worker.name,
                        error,
                    )
                    self._lend_again(worker)
                    await asyncio.sleep(FAILED_RENEWAL_REST)

    def _lend_again(self, worker: Worker) -> None:
        """Lend a worker that was withheld, unless it is unusable."""
        with self._lock:
            if worker.is_withheld and not worker.tainted and worker.state in LENDABLE:
                worker.is_withheld = False
                for seat in worker.seats:
                    if seat.holder is None:
                        self._lend(seat)

    async def replace(self, worker: Worker, reason: str) -> bool:
        """Start a successor of a worker, and let the worker go when that is ready.

        Returns
        -------
        bool
            Whether it was replaced; false when it had ended by itself.

        Raises
        ------
        StartFailed
            The successor could not start; the worker goes on.
        """
        async with self._replacing:
            slot = self._slots.get(worker.slot)
            if slot is None or slot.is_filling or self.workers.get(slot.number) is not worker:
                return False
            slot.is_filling = True
            try:
                successor = await self._provide(slot)
            except BaseException:
                slot.is_filling = False
                if worker.died.is_set() and not self.is_dismissed:
                    self.watch_over(self._fill(slot))
                raise
            slot.is_filling = False
            with self._lock:
                self._seat(successor)
                if not worker.died.is_set():
                    self.recycled += 1
                    self._retire(worker, reason)
                self._put_to_work(successor)
            return True

    async def _provide(self, slot: Slot) -> Worker:
        """Return a worker that is ready for a slot."""
        successor = self._spares.take()
        if successor is not None:
            successor.take_slot(slot.number, slot.next_incarnation())
            return successor
        successor = self._make_worker(slot.number, slot.next_incarnation())
        await self._make_ready(successor)
        return successor

    def _retire(self, worker: Worker, reason: str) -> None:
        """Let a worker end what it does, and then itself; the lock is held."""
        worker.is_retired = True
        worker.end_reason = reason
        self._retired.add(worker)
        self.strand(worker)
        if not worker.is_held:
            self.dismiss_soon(worker)

    def dismiss_soon(self, worker: Worker) -> None:
        """Have a worker ended that was retired and that nobody holds any more."""
        with contextlib.suppress(RuntimeError):  # the pool has ended
            self._supervisor.soon(self._dismiss_later, worker)

    def _dismiss_later(self, worker: Worker) -> None:
        if not self.is_dismissed:
            self.watch_over(self._dismiss(worker))

    async def _dismiss(self, worker: Worker) -> None:
        await self._end_worker(worker, self._config.grace)
        self._retired.discard(worker)
        self._note_end(worker, worker.end_reason, was_wanted=False)

    async def resize(self, count: int) -> None:
        """Have more workers, or fewer; those that go end what they do.

        Raises
        ------
        StartFailed
            A worker could not start; the pool has as many as before.
        """
        fewer = self.size - count
        if fewer > 0:
            with self._lock:
                for worker in self._dispensable()[:fewer]:
                    del self._slots[worker.slot], self.workers[worker.slot]
                    self._retire(worker, f"the pool was resized to {count}")
                while self.size > count:  # those that are empty
                    self._slots.popitem()
            return
        numbers = (n for n in itertools.count(1) if n not in self._slots)
        new = [Slot(number) for number in itertools.islice(numbers, -fewer)]
        self._slots |= {slot.number: slot for slot in new}
        try:
            for slot in new:
                slot.is_filling = True
            await asyncio.gather(*map(self._start_worker, new))
        except BaseException:
            with self._lock:
                for slot in new:
                    self._slots.pop(slot.number, None)
                    if slot.number in self.workers:
                        self._retire(self.workers.pop(slot.number), "the pool was not resized")
            raise
        finally:
            for slot in new:
                slot.is_filling = False

    def _dispensable(self) -> list[Worker]:
        """Return the workers, those first that the least is lost with."""
        return sorted(
            self.workers.values(),
            key=lambda worker: (self._is_home(worker), worker.is_held, -worker.slot),
        )

    async def reload(self, config: PoolConfig) -> None:
        """Replace every worker, one after the other, by one with other options.

        Raises
        ------
        StartFailed
            A worker could not start with them; it, and those after it, go on as they are.
        """
        previous, self._config = self._config, config
        for spare in self._spares.take_all():
            self.watch_over(self._end_worker(spare, config.grace))
        replaced = 0
        try:
            for worker in list(self.workers.values()):
                replaced += await self.replace(worker, "the pool was reloaded")
        except BaseException:
            if not replaced:
                self._config = previous
            raise
        with self._lock:
            self.tools = {}
            for worker in self.workers.values():
                self.tools = worker.tools | self.tools

    async def recycle(self, slots: Sequence[int]) -> None:
        """Replace the workers of some slots, one after the other."""
        for slot in slots:
            if (worker := self.workers.get(slot)) is not None:
                await self.replace(worker, "recycled by hand")

    # -- letting go ----------------------------------------------------------------------------

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

    def give_up(self, worker: Worker) -> None:
        """End a worker that has stopped; its slot is refilled when it is gone."""
        self.strand(worker)
        worker.condemn()

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End all workers; return when that is verified."""
        for watcher in list(self._watchers):  # refills that are under way
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        workers = [*self.workers.values(), *self._retired, *self._spares.take_all()]
        await asyncio.gather(*(self._end_worker(worker, grace) for worker in workers))
        with self._lock:
            self.workers.clear()
            self._retired.clear()

    async def _end_worker(self, worker: Worker, grace: float) -> None:
        try:
            await worker.end(grace)
        except SnakepitError as error:
            logger.warning("%s: %s", worker.name, error)


def _beat_seconds(config: PoolConfig) -> float:
    """Return the seconds between two beats of a worker's pulse; 0 for none."""
    policy = config.heartbeat
    return 0.0 if policy is None else min(policy.interval, policy.timeout) / 2
