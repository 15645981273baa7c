"""Work that nobody waits for: futures, which the pool's supervisor takes to the workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ...errors import PoolClosed, SnakepitError, WorkerDied
from ...processes.concurrency import Supervisor
from ..call_events import describe_error
from ..dispatcher import Admission
from ..results import CallFuture
from ..work_item import Work, outcome_of
from ..workers.worker import Seat, Worker
from .host_tools import Host
from .pipeline import Conveyor, Errand, MakeFrames, Pace


class Errands:
    """Takes futures to workers.

    Parameters
    ----------
    admission
        The queue.
    supervisor
        The loop that does it.
    host
        Serves the calls that come back.
    pool
        Name of the pool.
    grace
        Seconds that a worker may take to heed an interrupt.
    strand
        Has a worker lent no more.
    condemn, explain
        As `Driver` has them.
    """

    def __init__(
        self,
        admission: Admission,
        supervisor: Supervisor,
        host: Host,
        *,
        pool: str,
        grace: float,
        strand: Callable[[Worker], None],
        condemn: Callable[[Seat], None],
        explain: Callable[[Worker, WorkerDied], SnakepitError],
    ) -> None:
        self._pool = pool
        self.host = host
        self.grace = grace
        self.strand = strand
        self.condemn = condemn
        self.pace = Pace()
        self._admission = admission
        self._supervisor = supervisor
        self._explain = explain

    def submit(self, work: Work, make_frames: MakeFrames) -> CallFuture[Any]:
        """Run a call on a worker; return its future."""
        errand = Errand(work, make_frames)
        errand.future.correlation_id = work.correlation
        errand.future.keeper = self._supervisor
        work.errand = errand
        work.kind = "future"
        begin = partial(self._supervisor.soon, self._begin, errand)
        work.on_grant = begin
        errand.future.on_cancel(partial(self._cancel_queued, errand))
        try:
            self._admission.admit(work)
            if work.seat is not None:
                begin()
            elif work.queue_deadline is not None:
                self._supervisor.soon(self._expire_later, errand)
        except KeyboardInterrupt:
            self._supervisor.soon(self._abandon, errand)
            raise
        except SnakepitError as error:
            describe_error(error, work, self._pool)
            self._admission.settle(work, outcome_of(error), error)
            raise
        return errand.future

    def _abandon(self, errand: Errand) -> None:
        """End work whose future nobody got, because Ctrl-C came first."""
        if errand.future.running():
            errand.future.cancel()
        else:
            self._admission.mend(errand.work)

    def _begin(self, errand: Errand) -> None:
        work, future = errand.work, errand.future
        if future.running():  # told twice, see Admission.mend
            return
        errand.set_timer(None)
        if work.settled or not future.begin():
            self._end_cancelled(errand)
        elif work.seat is None and self._admission.closed_because is not None:
            self._end_cancelled(errand)
            future.cancel()
        elif work.seat is None:
            self.end(errand, "lost", self._admission.unserved(work))
        else:
            conveyor = Conveyor(self, work.seat, work.name)
            self._admission.board(work, conveyor)
            self._watch(errand, conveyor)
            conveyor.begin(errand)

    def _watch(self, errand: Errand, conveyor: Conveyor) -> None:
        cancel = partial(self._supervisor.soon, conveyor.cancel, errand)
        errand.future.on_cancel(cancel)
        if errand.future.cancelled():  # just before
            cancel()

    def closed(self) -> PoolClosed | None:
        """Return what to tell of work that ends with the pool, if that ends."""
        return self._admission.dismissal()

    def take_along(self, seat: Seat, count: int) -> list[Errand]:
        """Return errands from the head of the queue that a seat can have as well."""
        errands = []
        for work in self._admission.take_along(seat, count):
            errand: Errand = work.errand
            errand.set_timer(None)
            assert isinstance(seat.holder, Conveyor)
            if errand.future.begin():
                self._watch(errand, seat.holder)
                errands.append(errand)
            else:
                self._end_cancelled(errand)
        return errands

    def put_back(self, errand: Errand) -> None:
        """Put an errand that was not begun to the head of the queue."""
        if not errand.future.wait_again():
            self._end_cancelled(errand)
            return
        errand.future.on_cancel(partial(self._cancel_queued, errand))
        if errand.work.queue_deadline is not None:
            self._expire_later(errand)
        self._admission.put_back(errand.work)
        if errand.future.cancelled():  # just before
            self._cancel_queued(errand)

    def release(self, conveyor: Conveyor) -> None:
        """Give the seat of a conveyor back."""
        self._admission.release(conveyor.seat, conveyor.name)

    def bury(self, seat: Seat, errands: list[Errand]) -> None:
        """Tell the one who was being served that the worker died; the others go to another one."""
        self._supervisor.spawn(self._bury(seat.worker, errands))

    async def _bury(self, worker: Worker, errands: list[Errand]) -> None:
        error = self._explain(worker, await worker.adeath())
        for errand in reversed(errands[1:]):
            if self.closed() is None:
                self.put_back(errand)
            else:
                self.end(errand, outcome_of(error), error)
        if errands[0].error is not None:
            self.end(errands[0], "timeout", errands[0].error)
        else:
            self.end(errands[0], outcome_of(error), error)

    def end(
        self,
        errand: Errand,
        outcome: str,
        error: BaseException | None = None,
        *,
        value: Any = None,
    ) -> None:
        """Count how an errand ended, and tell its future."""
        if errand.future.cancelled():
            outcome = "cancelled"
        describe_error(error, errand.work, self._pool)
        self._admission.settle(errand.work, outcome, error)
        self._let_go(errand)
        errand.future.deliver(value, error)

    def _end_cancelled(self, errand: Errand) -> None:
        """Count an errand whose future was cancelled before it was begun."""
        self._admission.settle(errand.work, "cancelled")
        self._let_go(errand)

    def _let_go(self, errand: Errand) -> None:
        """Refer no more to one another: the garbage collector need not come for them."""
        errand.work.errand = None
        errand.future.on_cancel(None)

    def _cancel_queued(self, errand: Errand) -> None:
        if self._admission.withdraw(errand.work):
            self._end_cancelled(errand)
            self._supervisor.soon(errand.set_timer, None)

    def _expire_later(self, errand: Errand) -> None:
        work = errand.work
        assert work.queue_deadline is not None
        if work.settled or errand.future.running():
            return
        left = max(0.0, work.queue_deadline - time.monotonic())
        errand.set_timer(asyncio.get_running_loop().call_later(left, self._expire, errand))

    def _expire(self, errand: Errand) -> None:
        if self._admission.withdraw(errand.work):
            self.end(errand, "timeout", self._admission.late(errand.work))
