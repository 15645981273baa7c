"""Driving a worker that is held: a call or a cell from its request to its answer or its stop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Self

import zmq

from ...errors import CallTimeout, SnakepitError, ToolError, WorkerDied
from ...lane import replies
from ...lane.exchange import Exchange
from ...lane.owner_end import LaneClosed, OwnerLane
from ...processes.run_folders import remake_folder
from ...protocol import messages
from ...protocol.codec import pickled
from ...protocol.frames import Frame, Segment, pack
from ...protocol.messages import CELL, Apply, CancelStream, Credit, HostCall, OpenChannels
from ...worker.namespace import last_value, pull, push
from ..import_path import search_path
from ..results import CellResult
from ..tools import preamble
from ..work_item import HostCallContext, WorkItem
from ..workers.jupyter import Cell, CellClient, CellRun
from ..workers.worker import PooledLane, Worker
from .host_tools import HostToolServer

logger = logging.getLogger(__name__)

INTERRUPT_AGAIN = 0.1
"""Seconds after which an interrupt that was not heard is repeated."""

LEAVE_PATIENCE = 0.25
"""Seconds that a stream may take to its next chunk when nobody wants it; then it is interrupted."""


ROOM_TO_STOP = 100
"""Frames that stopping a call may take beyond what Python allows, where that is used up."""

_OF_THE_SYSTEM = {"ZMQError", "OSError", *(kind.__name__ for kind in OSError.__subclasses__())}
"""What a worker raises that cannot make its sockets. It will not be able to later either."""

MAX_DEPTH = 16
"""Host calls that are served each inside the one before, unless that has led to it.

