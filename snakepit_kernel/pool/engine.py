"""The engine of a pool: owns its workers, its queue and its threads, and runs work on the workers.

Three kinds of threads use it: threads of callers, which drive the lanes assigned to their calls;
the supervisor's event loop thread, which starts and ends processes and drives the lanes of futures;
and event loops of asynchronous callers. Shared state is in `Dispatcher`; a lane is used only by its
holder.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import json
import logging
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakSet

import zmq
import zmq.asyncio

from ..errors import PoolClosed, SnakepitError, StartFailed, ToolError, WorkerDied
from ..files import check_file, write_file
from ..lane.exchange import Exchange
from ..lane.replies import Interrupted
from ..lane.shared_memory import TRIM_AFTER
from ..locks import Lock
from ..processes.concurrency import LoopThread, in_thread
from ..processes.guarded_process import TOO_MANY_PROCESSES
from ..processes.run_folders import Folder, remove_folder, sweep_folders
from ..protocol.messages import ToolInfo
from .call_events import describe_error
from .config import PoolConfig
from .dispatcher import Dispatcher
from .execution.calls import CallRunner, interrupt_until_heard
from .execution.futures import FutureRunner
from .execution.host_tools import HostTools, HostToolServer
from .execution.pipeline import FutureItem
from .housekeeping import send_activity
from .open_sessions import PoolSessions
from .policies import Recovery
from .resources.machine_budget import MachineReservation
from .results import CallFuture, CellResult
from .scheduling.affinity import Home
from .status import PoolStats, PoolStatus, WorkerStatus, memory_of, status_path
from .work_item import HostCallContext, WorkItem, call_chain, current_host_call, outcome_of
from .workers.jupyter import Cell
from .workers.monitor import WorkerMonitor
from .workers.replacement import RollingReplacement
from .workers.worker import PooledLane, Worker
from .workers.zmq_threads import start_threads

logger = logging.getLogger(__name__)

STATUS_INTERVAL = 1.0
"""Seconds between updates of the file that `snakepit status` reads, and between messages that keep
a notebook from being culled while its pool works."""

CONTEXT_PATIENCE = 5.0
"""Seconds that the sockets of a pool may take to close."""

RELEASE_PATIENCE = 0.5
"""Seconds that callers may take to release their lanes after the pool's workers have ended."""


