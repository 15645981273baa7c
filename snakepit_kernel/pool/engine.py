"""The engine of a pool: owns its workers, its queue and its threads, from its start to its end.

Three kinds of threads use it: threads of callers, which drive the lanes assigned to their calls;
the supervisor's event loop thread, which starts and ends processes and drives the lanes of futures;
and event loops of asynchronous callers. Shared state is in `Dispatcher`; a lane is used only by its
holder.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import zmq
import zmq.asyncio

from ..errors import PoolClosed, StartFailed
from ..locks import Lock, RLock
from ..loggers import get_logger
from ..processes.concurrency import LoopThread
from ..processes.guarded_process import TOO_MANY_PROCESSES
from ..processes.run_folders import Folder, remove_folder, sweep_folders
from .accounting import Accounting
from .command_server import CommandServer, PoolCommands
from .config import PoolConfig
from .dispatcher import Dispatcher
from .execution.calls import CallRunner
from .execution.futures import FutureRunner
from .execution.host_tools import HostTools, HostToolServer
from .execution.lane_waiter import LaneWaiter
from .execution.page_messages import PageMessages
from .execution.work_runner import WorkRunner
from .housekeeping import Housekeeping
from .open_sessions import PoolSessions
from .resources.machine_budget import MachineReservation
from .scheduling.scheduler import Scheduler
from .status import PoolStatus
from .work_item import current_host_call
from .workers.background import BackgroundTasks
from .workers.factory import WorkerFactory
from .workers.monitor import WorkerMonitor
from .workers.replacement import RollingReplacement
from .workers.standby import StandbyWorkers
from .workers.supervisor import WorkerSupervisor
from .workers.worker import PooledLane
from .workers.zmq_threads import start_threads

if TYPE_CHECKING:
    from ..environments.cache import Lease

logger = get_logger(__name__)

CONTEXT_PATIENCE = 5.0
"""Seconds that the sockets of a pool may take to close."""

RELEASE_PATIENCE = 0.5
"""Seconds that callers may take to release their lanes after the pool's workers have ended."""


