"""A worker in its owner's process: a kernel under jupyter_client, and the lanes to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import zmq
import zmq.asyncio
from jupyter_client.kernelspec import NoSuchKernel
from traitlets.config import Config

from ... import telemetry
from ..._version import __version__
from ...errors import (
    StartFailed,
    SurvivorsError,
    ToolError,
    WorkerDied,
    describe_exit,
    suggest,
)
from ...lane.control_page import RECALL_SIGNAL, ControlPage, ControlWords
from ...lane.exchange import Exchange
from ...lane.marshalling import Marshaller
from ...lane.owner_end import LaneClosed, OwnerLane
from ...loggers import get_logger
from ...printable import printable
from ...processes import logs
from ...processes.os_limits import Cgroup
from ...processes.run_folders import remake_folder
from ...protocol import messages
from ...protocol.frames import Frame, pack
from ...protocol.messages import (
    Assign,
    Configure,
    Configured,
    Event,
    Forget,
    Hello,
    Late,
    ToolInfo,
    WorkerSetup,
)
from ...provisioner import SnakepitProvisioner
from ...telemetry.spans import Scalar
from ..scheduling.scheduler import Purpose
from .jupyter import CellClient, KernelSpecs, WorkerManager
from .lifecycle import RESTART_WINDOW, WorkerEvent, WorkerState, next_state
from .output import WorkerOutput

if TYPE_CHECKING:
    from ...processes.guarded_process import GuardedProcess
    from ..config import PoolConfig

logger = get_logger(__name__)

DEATH_PATIENCE = 2.0
"""Seconds to wait for the exit status of a worker whose lane closed."""


class Holder(Protocol):
    """What a lane is assigned to."""

    name: str
    finished: bool

    def caller_of(self, call_id: int) -> object:
        """Return the caller's span of one of its calls at the worker, for `telemetry.emit`."""


class PooledLane(OwnerLane):
    """A lane that a pool assigns to one work item at a time.

    Parameters
    ----------
    worker
        The worker at its other end.
    sock, control, marshaller
        As for `OwnerLane`.
    purposes
        Kinds of work that it can carry.

    Attributes
    ----------
    holder
        The work item that it is assigned to, if any.
    is_stuck
        Whether its work ignores interrupts, and ends with the worker.
    defined
        The functions of the notebook that were sent on it, by name, with their version.
    encoders
        Number of encoders that were sent on it.
    search_path_version
        Version of the owner's search path that was sent on it last, see `SearchPath`.
    released
        Numbers of shared functions that were sent on it and that no call needs any more.
    forgets
        `Forget` messages, for sessions that begin again; they are sent before each request until
        such a request has been answered.
    forgotten
        Number of the last of these that was sent.
    """

    # With more than 30 attributes in its dictionary, each access to any of them is slower.
    __slots__ = (
        "defined",
        "encoders",
        "forgets",
        "forgotten",
        "holder",
        "is_stuck",
        "purposes",
        "released",
        "search_path_version",
        "worker",
    )

    def __init__(
        self,
        worker: Worker,
        sock: socket.socket,
        control: ControlWords,
        marshaller: Marshaller,
        purposes: frozenset[Purpose],
    ) -> None:
        super().__init__(sock, control, marshaller)
        self.worker = worker
        self.purposes = purposes
        self.holder: Holder | None = None
        self.is_stuck = False
        self.defined: dict[str, int] = {}
        self.encoders = 0
        self.search_path_version = 0
        self.released: deque[int] = deque()
        self.forgets: deque[Forget] = deque()
        self.forgotten = 0
        self.on_event = self._report_event
        self.on_quitting = worker.note_quitting

    def origin(self, session: str | None, correlation: str) -> dict[str, Scalar]:
        """Return the attributes that say where an event comes from."""
        attributes: dict[str, Scalar] = {
            "pool": self.worker.pool,
            "worker": self.worker.name,
            "correlation_id": correlation,
        }
        if session is not None:
            attributes["session"] = session
        return attributes

    def _report_event(self, event: Event) -> None:
        """Emit an event that code in the worker has emitted."""
        if telemetry.is_on():
            telemetry.note_dropped(event.dropped)
            attributes = event.attributes | self.origin(event.session, event.correlation)
            caller = None if self.holder is None else self.holder.caller_of(event.call)
            telemetry.emit(event.name, attributes, caller=caller, at=event.at)

    @property
    def load(self) -> int:
        """How many lanes of its worker are assigned."""
        return len(self.worker.current)

    @property
    def neighbours(self) -> Sequence[PooledLane]:
        """The lanes of its worker, itself included."""
        return self.worker.lanes

    def interrupt(self, call_id: int = 0) -> None:
        """Interrupt a call that runs and has not acknowledged an interrupt, from any thread.

        A cell is interrupted by any id; 0 stands for any running call.
        """
        if self.fileno() < 0:
            return
        if not call_id or self.control.acknowledged_call != call_id:
            self.control.interrupted_call = call_id
            self.worker.interrupt(call_id)

    def recall(self) -> None:
        """Ask the worker to return the calls that were sent so far and have not begun."""
        if self.fileno() >= 0:
            self.control.recalled_call = self.last_call_id
            self.worker.signal(RECALL_SIGNAL)


