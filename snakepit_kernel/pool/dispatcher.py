"""Admission of work and allocation of lanes: one path for calls, streams, futures and cells.

``lock`` guards the scheduler, the states of workers and the counters, and is only held briefly.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ..call_details import Attempt
from ..errors import (
    BreakerOpen,
    CallTimeout,
    PoolClosed,
    PoolDegraded,
    PoolSaturated,
    QueueTimeout,
    SessionLost,
    SnakepitError,
    WorkerBusy,
)
from ..locks import Condition, RLock
from .call_events import report_work
from .config import PoolConfig
from .policies import CircuitBreaker, falls_under
from .scheduling.affinity import Home
from .scheduling.scheduler import QueueFull, Scheduler, nothing
from .scheduling.wait_notice import NOTICE_AFTER, wait_listener
from .work_item import OUTCOMES, HostCallContext, WorkItem, call_chain
from .workers.lifecycle import WorkerState
from .workers.worker import Holder, PooledLane, Worker

if TYPE_CHECKING:
    from .workers.replacement import RollingReplacement

DRAINING = "it takes no new work, because it drains; resume() lets it"

COUNTERS = ("submitted", *OUTCOMES, "retried")

_DONE = ("ok", "error")
"""Outcomes of work that its worker has completed."""


class Dispatcher:
    """Queues a pool's work, assigns lanes to it, and counts its outcomes.

    Parameters
    ----------
    config
        The pool's options.

    Attributes
    ----------
    lock
        Guards everything here.
    scheduler
        The queue and the idle lanes.
    supervisor
        The supervisor of the workers; set by the engine.
    closed_because
        Why the pool accepts no more work; None while it does.
    sessions
        The sessions that the pool has done work for.
    circuit
        The circuit breaker, if the pool has one.
    is_draining
        Whether it accepts no new work until `resume`.
    """

    supervisor: RollingReplacement

    def __init__(self, config: PoolConfig) -> None:
        self.lock = RLock()
        self.scheduler: Scheduler[PooledLane] = Scheduler(config.max_queue, config.max_futures)
        self.closed_because: str | None = None
        self.sessions: dict[str, None] = {}
        self.circuit = CircuitBreaker(config.breaker) if config.breaker is not None else None
        self._config = config
        self._max_calls = config.max_calls or sys.maxsize
        self._tainting = config.crash_barrier.taint_on if config.crash_barrier else ()
        self._quiet = Condition(self.lock)
        self._awaiting_quiet = 0  # number of threads in `wait_until_quiet`
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._pending = 0
        self.is_draining = False
        self._backing_off: set[WorkItem] = set()  # between two attempts
        self._pending_by_session: dict[str, int] = {}  # number of unfinished work items

    # -- admission -----------------------------------------------------------------------------

    def check_open(self, host_call: HostCallContext | None = None) -> None:
        """Raise an error unless the pool accepts work.

        Parameters
        ----------
        host_call
            The host call that the work is made from. A pool that first finishes its accepted work
            also accepts work that this work depends on.

        Raises
        ------
        PoolClosed
            The pool accepts no more work.
        """
        if self.closed_because is None and not self.is_draining:
            return
        if self.supervisor.is_draining or not self.waits_for(host_call):
            raise PoolClosed(self._config.name, self.closed_because or DRAINING)

    def closing_error(self) -> PoolClosed | None:
        """Return the error for work that the pool's shutdown ends; None while it is not closing."""
        if not self.supervisor.is_draining:
            return None
        return PoolClosed(self._config.name, self.closed_because or "it was shut down")

    def waits_for(self, host_call: HostCallContext | None) -> bool:
        """Whether a worker of this pool waits for one of a chain of host calls."""
        return any(self.supervisor.has(each.lane.worker) for each in call_chain(host_call))

    def admit(self, work: WorkItem, nesting: HostCallContext | None = None) -> None:
        """Count a work item, and assign it a lane or queue it.

        If this raises an error, the caller must `finish` the item.

        Parameters
        ----------
        work
            The work item.
        nesting
            A host call whose worker can run it, if no other worker is free.
        """
        with self.lock:
            if self.closed_because is not None or self.is_draining:
                self.check_open(work.host_call)
            if work.slot is not None:
                work.wanted = self._worker_in(work.slot).main_lane
            work.finished = False
            self._counts["submitted"] += 1
            self._pending += 1
            if work.session is not None:
                self.sessions[work.session] = None
                pending = self._pending_by_session.get(work.session, 0)
                self._pending_by_session[work.session] = pending + 1
            if self.circuit is not None:
                self._check(self.circuit, work)
            self._assign_or_queue(work, nesting)

    def admit_again(self, work: WorkItem) -> None:
        """Assign a lane to a work item that is retried, or queue it."""
        with self.lock:
            if (closed := self.closing_error()) is not None:
                raise closed
            # Even if the pool drains or shuts down: it finishes what it has accepted.
            self._assign_or_queue(work, None)

    def prepare_retry(self, work: WorkItem, attempt: Attempt) -> None:
        """Release the lane, or leave the queue, of a work item that is to be retried."""
        with self.lock:
            self._counts["retried"] += 1
            if work.lane is None:
                self.scheduler.withdraw(work)
            elif not work.is_prefetched:
                self.release(work.lane, work.name)
            work.begin_again(attempt)

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
        with self.lock:
            work.on_assigned = wake
            self._backing_off.add(work)
            return not self.supervisor.is_draining

    def _check(self, circuit: CircuitBreaker, work: WorkItem) -> None:
        """Raise an error if the circuit breaker refuses the work."""
        now = time.monotonic()
        work.admitted = circuit.admit(now)
        if work.admitted is None:
            left = circuit.seconds_left(now)
            raise BreakerOpen(self._config.name, circuit.failures, left, circuit.last)

    def _assign_or_queue(self, work: WorkItem, nesting: HostCallContext | None) -> None:
        """Assign an idle lane, or the lane of a worker that waits for the work; else queue it."""
        if not self.supervisor.workers or (work.home is not None and work.home.is_lost):
            raise self.unserved(work)
        if self.scheduler.assign(work):
            self.hold(work)
        elif nesting is not None and work.fits(nesting.lane):
            self._nest(work, nesting)
        else:
            self._check_wait(work)
            try:
                self.scheduler.enqueue(work)
            except QueueFull as full:
                assert work.bound is not None
                raise PoolSaturated(self._config.name, full.args[0], work.bound) from None

    def _worker_in(self, slot: int) -> Worker:
        workers = self.supervisor.workers
        if slot not in workers:
            msg = f"there is no worker {slot}; there are {sorted(workers)}"
            raise ValueError(msg)
        return workers[slot]

    def _nest(self, work: WorkItem, host_call: HostCallContext) -> None:
        """Run work on the worker that waits for the host call that it is made from."""
        work.lane = host_call.lane
        work.nested_in = host_call
        self._count_calls(host_call.lane.worker, 1)
        work.began = time.monotonic()
        if work.session is not None:
            self.scheduler.homes.note(work.session, host_call.lane)
            host_call.lane.worker.serve(work.session, host_call.lane)

    def _check_wait(self, work: WorkItem) -> None:
        """Refuse work that must not wait for its home, or that would deadlock.

        A refused item was never scheduled: the scheduler does not have it.
        """
        bound_to = work.wanted or (work.home.lane if work.home is not None else None)
        if work.fails_fast and bound_to is not None:
            raise WorkerBusy(work.name, self._config.name, [bound_to.worker.name], work.session)
        if work.host_call is not None and self._would_deadlock(work):
            names = sorted({lane.worker.name for lane in self._fitting_lanes(work)})
            raise WorkerBusy(work.name, self._config.name, names)

    def _would_deadlock(self, work: WorkItem) -> bool:
        """Whether all lanes that fit wait for host calls that wait for it, or for each other.

        Two strict sessions, each called from the other one's home, are such a cycle.
        """
        queued = self.scheduler.first(self.scheduler.waiting)
        waiting = [
            each for each in (*queued, work) if isinstance(each, WorkItem) and each.host_call
        ]
        while True:
            held = {host_call.lane for each in waiting for host_call in call_chain(each.host_call)}
            stuck = [
                each
                for each in waiting
                if (fitting := self._fitting_lanes(each)) and fitting <= held
            ]
            if len(stuck) == len(waiting):
                return work in stuck
            waiting = stuck

    def _fitting_lanes(self, work: WorkItem) -> set[PooledLane]:
        return {
            lane for w in self.supervisor.workers.values() for lane in w.lanes if work.fits(lane)
        }

    def hold(self, work: WorkItem) -> None:
        """Record that a work item holds its assigned lane."""
        lane = work.lane
        assert lane is not None
        worker = lane.worker
        lane.holder = work
        if work.session is not None:
            worker.serve(work.session, lane)
        work.began = now = time.monotonic()
        if not worker.current:
            worker.since = now
        worker.current.append(work.name)
        worker.calls += 1
        if worker.calls >= self._max_calls:
            self._note_max_calls(worker)

    def _count_calls(self, worker: Worker, count: int) -> None:
        worker.calls += count
        if worker.calls >= self._max_calls:
            self._note_max_calls(worker)

    def _note_max_calls(self, worker: Worker) -> None:
        self.supervisor.note_limit_reached(
            worker, f"{worker.calls} calls (max_calls {self._max_calls})"
        )

    def offer(self, lane: PooledLane) -> None:
        """Assign an idle lane to the first queued item that it fits, or keep it as idle."""
        item = self.scheduler.add(lane)
        if item is not None:
            assert isinstance(item, WorkItem)
            self.hold(item)
            item.on_assigned()
            self.scheduler.assigned = None

    def withdraw(self, work: WorkItem) -> bool:
        """Remove work from the queue; return whether it was still queued."""
        with self.lock:
            return self.scheduler.withdraw(work)

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, work: WorkItem, nesting: HostCallContext | None = None) -> PooledLane:
        """Admit work, and block this thread until a lane is assigned."""
        with self.lock:
            if work.finished:
                self.admit(work, nesting)
            else:
                self.admit_again(work)
            if work.lane is not None:
                return work.lane
            if self.supervisor.is_own_thread:
                self.scheduler.withdraw(work)
                msg = (
                    f"no worker is free for {work.name}, and this code must not wait for one: it "
                    "runs in the pool's own thread, as callbacks of futures and __setstate__ of "
                    "results do, and workers are given back there; use submit(), or another thread"
                )
                raise RuntimeError(msg)
            gate = threading.Lock()
            gate.acquire()
            work.on_assigned = gate.release
        if not self._wait_for_gate(gate, work) and self.withdraw(work):
            raise self.late(work)
        if work.lane is None:
            raise self.unserved(work)
        return work.lane

    def _wait_for_gate(self, gate: threading.Lock, work: WorkItem) -> bool:
        """Wait for a gate until the queue deadline; return whether it was opened in time."""
        listener = wait_listener()
        if listener is not None:
            work.wait_in_queue(self._config.futures_queue_timeout)
            if _seconds_until(work.queue_deadline) > NOTICE_AFTER:
                if gate.acquire(timeout=NOTICE_AFTER):
                    return True
                listener(self._description_of_wait(work))
        seconds = _seconds_until(work.queue_deadline)
        return gate.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def _description_of_wait(self, work: WorkItem) -> str:
        """Describe to the user what queued work waits for."""
        with self.lock:
            busy = [
                f"{worker.name} runs {' and '.join(worker.current)}"
                for worker in self.supervisor.workers.values()
                if worker.current and (work.home is None or work.home.takes(worker.lanes[0]))
            ]
            others = self.scheduler.waiting - 1
        name, doing = self._config.name, "; ".join(busy) or "its workers start"
        queue = f" {others} more wait." if others > 0 else ""
        return (
            f"{work.name} waits for a worker of pool {name!r}: {doing}.{queue} Stop ends the wait."
        )

    async def wait_async(
        self, work: WorkItem, nesting: HostCallContext | None = None
    ) -> PooledLane:
        """Admit work, and wait until a lane is assigned without blocking the event loop."""
        loop = asyncio.get_running_loop()
        assigned = asyncio.Event()
        work.on_assigned = partial(self._notify_in, loop, assigned, work)
        if work.finished:
            self.admit(work, nesting)
        else:
            self.admit_again(work)
        if work.lane is None:
            until = work.queue_deadline
            try:
                async with asyncio.timeout(None if until is None else until - time.monotonic()):
                    await assigned.wait()
            except TimeoutError:
                if self.withdraw(work):
                    raise self.late(work) from None
            if work.lane is None:
                raise self.unserved(work)
        return work.lane

    def _notify_in(
        self, loop: asyncio.AbstractEventLoop, event: asyncio.Event, work: WorkItem
    ) -> None:
        try:
            loop.call_soon_threadsafe(event.set)
        except RuntimeError:  # the loop was closed while the task was still waiting
            self.finish(work, "cancelled")

    def unserved(self, work: WorkItem) -> SnakepitError:
        """Return the error of a work item that will never be assigned a lane."""
        if self.closed_because is not None:
            return PoolClosed(self._config.name, self.closed_because)
        if work.has_lost_home:
            assert work.home is not None and work.home.lane is not None  # noqa: PT018
            assert work.session is not None
            worker = work.home.lane.worker
            return SessionLost(work.session, worker.name, worker.end_reason)
        if work.wanted is not None and self.supervisor.workers:
            return work.wanted.worker.death()
        return PoolDegraded(self._config.name, self.supervisor.last_problem)

    def late(self, work: WorkItem) -> SnakepitError:
        """Return the error of a work item that was queued for too long."""
        if work.timeout is not None and work.queue_deadline == work.deadline:
            return CallTimeout(work.name, work.timeout)
        return QueueTimeout(self._config.name, time.monotonic() - work.queued)

    # -- completion ----------------------------------------------------------------------------

    def finish(self, work: WorkItem, outcome: str, error: BaseException | None = None) -> None:
        """Count the outcome of a work item, and release its lane or remove it from the queue."""
        with self.lock:
            if work.finished:
                return
            work.finished = True  # these three are atomic: no call between them, so no Ctrl-C
            self._counts[outcome] += 1
            self._pending -= 1
            work.on_assigned = nothing
            lane = work.lane
            if lane is not None and outcome in _DONE:
                lane.worker.done += 1
                if lane.forgets and outcome == "ok":
                    _drop_answered_forgets(lane)
            if error is not None or work.admitted is not None:
                self._note_outcome(work, outcome, error)
            if lane is None:
                self.scheduler.withdraw(work)
            elif work.nested_in is None and not work.is_prefetched:
                self.release(lane, work.name)
            if work.session is not None:
                left = self._pending_by_session.pop(work.session, 1) - 1
                if left:
                    self._pending_by_session[work.session] = left
            if self._pending == 0 and self._awaiting_quiet:
                self._quiet.notify_all()
        if work.caller is not None:
            report_work(work, outcome, self._config.name)

    def _note_outcome(self, work: WorkItem, outcome: str, error: BaseException | None) -> None:
        """Report the outcome of admitted work to the circuit breaker, and mark a tainted worker."""
        lane, admitted = work.lane, work.admitted
        raised = error if outcome == "error" else None
        if lane is not None and raised is not None and falls_under(raised, self._tainting):
            self.supervisor.taint(lane.worker, raised)
        if admitted is None or self.circuit is None:
            return
        if outcome == "ok":
            self.circuit.succeed(admitted)
        elif (
            outcome != "cancelled"
            and error is not None
            and falls_under(error, self.circuit.policy.on)
        ):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.circuit.fail(admitted, time.monotonic(), reason)
        else:
            self.circuit.abandon(admitted)

    def release(self, lane: PooledLane, name: str) -> None:
        """Release a lane, with the lock held, and assign it to the next item that it fits."""
        worker = lane.worker
        lane.holder = None
        if name in worker.current:
            worker.current.remove(name)
        if not worker.current:
            worker.since = time.monotonic()
        if worker.state is WorkerState.READY:
            if lane not in self.scheduler.idle:  # else Ctrl-C interrupted an earlier release
                self.offer(lane)
        elif worker.state is WorkerState.DEAD:
            if not worker.is_held:
                worker.close_channels()
        elif not worker.is_waited_for:
            if worker.state is WorkerState.DRAINING:
                self.supervisor.stop_retired(worker)
            elif worker.state is WorkerState.TERMINATING:
                worker.terminate()

    # -- pipelines ---------------------------------------------------------------------------

    def start_pipeline(self, work: WorkItem, pipeline: Holder) -> None:
        """Hand the lane of a work item to a pipeline, which runs further items on it."""
        with self.lock:
            assert work.lane is not None
            work.lane.holder = pipeline
            work.is_prefetched = True

    def prefetch(self, lane: PooledLane, count: int) -> list[WorkItem]:
        """Take futures from the head of the queue for a lane that a pipeline holds.

        No item that this lane fits is overtaken; items that wait for another worker are skipped.
        """
        taken: list[WorkItem] = []
        with self.lock:
            if lane.worker.state is not WorkerState.READY or lane.worker.replacement_reason:
                return taken  # it will be ended or replaced
            count = min(count, self._max_calls - lane.worker.calls)
            for item in self.scheduler.first_after(lane, count):
                assert isinstance(item, WorkItem)
                if not item.fits(lane):
                    continue
                is_bound = item.wanted is not None or item.session is not None
                if item.kind != "future" or is_bound or item.deadline is not None:
                    break
                self.scheduler.withdraw(item)
                item.lane = lane
                item.began = time.monotonic()
                item.is_prefetched = True
                taken.append(item)
            if taken:
                self.scheduler.pass_on(lane, taken[-1])
            self._count_calls(lane.worker, len(taken))
        return taken

    def requeue(self, work: WorkItem) -> None:
        """Return prefetched work that was not started to the head of the queue."""
        with self.lock:
            work.lane = work.began = None
            work.is_prefetched = False
            if not self.supervisor.workers or self.supervisor.is_draining or work.has_lost_home:
                work.on_assigned()  # without a lane: it will never get one
            elif self.scheduler.assign(work):
                self.hold(work)
                work.on_assigned()
            else:
                self.scheduler.put_first(work)

    # -- repair after Ctrl-C -----------------------------------------------------------------

    def repair(self, work: WorkItem) -> None:
        """Repair the state that a KeyboardInterrupt may have left inconsistent.

        It may come between any two calls of the main thread: after a lane was removed from the idle
        lanes and before it has a holder, or after an item was removed from the queue and before it
        was notified. This runs in the supervisor's thread, where no signal handler runs.
        """
        with self.lock:
            self.finish(work, "cancelled")
            self.scheduler.withdraw(work)
            item = self.scheduler.assigned
            if isinstance(item, WorkItem) and item.lane is not None and not item.finished:
                self.scheduler.assigned = None
                self.scheduler.complete_assignment(item, item.lane)
                if item.lane.holder is None:  # else it has been notified, and was begun
                    self.hold(item)
                with contextlib.suppress(RuntimeError):  # it was notified already
                    item.on_assigned()
            for worker in self.supervisor.at_work():
                for lane in worker.lanes:
                    lane.defined.clear()  # the definitions may not have been sent
                    lane.encoders = lane.search_path_version = 0
                    self._repair_lane(lane)
            if self._pending == 0:
                self._quiet.notify_all()

    def _repair_lane(self, lane: PooledLane) -> None:
        holder = lane.holder
        if holder is not None and not holder.finished:
            return
        if lane.worker.state.is_in_service:
            others = (other.holder for other in lane.worker.lanes if other is not lane)
            lane.worker.current[:] = [other.name for other in others if other is not None]
            self.release(lane, "")
        elif holder is not None:
            self.release(lane, holder.name)

    # -- sessions ------------------------------------------------------------------------------

    def open_home(self, session: str) -> Home[PooledLane]:
        """Return the home of a strict session."""
        with self.lock:
            return self.scheduler.homes.open(session)

    def forget_session(self, session: str) -> None:
        """Forget a session: its home, and its state in every worker."""
        with self.lock:
            self.scheduler.homes.forget(session)
            self.sessions.pop(session, None)
            for worker in self.supervisor.workers.values():
                worker.forget(session)

    def working_sessions(self) -> set[str]:
        """Return the sessions with queued or running work."""
        with self.lock:
            return set(self._pending_by_session)

    # -- status --------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the counters."""
        with self.lock:
            waiting = self.scheduler.waiting
            return {**self._counts, "queued": waiting, "running": self._pending - waiting}

    def problem(self) -> str | None:
        """Return why the pool refuses some or all work; None while it accepts all."""
        if self.closed_because is not None:
            return self.closed_because
        if self.is_draining:
            return DRAINING
        now = time.monotonic()
        if self.circuit is None or (state := self.circuit.state(now)) == "closed":
            return None
        return f"its breaker is {state}: {self.circuit.last}"

    def drain(self, timeout: float | None) -> bool:
        """Accept no new work until `resume`; return whether all accepted work ended in time."""
        self.is_draining = True
        self.wait_until_quiet(timeout)
        return self._pending == 0

    def resume(self) -> None:
        """Accept work again."""
        if self.closed_because is not None:
            raise PoolClosed(self._config.name, self.closed_because)
        self.is_draining = False

    def wait_until_quiet(self, timeout: float | None = None) -> None:
        """Wait until nothing is queued or running, or for a timeout in seconds."""
        with self.lock:
            self._awaiting_quiet += 1
            try:
                self._quiet.wait_for(lambda: self._pending == 0, timeout)
            finally:
                self._awaiting_quiet -= 1

    def trim(self, seconds: float) -> None:
        """Free the buffers for large values of workers that have been idle for so many seconds."""
        idle_since = time.monotonic() - seconds
        with self.lock:  # no lane is assigned meanwhile
            for worker in self.supervisor.workers.values():
                if worker.state.is_in_service and not worker.current and worker.since < idle_since:
                    for lane in worker.lanes:
                        lane.marshaller.trim()

    def empty_queue(self) -> None:
        """Cancel all queued work and pending retries, and notify their callers."""
        with self.lock:
            cancelled = [*self.scheduler.drain(), *self._backing_off]
            self._backing_off.clear()
        for item in cancelled:
            item.on_assigned()


def _drop_answered_forgets(lane: PooledLane) -> None:
    """Drop the session removals that a worker has received: it answered a later request."""
    while lane.forgets and lane.forgets[0].number <= lane.forgotten:
        lane.forgets.popleft()


def _seconds_until(deadline: float | None) -> float:
    return math.inf if deadline is None else max(0.0, deadline - time.monotonic())
