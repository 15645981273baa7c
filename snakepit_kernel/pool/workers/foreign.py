"""Workers that are any Jupyter kernel, of any language, and run cells only.

Such a kernel knows nothing of lanes: this process holds both ends of them while it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from typing import Any

import zmq

from ...processes.identity import descendants
from ...processes.os_limits import limit_address_space, limit_cpu, limit_files
from ...protocol.messages import Configured, WorkerSetup
from .jupyter import CellClient
from .worker import Worker

INTERRUPT_INTERVAL = 0.5
"""Seconds before a kernel, which does not acknowledge interrupts, is interrupted again."""


class ForeignWorker(Worker):
    """One incarnation of a slot with a foreign kernel. The parameters are those of `Worker`."""

    _loop: asyncio.AbstractEventLoop
    _interrupted = (0, 0.0)  # which cell, and when

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._requests: set[asyncio.Future[None]] = set()

    # -- starting ------------------------------------------------------------------------------

    async def _begin(self, setup: WorkerSetup) -> Configured:  # noqa: ARG002 - for our kernel
        self._loop = asyncio.get_running_loop()
        limits = self.config.limits
        await self.process.launch(self.slot)
        try:
            if limits.open_files is not None:
                limit_files(self._require_pid(), limits.open_files)
            if limits.cpu_seconds is not None:
                limit_cpu(self._require_pid(), limits.cpu_seconds)
            self.cells = await self._connect_cells()
            if limits.address_space_bytes is not None:
                self._limit_address_space(limits.address_space_bytes)
        except (ConnectionError, ProcessLookupError, FileNotFoundError):
            raise await self.process.ended_early() from None
        return Configured(0, [], {})

    def _limit_address_space(self, size_bytes: int) -> None:
        """Limit further address space of the process and of those it has started so far."""
        pid = self._require_pid()
        for child in descendants(pid):
            with contextlib.suppress(OSError):  # it has ended
                limit_address_space(child.pid, size_bytes, finally_so=True)
        limit_address_space(pid, size_bytes, finally_so=True)

    def _require_pid(self) -> int:
        if self.process.pid is None:
            raise ProcessLookupError
        return self.process.pid

    async def _connect_cells(self) -> CellClient:
        """Open the channels in a thread, and wait there for the kernel's first reply."""
        is_cancelled = threading.Event()
        waiting = asyncio.ensure_future(asyncio.to_thread(self._open_cells, is_cancelled))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            is_cancelled.set()
            with contextlib.suppress(ConnectionError):
                (await waiting).close()
            raise

    def _open_cells(self, is_cancelled: threading.Event) -> CellClient:
        manager, died = self.process.manager, self.process.died
        context: zmq.Context[Any] = zmq.Context(manager.context)  # the same, not asyncio's
        cells = CellClient(self.name, manager.get_connection_info(), context, self.comms.note)
        try:
            cells.await_kernel(lambda: not (died.is_set() or is_cancelled.is_set()))
        except BaseException:
            cells.close()
            raise
        return cells

    def take_slot(self, slot: int, incarnation: int) -> None:
        """Become the worker of a slot; the process is not notified."""
        self._rename(slot, incarnation)
        if self.cells is not None:
            self.cells.worker = self.name

    # -- working -------------------------------------------------------------------------------

    def forget(self, session: str) -> None:
        """Do nothing: a foreign kernel does not isolate sessions."""

    def interrupt(self, call_id: int) -> None:
        """Interrupt the cell in the kernel's own way, from any thread."""
        now = time.monotonic()
        if self._interrupted[0] == call_id and now < self._interrupted[1] + INTERRUPT_INTERVAL:
            return
        self._interrupted = (call_id, now)
        spec = self.process.manager.kernel_spec
        if spec is not None and spec.interrupt_mode == "message":
            with contextlib.suppress(RuntimeError):  # the pool has ended in the meantime
                self._loop.call_soon_threadsafe(self._send_interrupt)
        else:
            self.process.signal(signal.SIGINT)

    def _send_interrupt(self) -> None:
        task: asyncio.Future[None] = asyncio.ensure_future(self.process.manager.interrupt_kernel())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    def stacks(self) -> str:
        """Return an empty text: a foreign kernel cannot report its stacks."""
        return ""

    # -- ending --------------------------------------------------------------------------------

    def _interrupt_and_close(self) -> None:
        for lane in self.lanes:
            if lane.holder is not None:
                lane.interrupt()
            lane.hang_up()
