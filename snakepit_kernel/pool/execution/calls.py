"""Runs calls, streams and cells on an assigned lane, from the request to the answer or the stop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from functools import partial
from typing import Any, Self, TypeVar

import zmq

from ...errors import REPLACED, CallTimeout, SnakepitError, ToolError
from ...lane import replies
from ...lane.exchange import Exchange
from ...lane.owner_end import LaneClosed, OwnerLane
from ...loggers import get_logger
from ...processes.run_folders import remake_folder
from ...protocol import messages
from ...protocol.codec import pickled
from ...protocol.frames import Frame, Segment, pack
from ...protocol.messages import CELL, Apply, CancelStream, Credit, HostCall, OpenChannels
from ...worker.namespace import last_value, pull, push
from ..import_path import search_path
from ..refusals import Refusals
from ..results import CellResult
from ..tools import preamble
from ..work_item import HostCallContext, WorkItem
from ..workers.jupyter import Cell, CellClient, CellRun, ShellRequest, where_interrupted
from ..workers.supervisor import WorkerSupervisor
from ..workers.worker import PooledLane
from .host_tools import HostToolServer

logger = get_logger(__name__)

INTERRUPT_INTERVAL = 0.1
"""Seconds after which an unanswered interrupt is repeated."""

CLOSE_PATIENCE = 0.25
"""Seconds that an abandoned stream may take to its next chunk; then it is interrupted."""


EXTRA_FRAMES_TO_STOP = 100
"""Python frames beyond the recursion limit that may be used to stop a call after that limit."""

_SYSTEM_ERRORS = {"ZMQError", "OSError", *(kind.__name__ for kind in OSError.__subclasses__())}
"""Errors of a worker that cannot create its sockets. A later attempt would fail as well."""

MAX_DEPTH = 16
"""Most host calls of a lane that are served on one stack, each inside the one before.