class Engine:
    """Runs calls, streams, cells and futures on the workers of one pool.

    Parameters
    ----------
    config
        The pool's options.
    """

    def __init__(self, config: PoolConfig) -> None:
        self._reservation = MachineReservation(config.name, config.bytes_each)
        if config.is_auto_sized:
            left = self._reservation.reserve_remaining(config.workers).workers
            config = replace(config, workers=left)
        self.config = config
        self.pid = os.getpid()
        self.sessions = PoolSessions(config, self.forget_session)
        self.host_tools = HostTools(self.sessions.host_tools_of)
        self._dispatcher = Dispatcher(config)
        self._recovery = Recovery(barrier=config.crash_barrier, retry=config.retry)
        self._closing = Lock()
        self._is_ending = self._has_ended = False
        self._failure: Exception | None = None
        self._waiting: list[threading.Lock] = []  # a gate for each thread that waits in `close`
        self._published: object = None
        sweep_folders()
        self._folder = Folder(config.name)
        try:
            self._build()
        except BaseException as error:  # no threads, no memory, Ctrl-C
            remove_folder(self._folder.path)
            self._reservation.release()
            if isinstance(error, RuntimeError):
                raise StartFailed(
                    f"pool {config.name}", f"{error}; {TOO_MANY_PROCESSES}"
                ) from error
            raise
        atexit.register(self.close)
        _engines.add(self)

    def _build(self) -> None:
        config = self.config
        self._context: zmq.Context[Any] = zmq.Context()
        start_threads(self._context)
        self._managers_context = zmq.asyncio.Context(self._context)
        self._loop_thread = LoopThread(f"snakepit-{config.name}")
        self._supervisor = self._dispatcher.supervisor = RollingReplacement(
            config,
            self._folder,
            self._managers_context,
            loop_thread=self._loop_thread,
            lock=self._dispatcher.lock,
            scheduler=self._dispatcher.scheduler,
            offer=self._dispatcher.offer,
        )
        host = HostToolServer(self.host_tools, self.sessions.serve)
        terminate = self._supervisor.terminate_when_idle
        self._runner = CallRunner(
            config.grace, self._context, host, terminate, self._error_for_death
        )
        self._futures = FutureRunner(
            self._dispatcher,
            self._loop_thread,
            host,
            pool=config.name,
            grace=config.grace,
            stop_scheduling=self._supervisor.stop_scheduling,
            terminate=terminate,
            error_for_death=self._error_for_death,
        )

    # -- workers -------------------------------------------------------------------------------

    def open(self) -> None:
        """Start all workers; return when all are ready.

        Raises
        ------
        StartFailed
            A worker could not start. Nothing is left running.
        """
        starting: concurrent.futures.Future[None] | None = None
        try:
            starting = self._loop_thread.ask(self._open())
            starting.result()
        except BaseException:
            if starting is not None:
                starting.cancel()
            self.close("it did not start", grace=0.0)
            raise

    async def _open(self) -> None:
        await self._supervisor.start()
        WorkerMonitor(self.config, self._supervisor).begin()
        self._publish()
        self._loop_thread.spawn(self._publish_status())

    def _error_for_death(self, worker: Worker, death: WorkerDied) -> SnakepitError:
        """Return the error that a worker's death causes for its current caller."""
        # Or it is assigned again before the supervisor has noticed that it died.
        self._supervisor.stop_scheduling(worker)
        if (closed := self._dispatcher.closing_error()) is not None:
            return closed
        if death.status is None and not worker.died.is_set():
            worker.terminate()  # its process is alive, but its lane is closed
        return death

    @property
    def size(self) -> int:
        """The number of workers that the pool is configured to have."""
        return self._supervisor.size

    def resize(self, count: int) -> None:
        """Change the number of workers; return when the change is complete."""
        self._change(self._supervisor.resize(count))

    def reload(self, adapter: object) -> None:
        """Replace all workers, with another adapter if one is given."""
        if adapter is not None:
            self.config.kernel.check_serves("an adapter")
        self._change(self._reload(adapter))

    async def _reload(self, adapter: object) -> None:
        config = replace(self.config, adapter=self.config.adapter if adapter is None else adapter)
        try:
            await self._supervisor.reload(config)
        finally:
            self.config = self._supervisor.config

    def recycle(self, slot: int | None) -> None:
        """Replace the worker of a slot; None for all workers."""
        known = self.slots()
        if slot is not None and slot not in known:
            msg = f"there is no worker {slot}; there are {known}"
            raise ValueError(msg)
        self._change(self._supervisor.recycle(known if slot is None else [slot]))

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Apply a change of the workers, and wait for it."""
        try:
            if self._supervisor.is_draining:
                raise PoolClosed(
                    self.config.name, self._dispatcher.closed_because or "it has ended"
                )
            if self.is_own_thread:
                msg = "the callback of a future must not wait for workers; use another thread"
                raise RuntimeError(msg)
        except BaseException:
            change.close()
            raise
        changing = self._loop_thread.ask(self._make(change))
        try:
            changing.result()
        except concurrent.futures.CancelledError:
            raise PoolClosed(self.config.name) from None
        except BaseException:
            changing.cancel()
            raise

    async def _make(self, change: Coroutine[Any, Any, None]) -> None:
        await self._supervisor.in_turn(change)
        self._publish()

    def drain(self, timeout: float | None) -> bool:
        """Accept no new work until `resume`; return whether all accepted work ended in time."""
        if self.is_awaited:
            msg = "the pool waits for the code that would wait for it to drain; use another thread"
            raise RuntimeError(msg)
        return self._dispatcher.drain(timeout)

    def resume(self) -> None:
        """Accept work again."""
        self._dispatcher.resume()

    @property
    def tools(self) -> dict[str, ToolInfo]:
        """The tools of the workers, by name."""
        return self._supervisor.tools

    def check_open(self) -> None:
        """Raise an error unless the pool accepts work.

        Raises
        ------
        PoolClosed
            The pool accepts no more work.
        """
        dispatcher = self._dispatcher
        if dispatcher.closed_because is not None or dispatcher.is_draining:
            dispatcher.check_open(current_host_call())

    @property
    def is_awaited(self) -> bool:
        """Whether this pool waits for the calling code: in its own thread, or in a host tool."""
        return self.is_own_thread or self._dispatcher.waits_for(current_host_call())

    def _nesting(self, work: WorkItem, *, can_hop: bool) -> HostCallContext | None:
        """Return the host call that the work is made from, if its worker can run it meanwhile.

        For work that is bound to a worker, outer host calls of the chain qualify as well.

        Parameters
        ----------
        work
            The work.
        can_hop
            Whether the event loop that drives that worker's lane may drive the work.
        """
        if work.host_call is None:
            return None
        for host_call in call_chain(work.host_call):
            if self._supervisor.has(host_call.lane.worker):
                in_reach = host_call.is_here or (can_hop and host_call.loop is not None)
                if host_call.reentrant and in_reach and work.fits(host_call.lane):
                    return host_call
                if work.home is None:
                    return None
        return None

    # -- sessions ------------------------------------------------------------------------------

    def open_home(self, session_id: str) -> Home[PooledLane]:
        """Return the home of a strict session."""
        return self._dispatcher.open_home(session_id)

    def forget_session(self, session_id: str) -> None:
        """Remove a session's state from this pool, and from each worker before its next request.

        That is its home, its host tools, and in each worker its namespace, working directory and
        environment. Running work of the session goes on without them.
        """
        self.host_tools.forget(session_id)
        self._dispatcher.forget_session(session_id)

    # -- blocking calls ------------------------------------------------------------------------

    def call(
        self,
        work: WorkItem,
        *,
        raise_original: bool = False,
    ) -> Any:
        """Run a call on a worker, driven by this thread, and return its value."""
        try:
            while True:
                try:
                    return self._try_call(work, raise_original)
                except BaseException as error:
                    pause = self._prepare_retry(work, error)
                    if pause is None:
                        raise
                self._dispatcher.back_off(work, pause)
        except KeyboardInterrupt as error:
            self._fail(work, error)
            self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _try_call(self, work: WorkItem, raise_original: bool) -> Any:
        nesting = None if work.host_call is None else self._nesting(work, can_hop=True)
        lane = self._dispatcher.wait(work, nesting)
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        segments = work.encode(lane, exchange.call_id)
        if work.nested_in is None or work.nested_in.is_here:
            self._runner.drive(lane, exchange, segments, work)
        else:  # another thread's loop reads that lane
            drive = self._runner.drive_async(lane, exchange, segments, work)
            assert work.nested_in.loop is not None
            asyncio.run_coroutine_threadsafe(drive, work.nested_in.loop).result()
        return self._conclude(work, exchange)

    def stream(self, work: WorkItem, room: int) -> Generator[Any, None, None]:
        """Run a stream on a worker, driven by the thread that consumes its chunks."""
        work.kind = "stream"
        try:
            while True:
                try:
                    yield from self._try_stream(work, room)
                    break
                except BaseException as error:
                    pause = self._prepare_retry(work, error)
                    if pause is None:
                        raise
                self._dispatcher.back_off(work, pause)
        except KeyboardInterrupt as error:
            self._fail(work, error)
            self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _try_stream(self, work: WorkItem, room: int) -> Generator[Any, None, None]:
        lane = self._dispatcher.wait(work, self._nesting(work, can_hop=False))
        exchange = Exchange(lane.new_call_id(), work.name)
        segments = work.encode(lane, exchange.call_id)
        yield from self._runner.stream(lane, exchange, segments, work, room)
        self._conclude(work, exchange)

    def run_cell(self, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by this thread."""
        try:
            return self._run_assigned(self._dispatcher.wait(work), work, cell)
        except BaseException as error:
            self._fail(work, error)
            if isinstance(error, KeyboardInterrupt):
                self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _conclude(self, work: WorkItem, exchange: Exchange) -> Any:
        """Return the value of an answered call, or raise its exception."""
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:  # not by its caller
            if (closed := self._dispatcher.closing_error()) is not None:  # by the pool's shutdown
                raise closed from None
            work.ends_as = "cancelled"
            message = f"{work.name} was interrupted in its worker"
            raise ToolError("KeyboardInterrupt", message, interrupted.traceback) from None
        except BaseException:
            work.ends_as = "error"
            raise
        self._dispatcher.finish(work, "ok")
        return value

    def _prepare_retry(self, work: WorkItem, error: BaseException) -> float | None:
        """Prepare failed work for a retry, or finish it.

        Returns
        -------
        float or None
            Seconds to back off before the retry; None if there is none, and the work is finished.
        """
        pause = self._pause_after(work, error)
        if pause is None:
            self._fail(work, error)
        else:
            self._dispatcher.prepare_retry(work, work.attempt_that_failed(error))
        return pause

    def _pause_after(self, work: WorkItem, error: BaseException) -> float | None:
        """Return the seconds to back off before failed work is retried; None for no retry."""
        if work.finished or self._supervisor.is_draining:
            return None
        if work.nested_in is not None or work.ends_as == "cancelled" or work.has_given:
            return None
        left = None if work.deadline is None else work.deadline - time.monotonic()
        return self._recovery.pause(
            error, work.attempts, idempotent=work.idempotent, seconds_left=left
        )

    def _fail(self, work: WorkItem, error: BaseException, outcome: str = "") -> None:
        """Finish work that ended with an error, and add the call's details to the error."""
        describe_error(error, work, self.config.name)
        self._dispatcher.finish(work, outcome or work.ends_as or outcome_of(error), error)

    # -- calls of an event loop ----------------------------------------------------------------

    async def acall(self, work: WorkItem, *, raise_original: bool = False) -> Any:
        """Run a call on a worker, driven by the running event loop, and return its value."""
        while True:
            try:
                return await self._try_acall(work, raise_original)
            except BaseException as error:
                pause = self._prepare_retry(work, error)
                if pause is None:
                    raise
            await self._back_off(work, pause)

    async def _try_acall(self, work: WorkItem, raise_original: bool) -> Any:
        lane = await self._dispatcher.wait_async(work, self._nesting(work, can_hop=True))
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        segments = work.encode(lane, exchange.call_id)
        drive = self._runner.drive_async(lane, exchange, segments, work)
        nested = work.nested_in
        if nested is None or nested.is_here:
            await drive
        else:  # another thread's loop reads that lane
            assert nested.loop is not None
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(drive, nested.loop))
        return self._conclude(work, exchange)

    async def _back_off(self, work: WorkItem, pause: float) -> None:
        """Wait for the back-off before the next attempt of a work item."""
        try:
            await self._dispatcher.back_off_async(work, pause)
        except BaseException as error:
            self._fail(work, error)
            raise

    async def astream(self, begin: Callable[[], WorkItem], room: int) -> AsyncGenerator[Any, None]:
        """Run a stream on a worker, driven by the running event loop."""
        work = begin()
        work.kind = "stream"
        while True:
            try:
                lane = await self._dispatcher.wait_async(work, self._nesting(work, can_hop=False))
                exchange = Exchange(lane.new_call_id(), work.name)
                segments = work.encode(lane, exchange.call_id)
                async with self._runner.stream_async(
                    lane, exchange, segments, work, room
                ) as stream:
                    while await stream.has_more():
                        yield exchange.next_chunk()
                self._conclude(work, exchange)
                break
            except BaseException as error:
                pause = self._prepare_retry(work, error)
                if pause is None:
                    raise
            await self._back_off(work, pause)

    async def arun_cell(self, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by a thread, without blocking the event loop."""
        try:
            lane = await self._dispatcher.wait_async(work)
        except BaseException as error:
            self._fail(work, error)
            raise
        context = contextvars.copy_context()
        # Not a task: asyncio.run() cancels the remaining tasks, and the thread would go on alone.
        run = asyncio.get_running_loop().run_in_executor(
            None, context.run, self._run_assigned, lane, work, cell
        )
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            work.is_given_up = True
            with interrupt_until_heard(lane, lane.new_call_id()):
                done, _ = await asyncio.wait({run}, timeout=self.config.grace)
            if not done:
                self._supervisor.terminate_when_idle(lane)
            await asyncio.gather(run, return_exceptions=True)
            raise

    def _run_assigned(self, lane: PooledLane, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on its assigned lane, and release the lane from the same thread."""
        try:
            result = self._runner.run_cell(lane, work, cell)
        except BaseException as error:
            self._fail(work, error, "cancelled" if work.is_given_up else "")
            raise
        for problem in (result.error, result.value_error):
            describe_error(problem, work, self.config.name)
        outcome = "ok" if result.ok else "error"
        self._dispatcher.finish(work, "cancelled" if work.is_given_up else outcome, result.error)
        return result

    # -- futures -------------------------------------------------------------------------------

    def submit(self, item: FutureItem) -> CallFuture[Any]:
        """Run a call on a worker, driven by the supervisor's event loop; return its future."""
        return self._futures.submit(item)

    # -- status --------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return the counters."""
        with self._dispatcher.lock:
            return PoolStats(
                **self._dispatcher.counts(),
                started=self._supervisor.started,
                died=self._supervisor.died,
                recycled=self._supervisor.recycled,
            )

    def status(self) -> PoolStatus:
        """Return the current status of the pool and its workers."""
        now = time.monotonic()
        with self._dispatcher.lock:
            workers = [
                WorkerStatus(
                    name=worker.name,
                    pid=worker.pid,
                    state=worker.shown_state,
                    seconds=now - worker.since,
                    calls=worker.calls,
                    memory_bytes=memory_of(worker.pid),
                    running=", ".join(worker.current) or None,
                    run_id=worker.run_id,
                    tainted=worker.tainted or None,
                    device=worker.device,
                )
                for _, worker in sorted(self._supervisor.workers.items())
            ]
            return PoolStatus(
                name=self.config.name,
                owner_pid=self.pid,
                adapter=self.config.adapter_name,
                workers=workers,
                stats=self.stats(),
                sessions=list(self._dispatcher.sessions),
                problem=self._supervisor.problem or self._dispatcher.problem(),
                ends=list(self._supervisor.ends),
            )

    def logs(self) -> dict[str, str]:
        """Return the last output of each worker's process, by the worker's name."""
        with self._dispatcher.lock:
            workers = [worker for _, worker in sorted(self._supervisor.workers.items())]
        return {worker.name: worker.last_output() for worker in workers}

    def slots(self) -> list[int]:
        """Return the numbers of the slots that have a worker."""
        with self._dispatcher.lock:
            return sorted(self._supervisor.workers)

    @property
    def is_own_thread(self) -> bool:
        """Whether the current thread is the supervisor's, in which callbacks of futures run."""
        return self._loop_thread.is_current

    @property
    def is_open(self) -> bool:
        """Whether the pool has not been shut down."""
        return self._dispatcher.closed_because is None

    async def _publish_status(self) -> None:
        """Periodically update the status file, free memory, and keep sessions alive."""
        while True:
            # Polled, because an event for each call would make every call slower.
            await asyncio.sleep(STATUS_INTERVAL)
            if not self._folder.path.is_dir():
                self._published = None  # the published file has been removed
            self._publish()
            stats = self.stats()
            if stats.queued or stats.running:
                send_activity()
            if self._reservation.workers != self._supervisor.size:
                await in_thread(self._reservation.update, self._supervisor.size)
            self._dispatcher.trim(TRIM_AFTER)
            if self.sessions.are_used:
                await in_thread(self._maintain_sessions)

    def _maintain_sessions(self) -> None:
        """Extend the expiry of sessions with unfinished work, and delete expired sessions."""
        try:
            self.sessions.keep_alive(self._dispatcher.working_sessions())
            self.sessions.sweep()
        except SnakepitError as error:  # the next interval tries again
            logger.warning("%s", error)

    def _publish(self) -> None:
        status = self.status()
        news = (status.stats, [(w.name, w.state, w.tainted) for w in status.workers])
        if news != self._published:
            self._published = news
            try:
                path = status_path(self._folder.present())
                check_file(path)  # writing to a pipe in its place would block
                write_file(path, json.dumps(status.as_json()))
            except OSError as error:  # such as a full disk; the pool works without the file
                logger.warning("snakepit status cannot show pool %s: %s", self.config.name, error)

    # -- shutdown ------------------------------------------------------------------------------

    def stop_accepting(self, *, cancel_queued: bool) -> None:
        """Accept no more work; queued work still runs unless `cancel_queued` is set."""
        if os.getpid() != self.pid:
            return
        with self._dispatcher.lock:
            self._dispatcher.closed_because = self._dispatcher.closed_because or "it was shut down"
        if cancel_queued:
            self._dispatcher.empty_queue()

    def wait_until_quiet(self) -> None:
        """Wait until nothing is queued or running."""
        if os.getpid() == self.pid:  # in a forked child, the running work is the parent's
            self._dispatcher.wait_until_quiet()

    def disown(self) -> None:
        """Accept no work in a forked child, which has neither the thread nor the processes."""
        self._dispatcher.closed_because = (
            f"it belongs to process {self.pid}; a forked child cannot use it"
        )
        self._supervisor.is_draining = True

    def close(self, reason: str = "it was shut down", grace: float | None = None) -> None:
        """Interrupt running work, and end all workers; return when they are verified to be gone.

        A separate thread does it, which Ctrl-C does not interrupt; repeated calls wait for it too.
        """
        if os.getpid() != self.pid:
            return  # a forked child has neither the thread nor the processes
        gate = threading.Lock()
        gate.acquire()
        self._waiting.append(gate)  # before `_has_ended` is read, so that no end is missed
        if self.is_own_thread:
            self.stop_accepting(cancel_queued=True)
        if not self._is_ending:
            self._start_shutdown(reason, self.config.grace if grace is None else grace)
        if self.is_own_thread:  # a future's callback closes the pool: it cannot wait for itself
            return
        if not self._has_ended:
            gate.acquire()
        if self._failure is not None:
            raise self._failure

    def _start_shutdown(self, reason: str, grace: float) -> None:
        end = partial(self._end, reason, grace)
        try:
            # A Ctrl-C right after this may let `close` start a second thread, which only waits.
            threading.Thread(target=end, name="snakepit-end", daemon=True).start()
        except RuntimeError:  # the interpreter exits, or there are no more threads
            if self.is_own_thread:
                raise
            end()

    def _end(self, reason: str, grace: float) -> None:
        with self._closing:
            if self._has_ended:
                return
            self._is_ending = True
            with self._dispatcher.lock:
                self._dispatcher.closed_because = self._dispatcher.closed_because or reason
                self._supervisor.is_draining = True
            self.stop_accepting(cancel_queued=True)
            try:
                self._take_down(grace)
            finally:
                self._has_ended = True
                for gate in self._waiting:
                    gate.release()

    def _take_down(self, grace: float) -> None:
        """Do all steps in order, even if one fails; keep the first failure for `close`."""
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._loop_thread.ask(self._supervisor.end(grace)).result(),
            # Callers of the workers notice the end, unless their event loops are blocked.
            lambda: self._dispatcher.wait_until_quiet(RELEASE_PATIENCE),
            self._loop_thread.close,
            self._futures.close,
            self.sessions.close,
            self._end_context,
            lambda: remove_folder(self._folder.path),
            self._reservation.release,
            partial(atexit.unregister, self.close),
        )
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - raised in the threads that wait in `close`
                self._failure = self._failure or error

    def _end_context(self) -> None:
        """Close all ZeroMQ sockets and their context, and wait for `CONTEXT_PATIENCE` at most.

        ZeroMQ waits until each socket is closed. jupyter_client leaves a socket open that it could
        not connect; and a caller may still be using a worker's socket.
        """

        def destroy() -> None:
            for leaked in list(self._managers_context._sockets):  # noqa: SLF001 - no other list
                with contextlib.suppress(RuntimeError):  # its event loop is closed
                    leaked.close(linger=0)
            self._context.destroy(linger=0)

        ending = threading.Thread(target=destroy, name="snakepit-zmq-end", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # the limit of threads is reached
            if threading.main_thread().is_alive():  # else Python exits; 3.12.1 starts none then
                destroy()
            return
        ending.join(CONTEXT_PATIENCE)
        if ending.is_alive():
            logger.warning("pool %s: a ZeroMQ socket was left open", self.config.name)


_engines: WeakSet[Engine] = WeakSet()


def _disown_in_child() -> None:
    for engine in list(_engines):
        engine.disown()


os.register_at_fork(after_in_child=_disown_in_child)