class Engine:
    """The parts of one pool, which it makes, changes and ends.

    Parameters
    ----------
    config
        The pool's options.

    Attributes
    ----------
    accounting
        Counts the work, and tells whether more is accepted.
    dispatcher
        Queues work and assigns lanes.
    supervisor
        Starts and ends workers.
    work
        Runs calls, streams and cells.
    page_messages
        Delivers messages of the page to comms of workers.
    futures
        Runs submitted futures.
    housekeeping
        Reports the state of the pool.
    sessions, host_tools
        The sessions that the pool has opened, and the functions that its workers may call here.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.pid = os.getpid()
        self.sessions = PoolSessions(config, self.forget_session)
        self.host_tools = HostTools(self.sessions.host_tools_of)
        self._closing = Lock()
        self._restarting = Lock()
        self._is_ending = self._has_ended = False
        self._failure: Exception | None = None
        self._waiting: list[threading.Lock] = []  # a gate for each thread that waits in `close`
        self._set_up(config)
        _engines.add(self)

    def _set_up(self, config: PoolConfig, closed_because: str | None = None) -> None:
        """Make everything that ends with the workers: folder, reservation, threads and parts."""
        self._lease: Lease | None = None
        if config.requirements is not None:
            from ..environments.environment import acquire

            self._lease = acquire(config.requirements)
            config = config.in_environment(self._lease.environment)
        self._reservation = MachineReservation(config.name, config.bytes_each)
        if config.is_auto_sized:
            left = self._reservation.reserve_remaining(config.workers).workers
            config = replace(config, workers=left)
        self.config = config
        sweep_folders()
        self._folder = Folder(config.name)
        loop_thread = None
        try:
            loop_thread = self._loop_thread = LoopThread(f"snakepit-{config.name}")
            self._build(closed_because)
            atexit.register(self.close)
        except BaseException as error:  # no threads, no memory, Ctrl-C
            if loop_thread is not None:
                loop_thread.close()
            remove_folder(self._folder.path)
            self._reservation.release()
            self._release_environment()
            if isinstance(error, RuntimeError):
                raise StartFailed(
                    f"pool {config.name}", f"{error}; {TOO_MANY_PROCESSES}"
                ) from error
            raise

    def _build(self, closed_because: str | None) -> None:
        """Make the parts, each of those before it.

        What a part has to tell those above it goes by hooks: `WorkerSupervisor.on_available` and
        `WorkerFactory.on_quitting` and ``on_page_message``.
        """
        config = self.config
        self._context: zmq.Context[Any] = zmq.Context()
        start_threads(self._context)
        self._managers_context = zmq.asyncio.Context(self._context)
        self._loop_thread.start()

        lock = RLock()
        scheduler: Scheduler[PooledLane] = Scheduler(config.max_queue, config.max_futures)
        self._tasks = BackgroundTasks(self._loop_thread)
        self._factory = WorkerFactory(config, self._folder, self._managers_context)
        self._standby = StandbyWorkers(config.standby, self._factory)
        self.supervisor = WorkerSupervisor(
            self._factory, self._standby, self._tasks, lock=lock, scheduler=scheduler
        )
        self._replacement = RollingReplacement(
            self.supervisor,
            self._factory,
            self._standby,
            self._tasks,
            loop_thread=self._loop_thread,
            lock=lock,
            scheduler=scheduler,
        )

        accounting = Accounting(config, lock, scheduler)
        accounting.closed_because = closed_because
        self.accounting = accounting
        self.dispatcher = Dispatcher(
            config,
            self.supervisor,
            self._replacement,
            accounting=self.accounting,
            scheduler=scheduler,
        )

        host = HostToolServer(self.host_tools, self.sessions.find)
        calls = CallRunner(
            config.grace, self._context, host, self.supervisor, self.dispatcher.refusals
        )
        self._waiter = LaneWaiter(config, self.dispatcher, self._loop_thread)
        self.work = WorkRunner(config, self.dispatcher, self._waiter, self._loop_thread, calls)
        self.page_messages = PageMessages(self.work)
        self._factory.on_page_message = self.page_messages.deliver
        self.futures = FutureRunner(
            self.dispatcher,
            self._loop_thread,
            host,
            pool=config.name,
            grace=config.grace,
        )
        self.housekeeping = Housekeeping(
            self.accounting,
            self._factory,
            self.supervisor,
            self._replacement,
            sessions=self.sessions,
            folder=self._folder,
            reservation=self._reservation,
        )
        commands = PoolCommands(
            config.name,
            self.supervisor,
            self._replacement,
            publish=self.housekeeping.publish,
            stop=self._stop_by_hand,
        )
        self._command_server = CommandServer(self._folder, commands.obey)

    # -- looking -------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether the pool has not been shut down."""
        return self.housekeeping.is_open

    @property
    def is_restarting(self) -> bool:
        """Whether the pool is closed only until its new workers are ready."""
        return self._restarting.locked()

    def status(self) -> PoolStatus:
        """Return the current status of the pool and its workers, also after a restart."""
        return self.housekeeping.status()

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
        await self.supervisor.start()
        WorkerMonitor(
            self.config, self.supervisor, self._replacement, self._standby, self._tasks
        ).begin()
        self._loop_thread.spawn(self._command_server.run())
        await self._command_server.has_begun.wait()
        self.housekeeping.publish()
        self._loop_thread.spawn(self.housekeeping.run())

    def restart(self) -> None:
        """End all workers, verified, and start as many new ones; return when all are ready.

        Tools, host tools and open sessions stay; what depends on a worker that has ended is made
        anew. What still refers to the parts of the ended run finds them closed.

        Raises
        ------
        RuntimeError
            The callback of a future, or a host tool, calls it: the pool would wait for its caller.
        PoolClosed
            The pool belongs to another process, or another thread has closed it meanwhile.
        StartFailed
            A worker could not start. The pool is closed then, and nothing of it is running.
        """
        if os.getpid() != self.pid:
            raise PoolClosed(self.config.name, self.accounting.closed_because or "")
        if self.is_awaited:
            msg = "the pool waits for the code that would restart it; use another thread"
            raise RuntimeError(msg)
        with self._restarting:
            opened, ended = self.sessions.opened(), self.dispatcher
            config = replace(
                self.config, workers=len(self.supervisor.slots), is_auto_sized=False
            )  # as `resize` and `reload` have left it
            try:
                self.close("it was restarted")
                self._set_up(config, closed_because="it is being restarted")
                self.sessions.keep(opened)
                self.dispatcher.take_over_homes(ended)
                self._failure = None
                self._is_ending = self._has_ended = False
                self.open()
            except concurrent.futures.CancelledError:  # another thread has closed it meanwhile
                self.accounting.closed_because = "it was shut down"
                raise PoolClosed(self.config.name) from None
            except BaseException:
                self.accounting.closed_because = "it could not be started again"
                raise
            with self.dispatcher.lock:
                if not self.supervisor.is_closing:  # else another thread has closed it meanwhile
                    self.accounting.closed_because = None

    def resize(self, count: int) -> None:
        """Change the number of workers; return when the change is complete."""
        self._change(self._replacement.resize(count))

    def reload(self, adapter: object) -> None:
        """Replace all workers, with another adapter if one is given."""
        if adapter is not None:
            self.config.kernel.require_lane("an adapter")
        self._change(self._reload(adapter))

    async def _reload(self, adapter: object) -> None:
        config = replace(self.config, adapter=self.config.adapter if adapter is None else adapter)
        try:
            await self._replacement.reload(config)
        finally:
            self.config = self._factory.config

    def recycle(self, slot: int | None) -> None:
        """Replace the worker of a slot; None for all workers."""
        slots = self.housekeeping.slots()
        if slot is not None:
            slots = [self.supervisor.worker_in(slot).slot]
        self._change(self._replacement.recycle(slots))

    def _change(self, change: Coroutine[Any, Any, None]) -> None:
        """Apply a change of the workers, and wait for it."""
        try:
            if self.supervisor.is_closing:
                raise PoolClosed(self.config.name, self.accounting.closed_because or "it has ended")
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
        await self._replacement.in_turn(change)
        self.housekeeping.publish()

    def drain(self, timeout: float | None) -> bool:
        """Accept no new work until `resume`; return whether all accepted work ended in time."""
        if self.is_awaited:
            msg = "the pool waits for the code that would wait for it to drain; use another thread"
            raise RuntimeError(msg)
        return self.accounting.drain(timeout)

    def check_open(self) -> None:
        """Raise an error unless the pool accepts work.

        Raises
        ------
        PoolClosed
            The pool accepts no more work.
        """
        accounting = self.accounting
        if accounting.closed_because is not None or accounting.is_draining:
            self.dispatcher.refusals.check_open(current_host_call())

    @property
    def is_awaited(self) -> bool:
        """Whether this pool waits for the calling code: in its own thread, or in a host tool."""
        return self.is_own_thread or self.dispatcher.refusals.waits_for(current_host_call())

    # -- sessions ------------------------------------------------------------------------------

    def forget_session(self, session_id: str) -> None:
        """Remove a session's state from this pool, and from each worker before its next request.

        That is its home, its host tools, and in each worker its namespace, working directory and
        environment. Running work of the session goes on without them.
        """
        self.host_tools.forget(session_id)
        self.dispatcher.forget_session(session_id)

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the pool's own thread; nothing if the pool has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop_thread.soon(function, *arguments)

    @property
    def is_own_thread(self) -> bool:
        """Whether the current thread is the supervisor's, in which callbacks of futures run."""
        return self._loop_thread.is_current

    # -- shutdown ------------------------------------------------------------------------------

    def stop_accepting(self, *, cancel_queued: bool) -> None:
        """Accept no more work; queued work still runs unless `cancel_queued` is set."""
        if os.getpid() != self.pid:
            return
        with self.dispatcher.lock:
            self.accounting.closed_because = self.accounting.closed_because or "it was shut down"
        if cancel_queued:
            self.dispatcher.empty_queue()
            self._waiter.end_backoffs()

    def wait_until_quiet(self) -> None:
        """Wait until nothing is queued or running."""
        if os.getpid() == self.pid:  # in a forked child, the running work is the parent's
            self.accounting.wait_until_quiet()

    def disown(self) -> None:
        """Accept no work in a forked child, which has neither the thread nor the processes."""
        self.accounting.closed_because = (
            f"it belongs to process {self.pid}; a forked child cannot use it"
        )
        self.supervisor.is_closing = True

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

    def _stop_by_hand(self) -> None:
        """Begin the pool's end at the command of another process; called in the loop thread."""
        with self.dispatcher.lock:
            self.accounting.closed_because = (
                self.accounting.closed_because or "it was stopped by hand"
            )
        self.close()

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
            with self.dispatcher.lock:
                self.accounting.closed_because = self.accounting.closed_because or reason
                self.supervisor.is_closing = True
            self.stop_accepting(cancel_queued=True)
            try:
                self._take_down(grace)
            finally:
                self._has_ended = True
                while self._waiting:
                    self._waiting.pop().release()

    def _take_down(self, grace: float) -> None:
        """Do all steps in order, even if one fails; keep the first failure for `close`."""
        steps: tuple[Callable[[], object], ...] = (
            self.sessions.close_shells,
            lambda: self._loop_thread.ask(self.supervisor.end(grace)).result(),
            # Callers of the workers notice the end, unless their event loops are blocked.
            lambda: self.accounting.wait_until_quiet(RELEASE_PATIENCE),
            self._loop_thread.close,
            self.futures.close,
            self.sessions.close,
            self._end_context,
            lambda: remove_folder(self._folder.path),
            self._reservation.release,
            self._release_environment,
            partial(atexit.unregister, self.close),
        )
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - raised in the threads that wait in `close`
                self._failure = self._failure or error

    def _release_environment(self) -> None:
        if self._lease is not None:
            self._lease.release()

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