A tool may make hundreds at the same time (`asyncio.gather`). A host tool that itself calls a tool
receives the next host call from the lane while it waits. Calls that the innermost one has caused
are served beyond this limit, as it waits for them.
"""


T = TypeVar("T")

Wait = Callable[[PooledLane, Exchange, float], Awaitable[None]]
"""Waits until a time for news of an exchange."""

Errors = type[BaseException] | tuple[type[BaseException], ...]


class CallRunner:
    """Runs calls, streams and cells on assigned lanes, and stops those that are cancelled or late.

    When a method returns or raises, the lane is quiet or its worker is being terminated: the lane
    can be released.

    Parameters
    ----------
    grace
        Seconds that a worker may take to respond to an interrupt.
    context
        ZeroMQ context for the Jupyter channels.
    host
        Serves the host calls.
    supervisor
        Terminates workers that ignore an interrupt.
    refusals
        Maps a worker's death to the error that its current caller gets.
    """

    def __init__(
        self,
        grace: float,
        context: zmq.Context[Any],
        host: HostToolServer,
        supervisor: WorkerSupervisor,
        refusals: Refusals,
    ) -> None:
        self._grace = grace
        self._context = context
        self.host = host
        self.supervisor = supervisor
        self.refusals = refusals

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
            raise self.refusals.error_for_death(lane.worker, lane.worker.death()) from None
        except TimeoutError:
            raise self._stop_late(lane, exchange, work) from None
        except RecursionError:  # a chain of host calls that has no end
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + EXTRA_FRAMES_TO_STOP)
            try:
                _finish(self.stop(lane, exchange, _wait_here))
            finally:
                sys.setrecursionlimit(limit)
            raise
        except BaseException as error:
            ended_in_time = _finish(self.stop(lane, exchange, _wait_here))
            note_stop(
                error, lane.worker.name, exchange.where_interrupted, ended_in_time=ended_in_time
            )
            raise
        finally:
            lane.end(exchange)

    async def drive_async(
        self, lane: PooledLane, exchange: Exchange, segments: list[Segment], work: WorkItem
    ) -> None:
        """Send a request and wait for its answer, without blocking the event loop."""
        async with AsyncCall(self, lane, exchange, work, segments=segments):
            while not exchange.is_answered:
                await _wait_for_news(lane, exchange, work.deadline)

    # -- streams -------------------------------------------------------------------------------

    def stream(
        self,
        lane: PooledLane,
        exchange: Exchange,
        segments: list[Segment],
        work: WorkItem,
        room: int,
    ) -> Generator[Any, None, None]:
        """Send a request and yield its chunks, until it is answered or the generator is closed."""
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
                    with contextlib.suppress(LaneClosed):  # the chunks before the end come first
                        lane.send(pack(messages.encode(Credit(exchange.call_id, taken))), deadline)
                    taken = 0
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError
                work.has_given = True
                yield exchange.next_chunk()
        except LaneClosed:
            raise self.refusals.error_for_death(lane.worker, lane.worker.death()) from None
        except TimeoutError:
            raise self._stop_late(lane, exchange, work) from None
        except GeneratorExit:
            _finish(self.close_stream(lane, exchange, _wait_here))
            raise
        except BaseException as error:
            ended_in_time = _finish(self.stop(lane, exchange, _wait_here))
            note_stop(
                error, lane.worker.name, exchange.where_interrupted, ended_in_time=ended_in_time
            )
            raise
        finally:
            lane.end(exchange)

    async def close_stream(self, lane: PooledLane, exchange: Exchange, wait: Wait) -> None:
        """Close an abandoned stream, and wait until it is closed; interrupt it if it takes long."""
        if exchange.is_answered:
            return
        until = time.monotonic() + CLOSE_PATIENCE
        lane.control.left_call = exchange.call_id
        try:
            lane.put(pack(messages.encode(CancelStream(exchange.call_id))))
            while not exchange.is_answered:
                exchange.chunks.clear()
                await wait(lane, exchange, until)
        except LaneClosed:
            pass
        except TimeoutError:
            await self.stop(lane, exchange, wait)
        except BaseException:  # Ctrl-C, or cancelled while it waits
            await self.stop(lane, exchange, wait)
            raise

    # -- host calls ----------------------------------------------------------------------------

    def _receive(self, lane: PooledLane, exchange: Exchange, work: WorkItem) -> None:
        """Receive the next frame of the lane, or serve a deferred host call."""
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
        host_call = _host_call_context(lane, work, exchange, call, None)
        lane.depth += 1
        try:
            answer = self.host.serve(host_call, call, frame, work.session)
        except BaseException:
            # Ctrl-C: the caller in the worker must not wait for ever.
            interrupted = replies.with_error(lane.marshaller, call.id, KeyboardInterrupt())
            lane.put(interrupted)
            raise
        finally:
            lane.depth -= 1
        lane.send(answer, work.deadline)

    # -- cells ---------------------------------------------------------------------------------

    def run_cell(self, lane: PooledLane, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell; push variables before it, and pull variables and its value after it."""
        worker = lane.worker
        cells = worker.cells or self._open_channels(lane, work)
        self._send_what_precedes(lane, work)
        if cell.push:
            try:
                self._apply_on(lane, work, push, dict(cell.push))
            except Exception:
                pickled(lane.marshaller.codec, "the cell", (), cell.push, kind="variable")
                raise  # the cause is not a variable that cannot be pickled, or is too large
        with self._serving_cell(lane, work):
            run = cells.begin(cell, work.session, work.correlation)
            try:
                cells.follow(run, work.deadline, lambda: not worker.process.died.is_set(), lane)
            except TimeoutError:
                stacks = worker.stacks()
                was_replaced = not self._stop_cell(lane, run)
                raise _timed_out(lane, work, stacks, was_replaced) from None
            except ConnectionError:
                raise self.refusals.error_for_death(worker, worker.death()) from None
            except BaseException as error:
                ended_in_time = self._stop_cell(lane, run)
                note_stop(
                    error,
                    worker.name,
                    where_interrupted(run.result.error),
                    ended_in_time=ended_in_time,
                )
                raise
        if run.asks_exit:
            worker.note_quitting()
        result = run.result
        if result.ok and cell.pull:
            result.pulled = self._apply_on(lane, work, pull, list(cell.pull), raise_original=True)
        limit = cell.max_value_bytes
        if result.ok and cell.encode_value and (limit is None or run.has_shown_value):
            try:
                result.value = self._apply_on(lane, work, last_value, limit)
            except ToolError as error:
                result.value_error = error
        return result

    def run_request(self, lane: PooledLane, work: WorkItem, request: ShellRequest) -> CellRun:
        """Run a request of a page other than a cell: a message of a widget, for example."""
        worker = lane.worker
        cells = worker.cells or self._open_channels(lane, work)
        self._send_what_precedes(lane, work)
        with self._serving_cell(lane, work):
            run = cells.send(request, work.session, work.correlation)
            try:
                cells.follow(run, None, lambda: not worker.process.died.is_set(), lane)
            except ConnectionError:
                raise self.refusals.error_for_death(worker, worker.death()) from None
            except BaseException:  # of what shows its output
                self._stop_cell(lane, run)
                raise
        return run

    def _send_what_precedes(self, lane: PooledLane, work: WorkItem) -> None:
        """Let the worker have what it must know before a cell."""
        is_due = lane.forgets or lane.search_path_version != search_path.version()
        if is_due and lane.worker.config.kernel.has_lane:
            self._apply_on(lane, work, abs, 0)

    @contextlib.contextmanager
    def _serving_cell(self, lane: PooledLane, work: WorkItem) -> Iterator[None]:
        """Serve the host calls of the running cell."""
        exchange = Exchange(CELL, work.name)
        exchange.on_host_call = partial(self._serve_here, lane, work, exchange)
        lane.begin(exchange)
        lane.control.serves_cell = True
        try:
            yield
        finally:
            lane.control.serves_cell = False
            lane.end(exchange)

    def _open_channels(self, lane: PooledLane, work: WorkItem) -> CellClient:
        """Open the Jupyter channels of a worker, for its first cell."""
        worker = lane.worker
        with contextlib.suppress(OSError):  # the worker reports it, if it needs the folder
            remake_folder(worker.output.log_path.parent)
        exchange = Exchange(lane.new_call_id(), work.name)
        segments = pack(messages.encode(OpenChannels(exchange.call_id)))
        self.drive(lane, exchange, segments, work)
        try:
            exchange.outcome()
        except ToolError as error:
            if error.type_name not in _SYSTEM_ERRORS:
                raise
            raise self._replace(lane, f"cannot open its channels ({error.message})") from None
        if missing := worker.process.missing_socket():
            raise self._replace(lane, _lost_sockets(missing))
        connection = worker.process.manager.get_connection_info()
        cells = CellClient(worker.name, connection, self._context, worker.comms.note)
        try:
            is_heard = cells.await_welcome(work.deadline, lambda: not worker.process.died.is_set())
            if not is_heard and (missing := worker.process.missing_socket()):
                raise self._replace(lane, _lost_sockets(missing))
        except BaseException as error:
            cells.close()
            if isinstance(error, TimeoutError):
                raise _timed_out(lane, work) from None
            if isinstance(error, ConnectionError):
                raise self.refusals.error_for_death(worker, worker.death()) from None
            raise
        worker.cells = cells
        return cells

    def _replace(self, lane: PooledLane, reason: str) -> SnakepitError:
        """Terminate a worker that can run no cells; return the error for its caller."""
        worker = lane.worker
        worker.process.end_reason = worker.process.end_reason or reason
        self.supervisor.terminate_when_idle(lane)
        return self.refusals.error_for_death(worker, worker.death())

    def _apply_on(
        self,
        lane: PooledLane,
        work: WorkItem,
        function: Callable[..., Any],
        *args: Any,
        raise_original: bool = False,
    ) -> Any:
        """Call a function in the worker of an assigned lane, as part of a cell."""
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        message = Apply(
            exchange.call_id, work.session, correlation=work.correlation, belongs_to_cell=True
        )
        segments = lane.marshaller.pack_value(message, (function, args, {}))
        self.drive(lane, exchange, [*preamble(lane), *segments], work)
        return exchange.outcome()

    # -- stopping ------------------------------------------------------------------------------

    def _stop_late(self, lane: PooledLane, exchange: Exchange, work: WorkItem) -> CallTimeout:
        """Stop a call whose deadline has passed; return the error for its caller."""
        stacks = lane.worker.stacks()  # before the interrupt: they show where the call was
        was_replaced = not _finish(self.stop(lane, exchange, _wait_here))
        return _timed_out(lane, work, stacks, was_replaced)

    async def stop(
        self,
        lane: PooledLane,
        exchange: Exchange,
        wait: Wait,
        held: Errors = asyncio.CancelledError,
    ) -> bool:
        """Interrupt a call until it has ended; terminate a worker that ignores it.

        Parameters
        ----------
        lane, exchange
            Of the call.
        wait
            How to wait: in a thread or in an event loop.
        held
            Errors of a wait that are raised only when the call has ended, so that a cancellation
            does not stop this: an outer call may have the same deadline, and a group of tasks may
            be cancelled at that moment.

        Returns
        -------
        bool
            Whether the call ended in time.
        """
        if not lane.has_request_of(exchange):
            return True  # the request was not sent, and never will be
        until = time.monotonic() + self._grace
        again = 0.0
        cancelled: BaseException | None = None
        try:
            while not exchange.is_answered:
                exchange.chunks.clear()
                if time.monotonic() >= again:
                    lane.interrupt(exchange.call_id)
                    again = time.monotonic() + INTERRUPT_INTERVAL
                try:
                    await wait(lane, exchange, min(until, again))
                except TimeoutError:
                    if time.monotonic() >= until:
                        raise
                except held as error:
                    cancelled = cancelled or error
        except LaneClosed:
            pass
        except BaseException as error:
            self.supervisor.terminate_when_idle(lane)
            if not isinstance(error, TimeoutError):  # a second Ctrl-C
                note_stop(error, lane.worker.name, ended_in_time=False)
                raise
            logger.warning("%s did not respond to an interrupt; it is replaced", lane.worker.name)
            return False
        if cancelled is not None:
            raise cancelled
        return True

    def _stop_cell(self, lane: PooledLane, run: CellRun) -> bool:
        """Interrupt a cell; return whether it ended in time. If not, its worker is terminated."""
        worker = lane.worker
        assert worker.cells is not None
        until = time.monotonic() + self._grace
        run.on_input = None
        call_id = lane.new_call_id()
        try:
            while not run.is_idle and not worker.process.died.is_set():
                lane.interrupt(call_id)
                if time.monotonic() > until:
                    self.supervisor.terminate_when_idle(lane)
                    return False
                step = min(until, time.monotonic() + INTERRUPT_INTERVAL)
                with contextlib.suppress(TimeoutError, ConnectionError):
                    lane.send([], step)  # answers to host calls that the deadline held back
                    worker.cells.follow(run, step, lambda: not worker.process.died.is_set(), lane)
        except BaseException as error:  # a second Ctrl-C
            self.supervisor.terminate_when_idle(lane)
            note_stop(error, lane.worker.name, ended_in_time=False)
            raise
        return True


