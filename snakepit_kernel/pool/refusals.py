"""The errors of work that a pool does not accept, or does not serve to its end."""

from __future__ import annotations

from ..errors import (
    PoolClosed,
    PoolDegraded,
    ReferenceLost,
    SessionLost,
    SnakepitError,
    WorkerDied,
)
from .accounting import DRAINING, Accounting
from .work_item import HostCallContext, WorkItem, call_chain
from .workers.supervisor import WorkerSupervisor
from .workers.worker import Worker


class Refusals:
    """Decides which work a pool refuses, and which error its caller gets.

    Parameters
    ----------
    pool
        Name of the pool.
    supervisor
        Has the workers.
    accounting
        Knows whether the pool accepts work.
    """

    def __init__(self, pool: str, supervisor: WorkerSupervisor, accounting: Accounting) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._accounting = accounting

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
        accounting = self._accounting
        if accounting.closed_because is None and not accounting.is_draining:
            return
        if self._supervisor.is_closing or not self.waits_for(host_call):
            raise PoolClosed(self._pool, accounting.closed_because or DRAINING)

    def closing_error(self) -> PoolClosed | None:
        """Return the error for work that the pool's shutdown ends; None while it is not closing."""
        if not self._supervisor.is_closing:
            return None
        return PoolClosed(self._pool, self._accounting.closed_because or "it was shut down")

    def waits_for(self, host_call: HostCallContext | None) -> bool:
        """Whether a worker of this pool waits for one of a chain of host calls."""
        return any(self._supervisor.has(each.lane.worker) for each in call_chain(host_call))

    def unserved(self, work: WorkItem) -> SnakepitError:
        """Return the error of a work item that will never be assigned a lane."""
        if self._accounting.closed_because is not None:
            return PoolClosed(self._pool, self._accounting.closed_because)
        if work.has_lost_home:
            assert work.home is not None
            if work.home.worker:
                return ReferenceLost(work.home.kind, work.home.worker)
            assert work.home.lane is not None
            assert work.session is not None
            worker = work.home.lane.worker
            return SessionLost(work.session, worker.name, worker.process.end_reason)
        if work.wanted is not None and self._supervisor.workers:
            return work.wanted.worker.death()
        return PoolDegraded(self._pool, self._supervisor.last_problem)

    def error_for_death(self, worker: Worker, death: WorkerDied) -> SnakepitError:
        """Return the error that a worker's death causes for its current caller."""
        # Or it is assigned again before the supervisor has noticed that it died.
        self._supervisor.stop_scheduling(worker)
        if (closed := self.closing_error()) is not None:
            return closed
        if death.status is None and not worker.process.died.is_set():
            worker.process.terminate()  # its process is alive, but its lane is closed
        return death