class Worker:
    """One incarnation of a slot: one kernel, from its start to its verified end.

    Parameters
    ----------
    config
        The pool's options.
    slot
        Number of the slot, from 1.
    incarnation
        Number of the process in that slot, from 1.
    folder
        Private directory for its sockets, connection file and log.
    context
        ZeroMQ context for the Jupyter channels.
    specs
        Finds the kernelspec.
    """

    def __init__(
        self,
        config: PoolConfig,
        slot: int,
        incarnation: int,
        *,
        folder: Path,
        context: zmq.asyncio.Context,
        specs: KernelSpecs,
    ) -> None:
        self.name = f"{config.name}-{slot}.{incarnation}"
        self.pool = config.name
        self.slot = slot
        self.incarnation = incarnation
        self.state = WorkerState.RESERVED
        self.calls = 0
        self.current: list[str] = []  # names of its work items, one for each assigned lane
        self.since = time.monotonic()
        self._served: set[str] = set()  # sessions that have state in its main thread
        self._forgets = itertools.count(1)
        self.cells: CellClient | None = None
        self.configured: Configured | None = None
        self.died = asyncio.Event()
        self.replacement_reason = ""  # why its replacement was requested
        self.keep_while_home = False  # no replacement while a session is bound to it
        self.tainted = ""  # what left it unusable
        self.end_reason = ""  # why its pool has ended it
        self.on_quitting: Callable[[Worker], None] | None = None
        self.done = 0  # work items that it has finished
        self.ready_at = self.since
        self.retirement: asyncio.TimerHandle | None = None
        self.process: GuardedProcess | None = None
        self.config = config
        base = folder / f"{slot}.{incarnation}"
        self.output = WorkerOutput(base.with_name(f"{base.name}.log"), self._show_late)
        self._page = ControlPage.create(len(config.lanes))
        self._worker_ends: list[socket.socket] = []
        self.lanes = [
            self._make_lane(number, purposes) for number, purposes in enumerate(config.lanes)
        ]
        self.main_lane = self.lanes[0]
        self._worker_ends.append(self.output.worker_end)
        self._exit_fd: int | None = None
        self._group = None if config.group is None else Cgroup(config.group)
        self._ran_out_of_memory = False
        # If the owner is dead, the first guardian to end removes all files of the run.
        provisioner_options = {
            "grace": config.grace,
            "label": self.name,
            "leftovers": [str(folder.parent), *([str(self._group.path)] if self._group else [])],
            "preload": list(config.preload),
            "import_path": config.kernel.import_path(),
            "await_ready": False,  # the lane reports when it is ready
        }
        self.manager = WorkerManager(
            kernel_name=config.kernel.name,
            connection_file=str(base.with_name(f"{base.name}.json")),
            context=context,
            kernel_spec_manager=specs,
            config=Config({"SnakepitProvisioner": provisioner_options}),
            **self._transport(base),
        )

    def _transport(self, base: Path) -> dict[str, Any]:
        """Return the transport options of its Jupyter channels."""
        return {"transport": "ipc", "ip": str(base)}

    def _make_lane(self, number: int, purposes: frozenset[Purpose]) -> PooledLane:
        ours, worker_end = socket.socketpair()
        self._worker_ends.append(worker_end)
        marshaller = self._page.marshaller(number, is_owner=True)
        marshaller.codec = self.config.codec
        return PooledLane(self, ours, self._page.control(number), marshaller, purposes)

    # -- state ---------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether one of its lanes is assigned."""
        return any(lane.holder is not None for lane in self.lanes)

    @property
    def is_waited_for(self) -> bool:
        """Whether one of its lanes is assigned to work that may still end by itself."""
        return any(lane.holder is not None and not lane.is_stuck for lane in self.lanes)

    def serve(self, session: str, lane: PooledLane) -> None:
        """Record that a session has work on a lane. Called with the pool's lock held."""
        if lane is self.main_lane:
            self._served.add(session)

    def forget(self, session: str) -> None:
        """Reset a session before the next request. Called with the pool's lock held."""
        if session in self._served:
            self._served.remove(session)
            self.main_lane.forgets.append(Forget(session, next(self._forgets)))

    def note_quitting(self) -> None:
        """Report to the pool that the worker's own code has asked it to exit."""
        if self.on_quitting is not None:
            self.on_quitting(self)

    def apply(self, event: WorkerEvent) -> None:
        """Change to the state that follows an event."""
        before = self.shown_state
        self.state = next_state(self.state, event)
        if self.shown_state != before:
            self.since = time.monotonic()

    @property
    def shown_state(self) -> str:
        """Its state as users see it."""
        return self.state.shown(is_held=bool(self.current))

    @property
    def has_died(self) -> bool:
        """Whether its process has ended, even if the event loop has not noticed yet."""
        if self.died.is_set() or self._exit_fd is None:
            return self.died.is_set()
        poller = select.poll()
        poller.register(self._exit_fd, select.POLLIN)
        return bool(poller.poll(0))

    @property
    def is_proven(self) -> bool:
        """Whether it counts as a success: it has finished a work item, or lived for a while."""
        return self.done > 0 or time.monotonic() - self.ready_at >= RESTART_WINDOW

    @property
    def pulse(self) -> int:
        """Heartbeat counter, which advances while Python runs there; 0 without a heartbeat."""
        return 0 if self.main_lane.fileno() < 0 else self.main_lane.control.pulse

    @property
    def tools(self) -> dict[str, ToolInfo]:
        """The tools that it offers, by name."""
        return {} if self.configured is None else {t.name: t for t in self.configured.tools}

    @property
    def pid(self) -> int | None:
        """The worker's process id."""
        return self.process.identity.pid if self.process and self.process.identity else None

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process or its guardian."""
        return self.process is not None and self.process.is_stopped

    @property
    def has_lost_its_main_thread(self) -> bool:
        """Whether its main thread, which does all the work, has ended while others live."""
        identity = self.process.identity if self.process is not None else None
        return identity is not None and identity.has_lost_its_main_thread()

    def missing_socket(self) -> str:
        """Return the path of a missing socket of its channels; empty if none is missing."""
        connection = self.manager.get_connection_info()
        if connection["transport"] != "ipc":
            return ""
        ports = (connection["shell_port"], connection["iopub_port"])
        paths = [f"{connection['ip']}-{port}" for port in ports]
        return next((path for path in paths if not os.path.exists(path)), "")  # noqa: PTH110

    @property
    def device(self) -> str | None:
        """Label of the accelerators assigned to it alone; None when there are none."""
        return self.config.accelerators.label(self.slot)

    @property
    def run_id(self) -> str:
        """Id of the worker's run; empty before its process has started."""
        return self.process.run_id if self.process else ""

    # -- starting ------------------------------------------------------------------------------

    async def start(self, setup: WorkerSetup) -> None:
        """Start the kernel, and wait until it has loaded the pool's tools and replied.

        Raises
        ------
        StartFailed
            With the cause and the worker's last output. Nothing is left running.
        """
        self.apply(WorkerEvent.SPAWN)
        try:
            async with asyncio.timeout(self.config.start_timeout):
                self.configured = await self._begin(setup)
        except StartFailed:
            await self.end(0.0)
            raise
        except TimeoutError:
            cause = f"it was not ready within {self.config.start_timeout:g} s (start_timeout)"
            failure = StartFailed(self._title, cause, self.last_output())
            await self.end(0.0)
            raise failure from None
        except OSError as error:
            failure = StartFailed(self._title, self._explain(error), self.last_output())
            await self.end(0.0)
            raise failure from error
        except BaseException:
            await self.end(0.0)
            raise

    @property
    def _title(self) -> str:
        return f"worker {self.name}"

    async def _begin(self, setup: WorkerSetup) -> Configured:
        lane = self.main_lane
        lane.on_hello = self._check_hello
        exchange = Exchange(lane.new_call_id(), "configuring the worker")
        codec = replace(
            self.config.codec, resolves_annotations=True
        )  # annotations of an adapter's tools
        lane.put(lane.marshaller.pack(Configure(exchange.call_id), *codec.dumps(setup)))
        if self._group is None:  # sent before the launch: the worker reads it when it is up
            lane.send_ready()
        *lanes, late = [worker_end.fileno() for worker_end in self._worker_ends]
        page = self._page.descriptor
        self.output.begin()
        try:
            await self._launch(
                extra_arguments=[f"--lane={','.join(map(str, lanes))}:{page}:{late}"],
                pass_fds=(*lanes, page, late),
            )
        finally:
            self._close_worker_ends()
        return await self._configure(exchange)

    def _show_late(self, message: Late, frame: Frame) -> None:
        try:
            if not message.cell:
                self.lanes[message.lane].show_late(message, frame)
            elif self.cells is not None:
                self.cells.show_late(message, frame)
        except Exception:  # of a callback of the user's
            logger.warning("what %s showed late cannot be shown", self.name, exc_info=True)

    async def _launch(self, **arguments: Any) -> None:
        kernel = self.config.kernel
        if kernel.problem:
            raise StartFailed(self._title, kernel.problem)
        try:
            if self.manager.kernel_spec is None:
                raise NoSuchKernel(kernel.name)
            if self._group is not None:
                limits = self.config.limits
                self._group.make(memory_bytes=limits.memory_bytes, cpus=limits.cpus)
            remake_folder(self.output.log_path.parent)
            with logs.open_log(self.output.log_path) as log:
                await self.manager.launch(
                    env=self.config.worker_environment(self.slot),
                    cwd=str(self.config.cwd),
                    stdout=log,
                    stderr=log,
                    **arguments,
                )
        except NoSuchKernel as error:
            known = self.manager.kernel_spec_manager.find_kernel_specs()
            cause = f"there is no kernelspec {error.name!r}{suggest(error.name, known)}"
            raise StartFailed(self._title, cause) from None
        except (OSError, zmq.ZMQError) as error:
            raise StartFailed(self._title, self._explain(error)) from error
        assert isinstance(self.manager.provisioner, SnakepitProvisioner)
        self.process = self.manager.provisioner.guarded
        self._watch()
        if self._group is not None and self.pid is not None:
            with contextlib.suppress(
                ProcessLookupError
            ):  # it has ended, which is reported elsewhere
                self._group.add(self.pid)

    def _explain(self, error: OSError | zmq.ZMQError) -> str:
        """Describe an error of the operating system, with the place of the files."""
        if getattr(error, "filename", None):
            return str(error)
        return f"{error}; its files are in {self.output.log_path.parent}"

    def _watch(self) -> None:
        """Set `died` the moment the process ends."""
        assert self.process is not None
        loop = asyncio.get_running_loop()
        try:
            descriptor = self.process.exit_descriptor()
        except ProcessLookupError:
            self.died.set()
            return
        self._exit_fd = descriptor

        def on_exit() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._exit_fd = None
            self.died.set()

        loop.add_reader(descriptor, on_exit)

    def _check_hello(self, hello: Hello) -> None:
        """Check the worker's versions of snakepit_kernel and of Python.

        Raises
        ------
        StartFailed
            It runs another version of this package, or of Python than was expected.
        """
        if hello.version != __version__:
            cause = (
                f"it has snakepit-kernel {hello.version}, and this process {__version__}; install "
                "the same version in its environment"
            )
            raise StartFailed(self._title, cause)
        expected = ".".join(map(str, self.config.kernel.python))
        if hello.python != expected:
            cause = (
                f"it runs Python {hello.python}, and was taken for Python {expected}; let the "
                "kernelspec name its interpreter as the first word of argv"
            )
            raise StartFailed(self._title, cause)

    async def _configure(self, exchange: Exchange) -> Configured:
        try:
            await self._await_reply(exchange)
            configured: Configured = exchange.outcome()
        except LaneClosed:
            await self._wait_for_status()
            status = self.process.status if self.process else None
            cause = f"it {describe_exit(status)} before it was ready"
            raise StartFailed(self._title, cause, self.last_output()) from None
        except ToolError as error:
            cause = f"adapter {self.config.adapter!r} cannot be used: {error}"
            raise StartFailed(self._title, cause, self.last_output()) from error.__cause__
        for module, problem in configured.failed_preloads.items():
            text = printable(problem, lines=True)
            logger.warning("%s could not preload %s: %s", self.name, module, text)
        return configured

    async def _await_reply(self, exchange: Exchange) -> None:
        lane = self.main_lane
        lane.begin(exchange)
        try:
            while not exchange.is_answered:
                await lane.converse(exchange)
        finally:
            lane.end(exchange)

    def _close_worker_ends(self) -> None:
        for worker_end in self._worker_ends:
            worker_end.close()

    def take_slot(self, slot: int, incarnation: int) -> None:
        """Become the worker of a slot, and notify the process."""
        self._rename(slot, incarnation)
        lane = self.main_lane
        lane.put(pack(messages.encode(Assign(self.name))))
        with contextlib.suppress(LaneClosed):  # it has just died, which its watcher handles
            lane.send_ready()

    def _rename(self, slot: int, incarnation: int) -> None:
        self.slot = slot
        self.incarnation = incarnation
        self.name = f"{self.config.name}-{slot}.{incarnation}"

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> None:
        """End the worker and all that it started; return when that is verified.

        Its calls are interrupted, and its lanes are closed: the worker sees that and exits by
        itself, with its exit hooks. What is left after ``grace`` seconds is killed. A process that
        survives even that is named in a warning.
        """
        self.apply(WorkerEvent.STOP)
        if self.retirement is not None:
            self.retirement.cancel()
        self._close_worker_ends()
        self._interrupt_and_close()
        try:
            await self._end_run(grace)
        except OSError as error:  # no descriptors, for example; its guardian still ends it
            logger.warning("%s was told to end, and nobody can see whether: %s", self.name, error)
        if self._group is not None:
            self._ran_out_of_memory = self._group.ran_out_of_memory
            with contextlib.suppress(OSError):  # whoever finds the run next removes it
                self._group.remove()
        if self._exit_fd is not None:
            asyncio.get_running_loop().remove_reader(self._exit_fd)
            os.close(self._exit_fd)
            self._exit_fd = None
        self.died.set()
        self.apply(WorkerEvent.EXIT)
        if not self.is_held:  # else they are closed when its lanes are released
            self.close_channels()
        self.output.close()

    async def _end_run(self, grace: float) -> None:
        await self.manager.settled()
        provisioner = self.manager.provisioner
        if not isinstance(provisioner, SnakepitProvisioner):
            return
        if self.process is not None and grace > 0:
            await self._request_exit()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.died.wait(), grace)
        # Not manager.shutdown_kernel(): it interrupts, and polls every 100 ms.
        await provisioner.end_run(grace if self.died.is_set() else 0.0)
        if (report := provisioner.last_report) is not None and report.survivors:
            logger.warning("%s: %s", self.name, SurvivorsError(self.run_id, report.survivors))
        await self.manager.cleanup_resources()

    def _interrupt_and_close(self) -> None:
        """Interrupt its calls, and close the lanes."""
        for lane in self.lanes:
            if lane.holder is not None:
                lane.recall()
                lane.interrupt()
            lane.hang_up()

    async def _request_exit(self) -> None:
        """Ask the kernel to exit; for ours, the closed lanes are that request."""

    def close_channels(self) -> None:
        """Close the lanes and the Jupyter channels. Only while no lane is assigned."""
        for lane in self.lanes:
            lane.close()
        self._page.close()
        if self.cells is not None:
            self.cells.close()
            self.cells = None

    def terminate(self) -> None:
        """End the worker at once, from any thread; its pool notices and refills the slot."""
        if self.process is not None:
            self.process.request_end(0.0)

    async def _wait_for_status(self) -> None:
        if self.process is not None:
            await self.process.wait(DEATH_PATIENCE)

    # -- interrupting --------------------------------------------------------------------------

    def interrupt(self, call_id: int) -> None:  # noqa: ARG002 - the control page names the call
        """Interrupt its running call or cell, from any thread."""
        self.signal(signal.SIGINT)

    def signal(self, signum: int) -> None:
        """Send a signal to its process, if it lives, from any thread."""
        if self.process is not None:
            self.process.send_signal(signum)

    def stacks(self) -> str:
        """Return the stacks of its threads, also while no Python code runs; takes milliseconds."""
        if self.process is None or self.died.is_set():
            return ""
        return self._page.read_stacks(self.signal)

    # -- looking -------------------------------------------------------------------------------

    def last_output(self) -> str:
        """Return the last output that the worker wrote to its real stdout and stderr."""
        return self.output.last(has_ended=self.died.is_set())

    def death(self) -> WorkerDied:
        """Describe how the worker died, after its lane closed, from a thread without a loop."""
        if self.process is not None:
            end = time.monotonic() + DEATH_PATIENCE
            while self.process.poll() is None and time.monotonic() < end:
                # The guardian reports the exit status a moment after the lane has closed.
                time.sleep(0.005)
        return self._describe_death()

    async def adeath(self) -> WorkerDied:
        """Describe how the worker died, after its lane closed, from an event loop."""
        await self._wait_for_status()
        return self._describe_death()

    def _describe_death(self) -> WorkerDied:
        status = self.process.status if self.process is not None else None
        return WorkerDied(self.name, status, self.last_output(), self._why_ended(status))

    def _why_ended(self, status: int | None) -> str:
        """Return why its pool or one of its limits ended it; empty when neither did."""
        if self._group is not None:
            self._ran_out_of_memory = self._ran_out_of_memory or self._group.ran_out_of_memory
        return self.end_reason or self.config.limits.why_ended(
            status, ran_out_of_memory=self._ran_out_of_memory
        )

    def describe_end(self) -> str:
        """Describe in one line how it ended. Only after its end."""
        status = self.process.status if self.process is not None else None
        reason = self._why_ended(status)
        return f"{reason} and {describe_exit(status)}" if reason else describe_exit(status)