class AsyncCall:
    """Context manager of a call that an event loop drives: sends it, serves it and stops it.

    It is a class, not a generator: at its end an event loop closes all suspended asynchronous
    generators at the same time, and so would close the parts of a stream independently.

    Parameters
    ----------
    runner
        The runner of the call.
    lane, exchange, work, segments
        As for `CallRunner.drive_async`.
    room
        Chunks that a stream may send ahead; 0 for a call that returns its value.
    """

    held: Errors = asyncio.CancelledError

    def __init__(
        self,
        runner: CallRunner,
        lane: PooledLane,
        exchange: Exchange,
        work: WorkItem,
        *,
        segments: list[Segment],
        room: int = 0,
    ) -> None:
        self._runner = runner
        self._lane = lane
        self._exchange = exchange
        self._segments = segments
        self._work = work
        self._served = AsyncHostCalls(runner.host, lane, exchange, work, contextvars.copy_context())
        self._room = room
        self._taken = 0

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
        runner, lane, exchange = self._runner, self._lane, self._exchange
        if isinstance(error, LaneClosed):
            raise runner.refusals.error_for_death(lane.worker, await lane.worker.adeath()) from None
        if isinstance(error, GeneratorExit):
            await self._on_abandoned()
            return
        stacks, ended_in_time = "", False
        try:
            await self._served.cancel()
            if isinstance(error, TimeoutError):
                stacks = await asyncio.to_thread(lane.worker.stacks)
        finally:  # an outer call may have the same deadline, and cancels this one meanwhile
            ended_in_time = await runner.stop(lane, exchange, _wait_for_news, self.held)
        if isinstance(error, TimeoutError):
            raise _timed_out(lane, self._work, stacks, not ended_in_time) from None
        note_stop(error, lane.worker.name, exchange.where_interrupted, ended_in_time=ended_in_time)

    async def _on_abandoned(self) -> None:
        # The loop was closed while this was suspended: nothing can wait for the call to stop.
        self._runner.supervisor.terminate_when_idle(self._lane)


