"""A worker in its owner's process: a kernel under jupyter_client, and the lanes to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import zmq.asyncio

from ...errors import StartFailed, SurvivorsError, WorkerDied
from ...lane.control_page import ControlPage
from ...lane.owner_end import LaneClosed
from ...loggers import get_logger
from ...protocol import messages
from ...protocol.frames import Frame, pack
from ...protocol.messages import (
    COMM_TARGET,
    Assign,
    Configured,
    Forget,
    Late,
    ToolInfo,
    WorkerSetup,
    shown,
)
from ...protocol.sources import with_cell_names
from ..scheduling.scheduler import Purpose
from ..status import RunningCall
from .assigned_lane import AssignedLane
from .comms import WorkerComms
from .handshake import Handshake
from .jupyter import CellClient, KernelSpecs
from .lifecycle import RESTART_WINDOW, WorkerEvent, WorkerState, next_state
from .output import WorkerOutput
from .process import WorkerProcess

if TYPE_CHECKING:
    from ..config import PoolConfig

logger = get_logger(__name__)


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
        self.replacement_reason = ""  # why its replacement was requested
        self.keep_while_home = False  # no replacement while a session is bound to it
        self.tainted = ""  # what left it unusable
        self.on_quitting: Callable[[Worker], None] | None = None
        self.comms = WorkerComms(self)
        self.done = 0  # work items that it has finished
        self.ready_at = self.since
        self.retirement: asyncio.TimerHandle | None = None
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
        self.process = WorkerProcess(
            config, self.name, base, self.output, context=context, specs=specs
        )

    def _make_lane(self, number: int, purposes: frozenset[Purpose]) -> PooledLane:
        ours, worker_end = socket.socketpair()
        self._worker_ends.append(worker_end)
        marshaller = self._page.marshaller(number, is_owner=True)
        marshaller.codec = self.config.codec
        return AssignedLane(self, ours, self._page.control(number), marshaller, purposes)

    # -- state ---------------------------------------------------------------------------------

    @property
    def is_held(self) -> bool:
        """Whether one of its lanes is assigned."""
        return any(lane.holder is not None for lane in self.lanes)

    @property
    def is_waited_for(self) -> bool:
        """Whether one of its lanes is assigned to work that may still end by itself."""
        return any(lane.holder is not None and not lane.is_stuck for lane in self.lanes)

    def running(self) -> list[RunningCall]:
        """Describe what it runs at this moment, for status displays."""
        holders = [lane.holder for lane in self.lanes]
        found = [each.running() for each in holders if each is not None and not each.finished]
        return [call for call in found if call is not None]

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
            failure = self.process.start_failed(cause)
            await self.end(0.0)
            raise failure from None
        except OSError as error:
            failure = self.process.start_failed(self.process.explain(error))
            await self.end(0.0)
            raise failure from error
        except BaseException:
            await self.end(0.0)
            raise

    async def _begin(self, setup: WorkerSetup) -> Configured:
        handshake = Handshake(self.main_lane, self.process, self.config)
        handshake.put(setup)
        *lanes, late = [worker_end.fileno() for worker_end in self._worker_ends]
        page = self._page.descriptor
        self.output.begin()
        try:
            await self.process.launch(
                self.slot,
                extra_arguments=[f"--lane={','.join(map(str, lanes))}:{page}:{late}"],
                pass_fds=(*lanes, page, late),
            )
        finally:
            self._close_worker_ends()
        return await handshake.reply()

    def _show_late(self, message: Late, frame: Frame) -> None:
        try:
            if message.kind == COMM_TARGET:
                self.comms.note(COMM_TARGET, shown(frame.body)[0], None)
            elif not message.cell:
                self.lanes[message.lane].show_late(message, frame)
            elif self.cells is not None:
                self.cells.show_late(message, frame)
        except Exception:  # of a callback of the user's
            logger.warning("what %s showed late cannot be shown", self.name, exc_info=True)

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
            survivors = await self.process.end(grace)
        except OSError as error:  # no descriptors, for example; its guardian still ends it
            logger.warning(
                "%s was told to end, and it cannot be seen whether it did: %s", self.name, error
            )
        else:
            if survivors:
                failure = SurvivorsError(self.process.run_id, survivors)
                logger.warning("%s: %s", self.name, failure)
        self.process.close()
        self.apply(WorkerEvent.EXIT)
        if not self.is_held:  # else they are closed when its lanes are released
            self.close_channels()
        self.output.close()

    def _interrupt_and_close(self) -> None:
        """Interrupt its calls, and close the lanes."""
        for lane in self.lanes:
            if lane.holder is not None:
                lane.recall()
                lane.interrupt()
            lane.hang_up()

    def close_channels(self) -> None:
        """Close the lanes and the Jupyter channels. Only while no lane is assigned."""
        for lane in self.lanes:
            lane.close()
        self._page.close()
        if self.cells is not None:
            self.cells.close()
            self.cells = None

    # -- interrupting --------------------------------------------------------------------------

    def interrupt(self, call_id: int) -> None:  # noqa: ARG002 - the control page names the call
        """Interrupt its running call or cell, from any thread."""
        self.process.signal(signal.SIGINT)

    def stacks(self) -> str:
        """Return the stacks of its threads, also while no Python code runs; takes milliseconds."""
        if self.process.guarded is None or self.process.died.is_set():
            return ""
        return with_cell_names(self._page.read_stacks(self.process.signal))

    # -- its death -----------------------------------------------------------------------------

    def death(self) -> WorkerDied:
        """Describe how the worker died, after its lane closed, from a thread without a loop."""
        self.process.await_status()
        return self.process.describe_death(self.name)

    async def adeath(self) -> WorkerDied:
        """Describe how the worker died, after its lane closed, from an event loop."""
        await self.process.wait_for_status()
        return self.process.describe_death(self.name)


PooledLane = AssignedLane[Worker]
"""A lane of a pool."""
