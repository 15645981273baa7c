"""Driving a worker that is held: a call or a cell from its request to its answer or its stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import zmq

from ..errors import CallTimeout, SnakepitError, ToolError, WorkerDied
from ..lane.exchange import Exchange, request
from ..lane.host import LaneClosed
from ..protocol.frames import Segment
from ..protocol.messages import Apply, OpenChannels
from ..tools.context import enter_cell
from ..tools.namespace import last_value, pull, push
from .cells import Cell, CellClient, CellRun
from .results import CellResult
from .work import Work
from .worker import Worker, converse

INTERRUPT_AGAIN = 0.1
"""Seconds after which an interrupt that was not heard is repeated."""


class Driver:
    """Talks to workers for whoever holds them, and stops what has to be stopped.

    Every method ends with the worker quiet, or condemned: it can be given back.

    Parameters
    ----------
    grace
        Seconds that a worker may take to heed an interrupt.
    context
        ZeroMQ context for the Jupyter channels.
    condemn
        Has a worker ended that does not heed one.
    explain
        Makes of the death of a worker that was held the error for whoever held it.
    """

    def __init__(
        self,
        grace: float,
        context: zmq.Context[Any],
        condemn: Callable[[Worker], None],
        explain: Callable[[Worker, WorkerDied], SnakepitError],
    ) -> None:
        self._grace = grace
        self._context = context
        self._condemn = condemn
        self._explain = explain

    def drive(
        self, worker: Worker, exchange: Exchange, segments: list[Segment], work: Work
    ) -> None:
        """Send a request and wait for its answer."""
        try:
            worker.lane.send(segments, work.deadline)
            while not exchange.is_answered:
                exchange.take(worker.lane.receive(work.deadline))
        except LaneClosed:
            raise self._explain(worker, worker.death()) from None
        except TimeoutError:
            self._stop_call(worker, exchange)
            raise _timed_out(worker, work) from None
        except BaseException:
            self._stop_call(worker, exchange)
            raise

    async def drive_async(
        self, worker: Worker, exchange: Exchange, segments: list[Segment], work: Work
    ) -> None:
        """Do what `drive` does, while the running event loop goes on."""
        until = work.deadline
        try:
            worker.lane.put(segments)
            if until is None:
                await converse(worker.lane, exchange)
            else:
                async with asyncio.timeout(until - time.monotonic()):
                    await converse(worker.lane, exchange)
        except LaneClosed:
            raise self._explain(worker, await worker.adeath()) from None
        except TimeoutError:
            await self._stop_call_async(worker, exchange)
            raise _timed_out(worker, work) from None
        except GeneratorExit:  # the loop was closed with this in it: nobody can wait for the stop
            self._condemn(worker)
            raise
        except BaseException:
            await self._stop_call_async(worker, exchange)
            raise

    def run_cell(self, worker: Worker, work: Work, cell: Cell) -> CellResult:
        """Run a cell, and what belongs to it: its session, variables to push and to pull."""
        cells = worker.cells or self._open_channels(worker, work)
        if worker.session != work.session:
            self._apply_on(worker, work, enter_cell, work.session)
            worker.session = work.session
        if cell.push:
            self._apply_on(worker, work, push, dict(cell.push))
        run = cells.begin(cell)
        try:
            cells.follow(run, work.deadline, lambda: not worker.died.is_set())
        except TimeoutError:
            self._stop_cell(worker, run)
            raise _timed_out(worker, work) from None
        except ConnectionError:
            raise self._explain(worker, worker.death()) from None
        except BaseException:
            self._stop_cell(worker, run)
            raise
        result = run.result
        if result.ok and cell.pull:
            result.pulled = self._apply_on(worker, work, pull, list(cell.pull))
        if result.ok and cell.with_value:
            try:
                result.value = self._apply_on(worker, work, last_value)
            except ToolError as error:
                result.value_error = error
        return result

    def _open_channels(self, worker: Worker, work: Work) -> CellClient:
        """Open the Jupyter channels to a worker; with its first cell."""
        exchange = Exchange(worker.lane.new_call_id(), work.name)
        self.drive(worker, exchange, request(OpenChannels(exchange.call_id), None), work)
        exchange.outcome()
        connection = worker.manager.get_connection_info()
        cells = CellClient(worker.name, connection, self._context)
        try:
            cells.await_welcome(work.deadline, lambda: not worker.died.is_set())
        except BaseException as error:
            cells.close()
            if isinstance(error, TimeoutError):
                raise _timed_out(worker, work) from None
            if isinstance(error, ConnectionError):
                raise self._explain(worker, worker.death()) from None
            raise
        worker.cells = cells
        return cells

    def _apply_on(
        self, worker: Worker, work: Work, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Call a function in a worker that is held."""
        exchange = Exchange(worker.lane.new_call_id(), work.name)
        segments = request(Apply(exchange.call_id, work.session), (function, args, {}))
        self.drive(worker, exchange, segments, work)
        return exchange.outcome()

    # -- stopping ------------------------------------------------------------------------------

    def _stop_call(self, worker: Worker, exchange: Exchange) -> None:
        """Interrupt a call and wait for that; a worker that does not listen is ended."""
        until = time.monotonic() + self._grace
        try:
            worker.interrupt(exchange.call_id)
            worker.lane.send([], until)
            while not exchange.is_answered:
                try:
                    again = time.monotonic() + INTERRUPT_AGAIN
                    exchange.take(worker.lane.receive(min(until, again)))
                except TimeoutError:
                    if time.monotonic() >= until:
                        raise
                    worker.interrupt(exchange.call_id)
        except LaneClosed:
            pass
        except BaseException as error:
            self._condemn(worker)
            if not isinstance(error, TimeoutError):
                raise  # a second Ctrl-C

    async def _stop_call_async(self, worker: Worker, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(self._grace):
                with insisting(worker, exchange.call_id):
                    await converse(worker.lane, exchange)
        except LaneClosed:
            pass
        except BaseException as error:
            self._condemn(worker)
            if not isinstance(error, TimeoutError):
                raise  # cancelled again

    def _stop_cell(self, worker: Worker, run: CellRun) -> None:
        """Interrupt a cell and wait for that; a worker that does not listen is ended."""
        assert worker.cells is not None
        until = time.monotonic() + self._grace
        call_id = worker.lane.new_call_id()
        try:
            while not run.has_ended and not worker.died.is_set():
                worker.interrupt(call_id)
                if time.monotonic() > until:
                    self._condemn(worker)
                    return
                step = min(until, time.monotonic() + INTERRUPT_AGAIN)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    worker.cells.follow(run, step, lambda: not worker.died.is_set())
        except BaseException:  # a second Ctrl-C
            self._condemn(worker)
            raise


@contextlib.contextmanager
def insisting(worker: Worker, call_id: int) -> Iterator[None]:
    """Interrupt a call until it has heard, while the running event loop goes on."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def again() -> None:
        worker.interrupt(call_id)
        timers[:] = [loop.call_later(INTERRUPT_AGAIN, again)]

    again()
    try:
        yield
    finally:
        timers[0].cancel()


def _timed_out(worker: Worker, work: Work) -> CallTimeout:
    assert work.timeout is not None
    return CallTimeout(work.name, work.timeout, worker.name)