class AsyncStream(AsyncCall):
    """Context manager of a stream that an event loop drives; its parameters are as for a call."""

    # One that is still open when `asyncio.run` ends may get its GeneratorExit after a cancellation.
    held = (asyncio.CancelledError, GeneratorExit)

    async def has_more(self) -> bool:
        """Wait for the next chunk; return whether there is one, which the caller must take."""
        lane, exchange = self._lane, self._exchange
        while not exchange.chunks and not exchange.is_answered:
            try:
                await _wait_for_news(lane, exchange, self._work.deadline)
            except LaneClosed:
                if not exchange.chunks:  # the chunks before the end come first
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

    async def _on_abandoned(self) -> None:
        await self._runner.close_stream(self._lane, self._exchange, _wait_for_news)


class AsyncHostCalls:
    """Serves the host calls of one call that an event loop drives.

    A plain host tool runs in the loop's thread, like a callback; a coroutine function in a task. If
    the loop is the pool's own, each runs in a thread instead.

    Parameters
    ----------
    host
        Runs the host tools.
    lane, exchange, work
        The lane, the exchange and the work item of the call.
    context
        The context variables of the caller.
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
        host_call = _host_call_context(lane, self._work, self._exchange, call, self._loop)
        if self._in_threads:
            serve = partial(self._context.copy().run, self._serve_in_thread, host_call, call, frame)
            threading.Thread(target=serve, daemon=True).start()
        elif self._host.is_async(call, session):
            # In a copy of the caller's context, not in the context of the loop's reader.
            task = self._loop.create_task(
                self._serve_in_task(host_call, call, frame), context=self._context.copy()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif lane.depth >= MAX_DEPTH and not lane.is_innermost(self._exchange):
            self._loop.call_soon(self._begin, call, frame)  # runs after the host calls on the stack
        else:
            serve = partial(self._host.serve, host_call, call, frame, session)
            lane.depth += 1
            try:
                answer = self._context.copy().run(serve)
            finally:
                lane.depth -= 1
            self._answer(call, answer)

    async def _serve_in_task(
        self, host_call: HostCallContext, call: HostCall, frame: Frame
    ) -> None:
        try:
            answer = await self._host.serve_async(host_call, call, frame, self._work.session)
        except BaseException:
            self._answer_interrupted(call.id)
            raise
        self._answer(call, answer)

    def _serve_in_thread(self, host_call: HostCallContext, call: HostCall, frame: Frame) -> None:
        try:
            answer = self._host.serve(host_call, call, frame, self._work.session)
        except BaseException as error:  # noqa: BLE001 - such as sys.exit(); the worker must get an answer
            answer = replies.with_error(self._lane.marshaller, call.id, error)
        with contextlib.suppress(RuntimeError):  # the pool was closed meanwhile
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
        else:  # the call has ended, and the lane may have been assigned again
            self._lane.marshaller.reclaim(answer)

    def _send(self, answer: list[Segment]) -> None:
        lane: OwnerLane = self._lane
        with contextlib.suppress(LaneClosed):  # the code that waits for the call handles it
            lane.put(answer)
            if lane.fileno() >= 0:
                lane.flush_soon()

    async def cancel(self) -> None:
        """Cancel the tasks of host calls, and wait for them: the calls that they made stop too."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.release()

    def release(self) -> None:
        """Answer the host calls whose threads cannot be stopped, so that the worker goes on."""
        for number in list(self._awaited):
            self._answer_interrupted(number)

    def end(self) -> None:
        """Send no more answers, and cancel the tasks that the ended call left behind."""
        self._awaited.clear()
        for task in self._tasks:
            task.cancel()