A tool may make hundreds at the same time (`asyncio.gather`). Whoever serves one of them, and calls
a tool for it, finds the next one on the lane while it waits.
"""


class CallRunner:
    """Talks to workers for whoever holds them, and stops what has to be stopped.

    Every method ends with the worker quiet, or condemned: it can be given back.

    Parameters
    ----------
    grace
        Seconds that a worker may take to heed an interrupt.
    context
        ZeroMQ context for the Jupyter channels.
    host
        Serves the calls that come back.
    terminate
        Has a worker ended that does not heed an interrupt.
    explain
        Makes of the death of a worker that was held the error for whoever held it.
    """

    def __init__(
        self,
        grace: float,
        context: zmq.Context[Any],
        host: HostToolServer,
        terminate: Callable[[PooledLane], None],
        explain: Callable[[Worker, WorkerDied], SnakepitError],
    ) -> None:
        self._grace = grace
        self._context = context
        self.host = host
        self.terminate = terminate
        self.explain = explain

    # -- calls ---------------------------------------------------------------------------------

    def drive(
        self, lane: PooledLane, exchange: Exchange, segments: list[Segment], work: WorkItem
    ) -> None:
        """Send a request and wait for its answer."""
        deadline = work.deadline
        lane.begin(exchange)
        try:
            if not lane.ask(exchange, segments, deadline):
                exchange.on_host_call = partial(self._serve_here, lane, work, exchange)
                while not exchange.is_answered:
                    self._receive(lane, exchange, work)
        except LaneClosed:
            raise self.explain(lane.worker, lane.worker.death()) from None
        except TimeoutError:
            raise self._stop_late(lane, exchange, work) from None
        except RecursionError:  # a chain of host calls that has no end
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + ROOM_TO_STOP)
            try:
                self._stop(lane, exchange)
            finally:
                sys.setrecursionlimit(limit)
            raise
        except BaseException:
            self._stop(lane, exchange)
            raise
        finally:
            lane.end(exchange)

    async def drive_async(
        self, lane: PooledLane, exchange: Exchange, segments: list[Segment], work: WorkItem
    ) -> None:
        """Do what `drive` does, while the running event loop goes on."""
        async with AsyncCall(self, lane, exchange, work, segments=segments):
            while not exchange.is_answered:
                await _news(lane, exchange, work.deadline)

    # -- streams -------------------------------------------------------------------------------

    def stream(
        self,
        lane: PooledLane,
        exchange: Exchange,
        segments: list[Segment],
        work: WorkItem,
        room: int,
    ) -> Generator[Any, None, None]:
        """Send a request and yield the chunks, until the answer comes or the consumer leaves."""
        deadline = work.deadline
        exchange.on_host_call = partial(self._serve_here, lane, work, exchange)
        lane.begin(exchange)
        try:
            lane.send(segments, deadline)
            taken = 0
            while True:
                while not exchange.chunks and not exchange.is_answered:
                    self._receive(lane, exchange, work)
                if not exchange.chunks:
                    return
                taken += 1
                if taken * 2 >= room and not exchange.is_answered:
                    with contextlib.suppress(LaneClosed):  # first what has come before the end
                        lane.send(pack(messages.encode(Credit(exchange.call_id, taken))), deadline)
                    taken = 0
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
                work.has_given = True
                yield exchange.next_chunk()
        except LaneClosed:
            raise self.explain(lane.worker, lane.worker.death()) from None
        except TimeoutError:
            raise self._stop_late(lane, exchange, work) from None
        except GeneratorExit:
            self._leave(lane, exchange)
            raise
        except BaseException:
            self._stop(lane, exchange)
            raise
        finally:
            lane.end(exchange)

    def stream_async(
        self,
        lane: PooledLane,
        exchange: Exchange,
        segments: list[Segment],
        work: WorkItem,
        room: int,
    ) -> AsyncStream:
        """Do what `stream` does, while the running event loop goes on."""
        return AsyncStream(self, lane, exchange, work, segments=segments, room=room)

    def _leave(self, lane: PooledLane, exchange: Exchange) -> None:
        """Close a stream that nobody wants, and wait for that; interrupt one that takes long."""
        until = time.monotonic() + LEAVE_PATIENCE
        lane.slot.left_call = exchange.call_id
        try:
            lane.send(pack(messages.encode(CancelStream(exchange.call_id))), until)
            while not exchange.is_answered:
                exchange.chunks.clear()
                lane.receive(until)
        except LaneClosed:
            pass
        except TimeoutError:
            self._stop(lane, exchange)
        except BaseException:  # Ctrl-C
            self._stop(lane, exchange)
            raise

    async def leave_async(self, lane: PooledLane, exchange: Exchange) -> None:
        """Close a stream that nobody wants, while the running event loop goes on."""
        until = time.monotonic() + LEAVE_PATIENCE
        lane.slot.left_call = exchange.call_id
        try:
            lane.put(pack(messages.encode(CancelStream(exchange.call_id))))
            while not exchange.is_answered:
                exchange.chunks.clear()
                await _news(lane, exchange, until)
        except LaneClosed:
            pass
        except TimeoutError:
            await self.stop_async(lane, exchange)
        except BaseException:  # cancelled while it leaves
            await self.stop_async(lane, exchange)
            raise

    # -- calls that come back ------------------------------------------------------------------

    def _receive(self, lane: PooledLane, exchange: Exchange, work: WorkItem) -> None:
        """Take in the next frame of a call, or serve a host call that had to wait."""
        if exchange.deferred:
            self._serve_here(lane, work, exchange, *exchange.deferred.popleft())
        else:
            lane.receive(work.deadline)

    def _serve_here(
        self, lane: PooledLane, work: WorkItem, exchange: Exchange, call: HostCall, frame: Frame
    ) -> None:
        """Serve a host call in this thread, which drives the lane."""
        if lane.depth >= MAX_DEPTH and not lane.is_innermost(exchange):
            exchange.deferred.append((call, frame))
            return
        host_call = _link(lane, work, call, None)
        lane.depth += 1
        try:
            answer = self.host.serve(host_call, call, frame, work.session)
        except BaseException:
            # Ctrl-C: who waits in the worker must not wait on.
            interrupted = replies.with_error(lane.marshaller, call.id, KeyboardInterrupt())
            lane.put(interrupted)
            raise
        finally:
            lane.depth -= 1
        lane.send(answer, work.deadline)

    # -- cells ---------------------------------------------------------------------------------

    def run_cell(self, lane: PooledLane, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell, and what belongs to it: variables to push and to pull."""
        worker = lane.worker
        cells = worker.cells or self._open_channels(lane, work)
        if cell.encode_value and (
            lane.forgets or lane.search_path_version != search_path.version()
        ):
            self._apply_on(lane, work, abs, 0)  # it is to be heard before the cell
        if cell.push:
            try:
                self._apply_on(lane, work, push, dict(cell.push))
            except Exception:
                pickled(lane.marshaller.codec, "the cell", (), cell.push, kind="variable")
                raise  # it was not that one of them cannot travel, or is too large
        with self._serving_cell(lane, work):
            run = cells.begin(cell, work.session, work.correlation)
            try:
                cells.follow(run, work.deadline, lambda: not worker.died.is_set(), lane)
            except TimeoutError:
                stacks = worker.stacks()
                was_replaced = not self._stop_cell(lane, run)
                raise _timed_out(lane, work, stacks, was_replaced) from None
            except ConnectionError:
                raise self.explain(worker, worker.death()) from None
            except BaseException:
                self._stop_cell(lane, run)
                raise
        if run.asks_exit:
            worker.note_quitting()
        result = run.result
        if result.ok and cell.pull:
            result.pulled = self._apply_on(lane, work, pull, list(cell.pull))
        if result.ok and cell.encode_value:
            try:
                result.value = self._apply_on(lane, work, last_value)
            except ToolError as error:
                result.value_error = error
        return result

    @contextlib.contextmanager
    def _serving_cell(self, lane: PooledLane, work: WorkItem) -> Iterator[None]:
        """Serve the host calls of the cell that runs."""
        exchange = Exchange(CELL, work.name)
        exchange.on_host_call = partial(self._serve_here, lane, work, exchange)
        lane.begin(exchange)
        lane.slot.serves_cell = True
        try:
            yield
        finally:
            lane.slot.serves_cell = False
            lane.end(exchange)

    def _open_channels(self, lane: PooledLane, work: WorkItem) -> CellClient:
        """Open the Jupyter channels to a worker; with its first cell."""
        worker = lane.worker
        with contextlib.suppress(OSError):  # the worker says so, if it needs it
            remake_folder(worker.log_path.parent)
        exchange = Exchange(lane.new_call_id(), work.name)
        segments = pack(messages.encode(OpenChannels(exchange.call_id)))
        self.drive(lane, exchange, segments, work)
        try:
            exchange.outcome()
        except ToolError as error:
            if error.type_name not in _OF_THE_SYSTEM:
                raise
            raise self._replace(lane, f"cannot open its channels ({error.message})") from None
        if missing := worker.missing_socket():
            raise self._replace(lane, _lost(missing))
        connection = worker.manager.get_connection_info()
        cells = CellClient(worker.name, connection, self._context)
        try:
            is_heard = cells.await_welcome(work.deadline, lambda: not worker.died.is_set())
            if not is_heard and (missing := worker.missing_socket()):
                raise self._replace(lane, _lost(missing))
        except BaseException as error:
            cells.close()
            if isinstance(error, TimeoutError):
                raise _timed_out(lane, work) from None
            if isinstance(error, ConnectionError):
                raise self.explain(worker, worker.death()) from None
            raise
        worker.cells = cells
        return cells

    def _replace(self, lane: PooledLane, reason: str) -> SnakepitError:
        """Have a worker replaced that can run no cells; return the error for whoever holds it."""
        worker = lane.worker
        worker.end_reason = worker.end_reason or reason
        self.terminate(lane)
        return self.explain(worker, worker.death())

    def _apply_on(
        self, lane: PooledLane, work: WorkItem, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Call a function in a worker that is held."""
        exchange = Exchange(lane.new_call_id(), work.name)
        message = Apply(
            exchange.call_id, work.session, correlation=work.correlation, belongs_to_cell=True
        )
        segments = lane.marshaller.pack_value(message, (function, args, {}))
        self.drive(lane, exchange, [*preamble(lane), *segments], work)
        return exchange.outcome()

    # -- stopping ------------------------------------------------------------------------------

    def _stop_late(self, lane: PooledLane, exchange: Exchange, work: WorkItem) -> CallTimeout:
        """Stop a call whose deadline has passed; return the error for its caller."""
        stacks = lane.worker.stacks()  # before it is interrupted: where it was is what matters
        was_replaced = not self._stop(lane, exchange)
        return _timed_out(lane, work, stacks, was_replaced)

    def _stop(self, lane: PooledLane, exchange: Exchange) -> bool:
        """Interrupt a call and wait for that; end a worker that does not listen.

        Returns
        -------
        bool
            Whether it listened.
        """
        if not lane.has_request_of(exchange):
            return True  # the worker will never hear of it
        until = time.monotonic() + self._grace
        try:
            lane.interrupt(exchange.call_id)
            while not exchange.is_answered:
                exchange.chunks.clear()
                lane.send([], until)  # what an interrupt, or the deadline, kept back
                try:
                    again = time.monotonic() + INTERRUPT_AGAIN
                    lane.receive(min(until, again))
                except TimeoutError:
                    if time.monotonic() >= until:
                        raise
                    lane.interrupt(exchange.call_id)
        except LaneClosed:
            pass
        except BaseException as error:
            self.terminate(lane)
            if not isinstance(error, TimeoutError):
                raise  # a second Ctrl-C
            logger.warning("%s did not heed an interrupt; it is replaced", lane.worker.name)
            return False
        return True

    async def stop_async(
        self, lane: PooledLane, exchange: Exchange, *, streams: bool = False
    ) -> bool:
        """Interrupt a call, while the running event loop goes on; say whether it listened.

        It goes on when it is cancelled, for the time that the worker has: an outer call may have
        the same deadline, and a group of tasks end in that moment. A stream that is left when
        `asyncio.run` ends may get its GeneratorExit behind a cancellation.
        """
        until = time.monotonic() + self._grace
        ends = (asyncio.CancelledError, GeneratorExit) if streams else asyncio.CancelledError
        cancelled: BaseException | None = None
        try:
            with interrupt_until_heard(lane, exchange.call_id):
                while not exchange.is_answered:
                    exchange.chunks.clear()
                    try:
                        await _news(lane, exchange, until)
                    except ends as error:
                        cancelled = cancelled or error
        except LaneClosed:
            pass
        except BaseException as error:
            self.terminate(lane)
            if not isinstance(error, TimeoutError):
                raise  # cancelled again and again
            logger.warning("%s did not heed an interrupt; it is replaced", lane.worker.name)
            return False
        if cancelled is not None:
            raise cancelled
        return True

    def _stop_cell(self, lane: PooledLane, run: CellRun) -> bool:
        """Interrupt a cell and wait for that; a worker that does not listen is ended."""
        worker = lane.worker
        assert worker.cells is not None
        until = time.monotonic() + self._grace
        call_id = lane.new_call_id()
        try:
            while not run.is_idle and not worker.died.is_set():
                lane.interrupt(call_id)
                if time.monotonic() > until:
                    self.terminate(lane)
                    return False
                step = min(until, time.monotonic() + INTERRUPT_AGAIN)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    worker.cells.follow(run, step, lambda: not worker.died.is_set(), lane)
        except BaseException:  # a second Ctrl-C
            self.terminate(lane)
            raise
        return True


class AsyncCall:
    """Serves and stops a call that an event loop drives, around what waits for its answer.

    A class, and no generator: at its end an event loop closes each asynchronous generator that is
    suspended, all at the same time, and so would close the parts of a stream apart from each other.

    Parameters
    ----------
    driver
        Whose it is.
    lane, exchange, work, segments
        As for `CallRunner.drive_async`.
    """

    streams = False

    def __init__(
        self,
        driver: CallRunner,
        lane: PooledLane,
        exchange: Exchange,
        work: WorkItem,
        *,
        segments: list[Segment],
    ) -> None:
        self._driver = driver
        self._lane = lane
        self._exchange = exchange
        self._segments = segments
        self._work = work
        self._served = AsyncHostCalls(driver.host, lane, exchange, work, contextvars.copy_context())

    async def __aenter__(self) -> Self:
        lane = self._lane
        self._exchange.on_host_call = self._served.begin
        lane.begin(self._exchange)
        lane.put(self._segments)
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None:
                await self._end_early(error)
        finally:
            self._served.end()
            self._lane.end(self._exchange)

    async def _end_early(self, error: BaseException) -> None:
        driver, lane, exchange = self._driver, self._lane, self._exchange
        if isinstance(error, LaneClosed):
            raise driver.explain(lane.worker, await lane.worker.adeath()) from None
        if isinstance(error, GeneratorExit):
            await self._leave()
            return
        stacks, listened = "", False
        try:
            await self._served.cancel()
            if isinstance(error, TimeoutError):
                stacks = await asyncio.to_thread(lane.worker.stacks)
        finally:  # an outer call may have the same deadline, and cancels this one meanwhile
            listened = await driver.stop_async(lane, exchange, streams=self.streams)
        if isinstance(error, TimeoutError):
            raise _timed_out(lane, self._work, stacks, not listened) from None

    async def _leave(self) -> None:
        # The loop was closed with this in it: nobody can wait for the stop.
        self._driver.terminate(self._lane)


class AsyncStream(AsyncCall):
    """The same for a stream.

    Parameters
    ----------
    driver, lane, exchange, work, segments
        As for `AsyncCall`.
    room
        Chunks that the worker may be ahead.
    """

    streams = True

    def __init__(
        self,
        driver: CallRunner,
        lane: PooledLane,
        exchange: Exchange,
        work: WorkItem,
        *,
        segments: list[Segment],
        room: int,
    ) -> None:
        super().__init__(driver, lane, exchange, work, segments=segments)
        self._room = room
        self._taken = 0

    async def has_more(self) -> bool:
        """Wait for the next chunk; say whether there is one, which is to be taken now."""
        lane, exchange = self._lane, self._exchange
        while not exchange.chunks and not exchange.is_answered:
            try:
                await _news(lane, exchange, self._work.deadline)
            except LaneClosed:
                if not exchange.chunks:  # first what has come before the end
                    raise
        if not exchange.chunks:
            return False
        self._work.has_given = True
        self._taken += 1
        if self._taken * 2 >= self._room and not exchange.is_answered:
            with contextlib.suppress(LaneClosed):
                lane.put(pack(messages.encode(Credit(exchange.call_id, self._taken))))
                lane.flush_soon()
            self._taken = 0
        return True

    async def _leave(self) -> None:
        await self._driver.leave_async(self._lane, self._exchange)


class AsyncHostCalls:
    """The host calls of one call that an event loop drives.

    A plain function of the notebook runs in the loop's own thread, as a callback would; a coroutine
    function in a task. Where the loop is the pool's own, each runs in a thread instead.

    Parameters
    ----------
    host
        Serves them.
    lane, work
        Where the call runs, and which it is.
    context
        That of the caller.
    in_threads
        Whether the loop is the pool's own.
    """

    def __init__(
        self,
        host: HostToolServer,
        lane: PooledLane,
        exchange: Exchange,
        work: WorkItem,
        context: contextvars.Context,
        *,
        in_threads: bool = False,
    ) -> None:
        self._host = host
        self._lane = lane
        self._exchange = exchange
        self._work = work
        self._in_threads = in_threads
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited: set[int] = set()  # host calls whose answer the worker waits for

    def begin(self, call: HostCall, frame: Frame) -> None:
        """Serve a host call, now or soon."""
        self._awaited.add(call.id)
        self._begin(call, frame)

    def _begin(self, call: HostCall, frame: Frame) -> None:
        if call.id not in self._awaited:
            return
        lane, session = self._lane, self._work.session
        host_call = _link(self._lane, self._work, call, self._loop)
        if self._in_threads:
            serve = partial(self._context.copy().run, self._serve_apart, host_call, call, frame)
            threading.Thread(target=serve, daemon=True).start()
        elif self._host.is_async(call, session):
            # In a copy of the caller's context, not in that of the loop's reader.
            task = self._loop.create_task(
                self._serve_soon(host_call, call, frame), context=self._context.copy()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif lane.depth >= MAX_DEPTH and not lane.is_innermost(self._exchange):
            self._loop.call_soon(self._begin, call, frame)  # which runs when these have ended
        else:
            serve = partial(self._host.serve, host_call, call, frame, session)
            lane.depth += 1
            try:
                answer = self._context.copy().run(serve)
            finally:
                lane.depth -= 1
            self._answer(call, answer)

    async def _serve_soon(self, host_call: HostCallContext, call: HostCall, frame: Frame) -> None:
        try:
            answer = await self._host.serve_async(host_call, call, frame, self._work.session)
        except BaseException:
            self._answer_interrupted(call.id)
            raise
        self._answer(call, answer)

    def _serve_apart(self, host_call: HostCallContext, call: HostCall, frame: Frame) -> None:
        try:
            answer = self._host.serve(host_call, call, frame, self._work.session)
        except BaseException as error:  # noqa: BLE001 - sys.exit() there; the worker must hear of it
            answer = replies.with_error(self._lane.marshaller, call.id, error)
        with contextlib.suppress(RuntimeError):  # the pool has ended meanwhile
            self._loop.call_soon_threadsafe(self._answer, call, answer)

    def _answer_interrupted(self, number: int) -> None:
        if number in self._awaited:
            self._awaited.remove(number)
            marshaller = self._lane.marshaller
            self._send(replies.with_error(marshaller, number, KeyboardInterrupt()))

    def _answer(self, call: HostCall, answer: list[Segment]) -> None:
        if call.id in self._awaited:
            self._awaited.remove(call.id)
            self._send(answer)
        else:  # the call has ended, and the lane may be somebody else's by now
            self._lane.marshaller.reclaim(answer)

    def _send(self, answer: list[Segment]) -> None:
        lane: OwnerLane = self._lane
        with contextlib.suppress(LaneClosed):  # seen by who waits for the call itself
            lane.put(answer)
            if lane.fileno() >= 0:
                lane.flush_soon()

    async def cancel(self) -> None:
        """Cancel what is under way, and wait for that: what it called is stopped with it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.release()

    def release(self) -> None:
        """Let the worker wait no more for host calls whose thread cannot be stopped."""
        for number in list(self._awaited):
            self._answer_interrupted(number)

    def end(self) -> None:
        """Send no more answers: what is still under way was left behind by the call."""
        self._awaited.clear()
        for task in self._tasks:
            task.cancel()


@contextlib.contextmanager
def interrupt_until_heard(lane: PooledLane, call_id: int) -> Iterator[None]:
    """Interrupt a call until it has heard, while the running event loop goes on."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def again() -> None:
        lane.interrupt(call_id)
        timers[:] = [loop.call_later(INTERRUPT_AGAIN, again)]

    again()
    try:
        yield
    finally:
        timers[0].cancel()


def _link(
    lane: PooledLane, work: WorkItem, call: HostCall, loop: asyncio.AbstractEventLoop | None
) -> HostCallContext:
    return HostCallContext(
        lane=lane,
        call_id=call.id,
        reentrant=call.reentrant,
        deadline=work.deadline,
        thread=threading.get_ident(),
        loop=loop,
        parent=work.host_call,
        correlation=work.correlation,
        caller=work.caller_of(call.call),
    )


async def _news(lane: OwnerLane, exchange: Exchange, deadline: float | None) -> None:
    """Wait, until a deadline, for something new of an exchange."""
    if deadline is None:
        await lane.converse(exchange)
    else:
        async with asyncio.timeout(deadline - time.monotonic()):
            await lane.converse(exchange)


def _lost(socket: str) -> str:
    return f"has lost its sockets ({socket} was removed)"


def _timed_out(
    lane: PooledLane, work: WorkItem, stacks: str = "", was_replaced: bool = False
) -> CallTimeout:
    assert work.timeout is not None
    return CallTimeout(work.name, work.timeout, lane.worker.name, stacks, was_replaced)
