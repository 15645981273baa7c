"""The engine of a pool: its workers, its queue, and how work gets from one to the other.

Three kinds of threads meet here: callers, who drive the lane that they hold; the
supervisor, which starts and ends processes and drives the lanes of futures; and event loops of
callers who await. What they share is in `Dispatcher`; a lane belongs to whoever holds it.
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
"""Seconds between looks whether the file that `snakepit status` reads is out of date, and between
messages that keep a notebook from being culled while its pool works."""

CONTEXT_PATIENCE = 5.0
"""Seconds that the sockets of a pool may take to close."""

FAREWELL = 0.5
"""Seconds that those who held the workers of a pool that has ended may take to let go."""


class Engine:
    """Runs a pool's work on its workers.

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
        self._waiting: list[threading.Lock] = []  # a gate for each who waits for the end
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
        self._driver = CallRunner(config.grace, self._context, host, terminate, self._explain)
        self._futures = FutureRunner(
            self._dispatcher,
            self._loop_thread,
            host,
            pool=config.name,
            grace=config.grace,
            stop_scheduling=self._supervisor.stop_scheduling,
            terminate=terminate,
            explain=self._explain,
        )

    # -- workers -------------------------------------------------------------------------------

    def open(self) -> None:
        """Start all workers; return when each is ready.

        Raises
        ------
        StartFailed
            One of them could not start. Nothing is left running.
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

    def _explain(self, worker: Worker, death: WorkerDied) -> SnakepitError:
        """Say why a worker left whoever held it."""
        self._supervisor.stop_scheduling(
            worker
        )  # or it is lent again before the supervisor has seen that it died
        if (closed := self._dispatcher.closing_error()) is not None:
            return closed
        if death.status is None and not worker.died.is_set():
            worker.terminate()  # it lives, but nobody can talk to it
        return death

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return self._supervisor.size

    def resize(self, count: int) -> None:
        """Have another number of workers."""
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
        """Replace the worker of a slot, or all."""
        known = self.slots()
        if slot is not None and slot not in known:
            msg = f"there is no worker {slot}; there are {known}"
            raise ValueError(msg)
        self._change(self._supervisor.recycle(known if slot is None else [slot]))

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Change the crew, and wait for that."""
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
        """Take no work until `resume`; say whether all that was accepted has ended in time."""
        if self.is_awaited:
            msg = "the pool waits for the code that would wait for it to drain; use another thread"
            raise RuntimeError(msg)
        return self._dispatcher.drain(timeout)

    def resume(self) -> None:
        """Take work again."""
        self._dispatcher.resume()

    @property
    def tools(self) -> dict[str, ToolInfo]:
        """What the workers offer, by name."""
        return self._supervisor.tools

    def check_open(self) -> None:
        """Do nothing while the pool takes work.

        Raises
        ------
        PoolClosed
            It does not any more.
        """
        dispatcher = self._dispatcher
        if dispatcher.closed_because is not None or dispatcher.is_draining:
            dispatcher.check_open(current_host_call())

    @property
    def is_awaited(self) -> bool:
        """Whether this pool waits for the code that asks: its thread, or a host tool."""
        return self.is_own_thread or self._dispatcher.waits_for(current_host_call())

    def _nesting(self, work: WorkItem, *, can_hop: bool) -> HostCallContext | None:
        """Return the host call that the work is made from, if its worker can do it meanwhile.

        Work that is bound to a worker may come from it by way of others, which wait as well.

        Parameters
        ----------
        work
            The work.
        can_hop
            Whether it may be driven by the event loop that drives that worker's lane.
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
        """Return the home of a session whose work is bound to one worker."""
        return self._dispatcher.open_home(session_id)

    def forget_session(self, session_id: str) -> None:
        """Drop what a session has in this pool, and in its workers before their next request.

        That is its home, its host tools, and in each worker its names, its working directory and
        its environment. Work of the session that runs goes on, with nothing around it.
        """
        self.host_tools.forget(session_id)
        self._dispatcher.forget_session(session_id)

    # -- work of a thread that waits -----------------------------------------------------------

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
                    pause = self._set_aside(work, error)
                    if pause is None:
                        raise
                self._dispatcher.rest(work, pause)
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
            self._driver.drive(lane, exchange, segments, work)
        else:  # another thread's loop reads that lane
            drive = self._driver.drive_async(lane, exchange, segments, work)
            assert work.nested_in.loop is not None
            asyncio.run_coroutine_threadsafe(drive, work.nested_in.loop).result()
        return self._conclude(work, exchange)

    def stream(self, work: WorkItem, room: int) -> Generator[Any, None, None]:
        """Run a stream on a worker, driven by the thread that takes its chunks."""
        work.kind = "stream"
        try:
            while True:
                try:
                    yield from self._try_stream(work, room)
                    break
                except BaseException as error:
                    pause = self._set_aside(work, error)
                    if pause is None:
                        raise
                self._dispatcher.rest(work, pause)
        except KeyboardInterrupt as error:
            self._fail(work, error)
            self._loop_thread.soon(self._dispatcher.repair, work)
            raise

    def _try_stream(self, work: WorkItem, room: int) -> Generator[Any, None, None]:
        lane = self._dispatcher.wait(work, self._nesting(work, can_hop=False))
        exchange = Exchange(lane.new_call_id(), work.name)
        segments = work.encode(lane, exchange.call_id)
        yield from self._driver.stream(lane, exchange, segments, work, room)
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
        """Return the value of a call that has its answer, or raise its exception."""
        try:
            value = exchange.outcome()
        except Interrupted as interrupted:  # by somebody else than its caller
            if (closed := self._dispatcher.closing_error()) is not None:  # by the pool's end
                raise closed from None
            work.ends_as = "cancelled"
            message = f"{work.name} was interrupted in its worker"
            raise ToolError("KeyboardInterrupt", message, interrupted.traceback) from None
        except BaseException:
            work.ends_as = "error"
            raise
        self._dispatcher.finish(work, "ok")
        return value

    def _set_aside(self, work: WorkItem, error: BaseException) -> float | None:
        """Return how long work that failed is to rest before it is done again.

        Returns
        -------
        float or None
            Seconds; None for never: then it has been counted.
        """
        pause = self._pause_after(work, error)
        if pause is None:
            self._fail(work, error)
        else:
            self._dispatcher.prepare_retry(work, work.attempt_that_failed(error))
        return pause

    def _pause_after(self, work: WorkItem, error: BaseException) -> float | None:
        """Return how long to wait before work that failed is done again; None for never."""
        if work.finished or self._supervisor.is_draining:
            return None
        if work.nested_in is not None or work.ends_as == "cancelled" or work.has_given:
            return None
        left = None if work.deadline is None else work.deadline - time.monotonic()
        return self._recovery.pause(
            error, work.attempts, idempotent=work.idempotent, seconds_left=left
        )

    def _fail(self, work: WorkItem, error: BaseException, outcome: str = "") -> None:
        """Count work that ended with an error, which tells from now on whose it is."""
        describe_error(error, work, self.config.name)
        self._dispatcher.finish(work, outcome or work.ends_as or outcome_of(error), error)

    # -- work of an event loop -----------------------------------------------------------------

    async def acall(self, work: WorkItem, *, raise_original: bool = False) -> Any:
        """Run a call on a worker, driven by the running event loop, and return its value."""
        while True:
            try:
                return await self._try_acall(work, raise_original)
            except BaseException as error:
                pause = self._set_aside(work, error)
                if pause is None:
                    raise
            await self._rest(work, pause)

    async def _try_acall(self, work: WorkItem, raise_original: bool) -> Any:
        lane = await self._dispatcher.wait_async(work, self._nesting(work, can_hop=True))
        exchange = Exchange(lane.new_call_id(), work.name, raise_original=raise_original)
        segments = work.encode(lane, exchange.call_id)
        drive = self._driver.drive_async(lane, exchange, segments, work)
        nested = work.nested_in
        if nested is None or nested.is_here:
            await drive
        else:  # another thread's loop reads that lane
            assert nested.loop is not None
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(drive, nested.loop))
        return self._conclude(work, exchange)

    async def _rest(self, work: WorkItem, pause: float) -> None:
        """Wait before the next attempt of a piece of work."""
        try:
            await self._dispatcher.rest_async(work, pause)
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
                async with self._driver.stream_async(
                    lane, exchange, segments, work, room
                ) as stream:
                    while await stream.has_more():
                        yield exchange.next_chunk()
                self._conclude(work, exchange)
                break
            except BaseException as error:
                pause = self._set_aside(work, error)
                if pause is None:
                    raise
            await self._rest(work, pause)

    async def arun_cell(self, work: WorkItem, cell: Cell) -> CellResult:
        """Run a cell on a worker, driven by a thread, while the running event loop goes on."""
        try:
            lane = await self._dispatcher.wait_async(work)
        except BaseException as error:
            self._fail(work, error)
            raise
        context = contextvars.copy_context()
        # Not a task: asyncio.run() cancels those that are left, and the thread would go on alone.
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
        """Run a cell; the thread that does is the one to give the lane back."""
        try:
            result = self._driver.run_cell(lane, work, cell)
        except BaseException as error:
            self._fail(work, error, "cancelled" if work.is_given_up else "")
            raise
        for problem in (result.error, result.value_error):
            describe_error(problem, work, self.config.name)
        outcome = "ok" if result.ok else "error"
        self._dispatcher.finish(work, "cancelled" if work.is_given_up else outcome, result.error)
        return result

    # -- work nobody waits for -----------------------------------------------------------------

    def submit(self, item: FutureItem) -> CallFuture[Any]:
        """Run a call on a worker, driven by the supervisor; return its future."""
        return self._futures.submit(item)

    # -- looking -------------------------------------------------------------------------------

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
        """Return what the pool looks like now."""
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
        """Return the numbers of the workers."""
        with self._dispatcher.lock:
            return sorted(self._supervisor.workers)

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the supervisor's thread, in which the callbacks of futures run."""
        return self._loop_thread.is_current

    @property
    def is_open(self) -> bool:
        """Whether the pool takes work."""
        return self._dispatcher.closed_because is None

    async def _publish_status(self) -> None:
        """Keep the file that `snakepit status` reads up to date, and memory in bounds."""
        while True:
            # A look at intervals: telling of each call would cost the call.
            await asyncio.sleep(STATUS_INTERVAL)
            if not self._folder.path.is_dir():
                self._published = None  # somebody has removed what was
            self._publish()
            stats = self.stats()
            if stats.queued or stats.running:
                send_activity()
            if self._reservation.workers != self._supervisor.size:
                await in_thread(self._reservation.update, self._supervisor.size)
            self._dispatcher.trim(TRIM_AFTER)
            if self.sessions.are_used:
                await in_thread(self._care_for_sessions)

    def _care_for_sessions(self) -> None:
        """Keep those alive that work, and delete what has expired."""
        try:
            self.sessions.keep_alive(self._dispatcher.working_sessions())
            self.sessions.sweep()
        except SnakepitError as error:  # they are used again, and swept again
            logger.warning("%s", error)

    def _publish(self) -> None:
        status = self.status()
        news = (status.stats, [(w.name, w.state, w.tainted) for w in status.workers])
        if news != self._published:
            self._published = news
            try:
                path = status_path(self._folder.present())
                check_file(path)  # a pipe in its place would be written to, and waited for
                write_file(path, json.dumps(status.as_json()))
            except OSError as error:  # a full disk; the pool works, and only does not show it
                logger.warning("snakepit status cannot show pool %s: %s", self.config.name, error)

    # -- ending --------------------------------------------------------------------------------

    def stop_accepting(self, *, cancel_queued: bool) -> None:
        """Take no more work; what is queued still runs, unless it is to be cancelled."""
        if os.getpid() != self.pid:
            return
        with self._dispatcher.lock:
            self._dispatcher.closed_because = self._dispatcher.closed_because or "it was shut down"
        if cancel_queued:
            self._dispatcher.empty_queue()

    def wait_until_quiet(self) -> None:
        """Return when nothing is queued or running."""
        if os.getpid() == self.pid:  # else what runs, runs for the parent of this forked child
            self._dispatcher.wait_until_quiet()

    def disown(self) -> None:
        """Take no work in a forked child, which has neither the thread nor the processes."""
        self._dispatcher.closed_because = (
            f"it belongs to process {self.pid}; a forked child cannot use it"
        )
        self._supervisor.is_draining = True

    def close(self, reason: str = "it was shut down", grace: float | None = None) -> None:
        """End everything now; return when it is verified gone. What runs is interrupted.

        A thread does it, which no Ctrl-C hits; whoever calls again waits for the same end.
        """
        if os.getpid() != self.pid:
            return  # a forked child has neither the thread nor the processes
        gate = threading.Lock()
        gate.acquire()
        self._waiting.append(gate)  # before the look whether it has ended: one of both is in time
        if self.is_own_thread:
            self.stop_accepting(cancel_queued=True)
        if not self._is_ending:
            self._begin_to_end(reason, self.config.grace if grace is None else grace)
        if self.is_own_thread:  # a future's callback closes the pool: it cannot wait for itself
            return
        if not self._has_ended:
            gate.acquire()
        if self._failure is not None:
            raise self._failure

    def _begin_to_end(self, reason: str, grace: float) -> None:
        end = partial(self._end, reason, grace)
        try:
            # Ctrl-C may come before anybody knows that it runs; then there are two, and one waits.
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
        """Do all of it, one after the other, also if a part fails; keep the first failure."""
        steps: tuple[Callable[[], object], ...] = (
            lambda: self._loop_thread.ask(self._supervisor.end(grace)).result(),
            # Who held a worker has noticed, unless its event loop stands.
            lambda: self._dispatcher.wait_until_quiet(FAREWELL),
            self._loop_thread.close,
            self.sessions.close,
            self._end_context,
            lambda: remove_folder(self._folder.path),
            self._reservation.release,
            partial(atexit.unregister, self.close),
        )
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - whoever waits for the end is told
                self._failure = self._failure or error

    def _end_context(self) -> None:
        """Close all ZeroMQ sockets and their context, and wait for that, but not for ever.

        ZeroMQ waits until each socket is closed. jupyter_client forgets one that it could not
        connect; and who holds a worker may be in the middle of something.
        """

        def destroy() -> None:
            for forgotten in list(self._managers_context._sockets):  # noqa: SLF001 - no other list
                with contextlib.suppress(RuntimeError):  # its event loop is closed
                    forgotten.close(linger=0)
            self._context.destroy(linger=0)

        ending = threading.Thread(target=destroy, name="snakepit-zmq-end", daemon=True)
        try:
            ending.start()
        except RuntimeError:  # there are as many threads as there may be
            if threading.main_thread().is_alive():  # else Python ends; 3.12.1 starts none then
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
