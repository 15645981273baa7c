"""Admission of work and allocation of lanes: one path for calls, streams, futures and cells.

``lock`` guards the scheduler, the states of workers and the counters, and is only held briefly.
"""

from __future__ import annotations

import contextlib
import sys
import time

from ..call_details import Attempt
from ..errors import (
    PoolSaturated,
    WorkerBusy,
)
from .accounting import Accounting
from .call_events import report_work
from .config import PoolConfig
from .policies import falls_under
from .refusals import Refusals
from .scheduling.affinity import Home
from .scheduling.deadlock import LaneWait, would_deadlock
from .scheduling.scheduler import QueueFull, Scheduler, nothing
from .work_item import HostCallContext, WorkItem, call_chain
from .workers.lifecycle import WorkerState
from .workers.replacement import RollingReplacement
from .workers.supervisor import WorkerSupervisor
from .workers.worker import PooledLane, Worker

_DONE = ("ok", "error")
"""Outcomes of work that its worker has completed."""


class Dispatcher:
    """Admits a pool's work, assigns lanes to it, and releases them when it ends.

    Parameters
    ----------
    config
        The pool's options.
    supervisor
        Has the workers.
    replacement
        Replaces those that have had all their calls, or are tainted.
    accounting
        Has the counts of the work, and the lock that guards everything here.
    scheduler
        The queue and the idle lanes.

    Attributes
    ----------
    lock
        Guards everything here.
    supervisor, accounting, scheduler
        As above.
    refusals
        The errors of work that it does not accept, or that is lost.
    """

    def __init__(
        self,
        config: PoolConfig,
        supervisor: WorkerSupervisor,
        replacement: RollingReplacement,
        *,
        accounting: Accounting,
        scheduler: Scheduler[PooledLane],
    ) -> None:
        self.lock = accounting.lock
        self.scheduler = scheduler
        self.supervisor = supervisor
        self.accounting = accounting
        self.refusals = Refusals(config.name, supervisor, accounting)
        self._replacement = replacement
        self._pool = config.name
        self._max_calls = config.max_calls or sys.maxsize
        self._tainting = config.crash_barrier.taint_on if config.crash_barrier else ()
        supervisor.on_available.append(self._offer_idle_lanes)

    # -- admission -----------------------------------------------------------------------------

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
        accounting = self.accounting
        with self.lock:
            if accounting.closed_because is not None or accounting.is_draining:
                self.refusals.check_open(work.host_call)
            if work.slot is not None:
                work.wanted = self.supervisor.worker_in(work.slot).main_lane
                if work.only is not None and work.only is not work.wanted:
                    raise work.only.worker.process.describe_death(work.only.worker.name)
            work.finished = False
            accounting.counters["submitted"] += 1
            accounting.pending += 1
            if work.session is not None:
                accounting.sessions[work.session] = None
                pending = accounting.pending_by_session.get(work.session, 0)
                accounting.pending_by_session[work.session] = pending + 1
            if accounting.circuit is not None:
                accounting.ask_breaker(accounting.circuit, work)
            self._assign_or_queue(work, nesting)

    def admit_if_idle(self, work: WorkItem) -> PooledLane | None:
        """Assign to work of a session the lane of the session's last worker; None if it is busy."""
        with self.lock:
            lane = self.scheduler.homes.preferred(work.session or "")
            if lane is None or lane not in self.scheduler.idle or lane.worker.cells is None:
                return None
            work.wanted = lane
            self.admit(work)
            return work.lane

    def admit_again(self, work: WorkItem) -> None:
        """Assign a lane to a work item that is retried, or queue it."""
        with self.lock:
            if (closed := self.refusals.closing_error()) is not None:
                raise closed
            # Even if the pool drains or shuts down: it finishes what it has accepted.
            self._assign_or_queue(work, None)

    def prepare_retry(self, work: WorkItem, attempt: Attempt) -> None:
        """Release the lane, or leave the queue, of a work item that is to be retried."""
        with self.lock:
            self.accounting.counters["retried"] += 1
            if work.lane is None:
                self.scheduler.withdraw(work)
            elif not work.is_prefetched:
                self.release(work.lane, work.name)
            work.begin_again(attempt)

    def _assign_or_queue(self, work: WorkItem, nesting: HostCallContext | None) -> None:
        """Assign an idle lane, or the lane of a worker that waits for the work; else queue it."""
        if not self.supervisor.workers or (work.home is not None and work.home.is_lost):
            raise self.refusals.unserved(work)
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
                raise PoolSaturated(self._pool, full.args[0], work.bound) from None

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
            raise WorkerBusy(work.name, self._pool, [bound_to.worker.name], work.session)
        if work.host_call is not None and self._waits_for_itself(work):
            workers = self.supervisor.workers.values()
            names = {w.name for w in workers if any(map(work.fits, w.lanes))}
            raise WorkerBusy(work.name, self._pool, sorted(names))

    def _waits_for_itself(self, work: WorkItem) -> bool:
        """Whether all lanes that fit wait for host calls that wait for it, or for each other."""
        lanes = [lane for worker in self.supervisor.workers.values() for lane in worker.lanes]
        queued = self.scheduler.first(self.scheduler.waiting)
        waits = [
            _lane_wait(each, lanes)
            for each in queued
            if isinstance(each, WorkItem) and each.host_call is not None
        ]
        return would_deadlock(_lane_wait(work, lanes), waits)

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
            self._replacement.note_max_calls(worker)

    def _count_calls(self, worker: Worker, count: int) -> None:
        worker.calls += count
        if worker.calls >= self._max_calls:
            self._replacement.note_max_calls(worker)

    def _offer_idle_lanes(self, worker: Worker) -> None:
        """Offer the idle lanes of a worker that has become available."""
        for lane in worker.lanes:
            if lane.holder is None:
                self.offer(lane)

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

    # -- completion ----------------------------------------------------------------------------

    def finish(self, work: WorkItem, outcome: str, error: BaseException | None = None) -> None:
        """Count the outcome of a work item, and release its lane or remove it from the queue."""
        accounting = self.accounting
        with self.lock:
            if work.finished:
                return
            work.finished = True  # these three are atomic: no call between them, so no Ctrl-C
            accounting.counters[outcome] += 1
            accounting.pending -= 1
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
                left = accounting.pending_by_session.pop(work.session, 1) - 1
                if left:
                    accounting.pending_by_session[work.session] = left
            if accounting.pending == 0 and accounting.awaiting_quiet:
                accounting.quiet.notify_all()
        if work.caller is not None:
            report_work(work, outcome, self._pool)

    def _note_outcome(self, work: WorkItem, outcome: str, error: BaseException | None) -> None:
        """Report the outcome of admitted work to the circuit breaker, and mark a tainted worker."""
        raised = error if outcome == "error" else None
        if work.lane is not None and raised is not None and falls_under(raised, self._tainting):
            self._replacement.taint(work.lane.worker, raised)
        self.accounting.tell_breaker(work, outcome, error)

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
                self._replacement.stop_retired(worker)
            elif worker.state is WorkerState.TERMINATING:
                worker.process.terminate()

    # -- pipelines ---------------------------------------------------------------------------

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
            if not self.supervisor.workers or self.supervisor.is_closing or work.has_lost_home:
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
                    lane.encoders = lane.sources = lane.search_path_version = 0
                    self._repair_lane(lane)
            if self.accounting.pending == 0:
                self.accounting.quiet.notify_all()

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

    def pin(self, pid: int, worker: str, kind: str) -> Home[PooledLane]:
        """Return the home of a value that stays in a worker; it is lost if the worker has gone.

        Parameters
        ----------
        pid, worker
            Process id and name of the worker.
        kind
            The value's type.
        """
        home: Home[PooledLane] = Home(worker=worker, kind=kind)
        with self.lock:
            for each in self.supervisor.workers.values():
                if each.process.pid == pid:
                    home.lane = each.main_lane
                    self.scheduler.homes.pin(home)
                    return home
        home.is_lost = True
        return home

    def unpin(self, home: Home[PooledLane]) -> Home[PooledLane] | None:
        """Forget the home of a value; return one for the call that frees it, if it is not lost."""
        with self.lock:
            self.scheduler.homes.unpin(home)
            if home.is_lost or self.supervisor.is_closing:
                return None
            return Home(home.lane)

    def take_over_homes(self, ended: Dispatcher) -> None:
        """Take over the homes of a dispatcher whose workers have all ended."""
        with self.lock:
            self.scheduler.homes = ended.scheduler.homes
            self.scheduler.homes.leave_all()

    def forget_session(self, session: str) -> None:
        """Forget a session: its home, and its state in every worker."""
        with self.lock:
            self.scheduler.homes.forget(session)
            self.accounting.sessions.pop(session, None)
            for worker in self.supervisor.workers.values():
                worker.forget(session)

    def empty_queue(self) -> None:
        """Remove all queued work, and notify its callers: it will get no lane."""
        with self.lock:
            removed = self.scheduler.drain()
        for item in removed:
            item.on_assigned()


def _lane_wait(work: WorkItem, lanes: list[PooledLane]) -> LaneWait[PooledLane]:
    """Describe the wait of work that is made from a host call for one of a pool's lanes."""
    return LaneWait(
        fitting=frozenset(filter(work.fits, lanes)),
        blocked=frozenset(host_call.lane for host_call in call_chain(work.host_call)),
    )


def _drop_answered_forgets(lane: PooledLane) -> None:
    """Drop the session removals that a worker has received: it answered a later request."""
    while lane.forgets and lane.forgets[0].number <= lane.forgotten:
        lane.forgets.popleft()