@contextlib.contextmanager
def interrupt_until_heard(lane: PooledLane, call_id: int) -> Iterator[None]:
    """Interrupt a call repeatedly while the body waits for its end, without blocking the loop."""
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def again() -> None:
        lane.interrupt(call_id)
        timers[:] = [loop.call_later(INTERRUPT_INTERVAL, again)]

    again()
    try:
        yield
    finally:
        timers[0].cancel()


def _host_call_context(
    lane: PooledLane,
    work: WorkItem,
    exchange: Exchange,
    call: HostCall,
    loop: asyncio.AbstractEventLoop | None,
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
        exchange=exchange,
    )


async def _wait_here(lane: PooledLane, _: Exchange, deadline: float) -> None:
    """Wait for news in this thread, which drives the lane: block it, and never suspend."""
    lane.send([], deadline)  # frames that an interrupt, or the deadline, held back
    lane.receive(deadline)


def _finish(running: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits by `_wait_here`, and so needs no event loop, to its end."""
    try:
        running.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    finally:
        running.close()
    raise AssertionError


async def _wait_for_news(lane: OwnerLane, exchange: Exchange, deadline: float | None) -> None:
    """Wait until a deadline for a chunk, an answer or another event of an exchange."""
    if deadline is None:
        await lane.converse(exchange)
    else:
        async with asyncio.timeout(deadline - time.monotonic()):
            await lane.converse(exchange)


def note_stop(error: BaseException, worker: str, where: str = "", *, ended_in_time: bool) -> None:
    """Add to an interrupt what it has stopped: where a worker was, or that it was replaced."""
    if not isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
        return
    if not ended_in_time:
        error.add_note(f"worker {worker} did not respond to the interrupt, so {REPLACED}")
    elif where:
        error.add_note(f"in worker {worker}:\n{where}")


def _lost_sockets(socket: str) -> str:
    return f"has lost its sockets ({socket} was removed)"


def _timed_out(
    lane: PooledLane, work: WorkItem, stacks: str = "", was_replaced: bool = False
) -> CallTimeout:
    assert work.timeout is not None
    return CallTimeout(work.name, work.timeout, lane.worker.name, stacks, was_replaced)
