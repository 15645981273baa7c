"""Reports the state of a pool, and does what is to be done from time to time.

One of these things is to keep a Jupyter server from culling a notebook whose pool works in the
background. Jupyter Server culls a kernel that has sent nothing for a while: what counts is any
message of the kernel's iopub channel but those that belong to a cell (``untracked_message_types``).
A future that runs in a worker sends no such message.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import zmq

from ..errors import SnakepitError
from ..files import check_file, write_file
from ..lane.shared_memory import TRIM_AFTER
from ..loggers import get_logger
from ..paths import notebook_name
from ..processes.concurrency import in_thread
from ..processes.run_folders import Folder
from .accounting import Accounting
from .background_jobs import running_jobs
from .open_sessions import PoolSessions
from .resources.machine_budget import MachineReservation
from .status import PoolStats, PoolStatus, WorkerStatus, memory_of, status_path
from .workers.factory import WorkerFactory
from .workers.replacement import RollingReplacement
from .workers.supervisor import WorkerSupervisor
from .workers.worker import Worker

logger = get_logger(__name__)

STATUS_INTERVAL = 1.0
"""Seconds between updates of the file that `snakepit status` reads, and between messages that keep
a notebook from being culled while its pool works."""

MESSAGE = "snakepit_activity"
"""Type of the message. Clients ignore unknown types, but a status message would change the state
that the server shows for the kernel. Its parent is empty, so that it belongs to no cell."""


def send_activity() -> None:
    """Send a message that counts as activity of this process, if it is a notebook's kernel."""
    kernel = _kernel()
    if kernel is None:
        return
    topic = kernel._topic(MESSAGE)  # noqa: SLF001 - the topic format of its own messages
    try:
        kernel.session.send(kernel.iopub_socket, MESSAGE, {}, parent={}, ident=topic)
    except zmq.ZMQError:  # the kernel exits, and has closed its channels
        logger.debug("the kernel sends nothing more", exc_info=True)


def _kernel() -> Any:
    module = sys.modules.get("ipykernel.kernelapp")  # not loaded: this process is no kernel
    app = module and module.IPKernelApp
    return app.instance().kernel if app and app.initialized() else None


class Housekeeping:
    """Reports the state of a pool, and does what is to be done from time to time.

    Parameters
    ----------
    accounting, factory, supervisor, replacement, sessions
        The parts of the pool whose state it reports, and which it keeps in order.
    folder
        The pool's folder, in which the file lies that `snakepit status` reads.
    reservation
        The pool's reservation of the machine's memory and processors.
    """

    def __init__(
        self,
        accounting: Accounting,
        factory: WorkerFactory,
        supervisor: WorkerSupervisor,
        replacement: RollingReplacement,
        *,
        sessions: PoolSessions,
        folder: Folder,
        reservation: MachineReservation,
    ) -> None:
        self._accounting = accounting
        self._factory = factory
        self._supervisor = supervisor
        self._replacement = replacement
        self._sessions = sessions
        self._folder = folder
        self._reservation = reservation
        self._pid = os.getpid()
        self._published: object = None

    @property
    def is_open(self) -> bool:
        """Whether the pool has not been shut down."""
        return self._accounting.closed_because is None

    def stats(self) -> PoolStats:
        """Return the counters."""
        with self._accounting.lock:
            return PoolStats(
                **self._accounting.counts(),
                started=self._supervisor.started,
                died=self._supervisor.died,
                recycled=self._replacement.recycled,
            )

    def status(self) -> PoolStatus:
        """Return the current status of the pool and its workers."""
        now = time.monotonic()
        with self._accounting.lock:
            workers = [
                _status_of(worker, now, self._replacement.kept_values(worker))
                for _, worker in sorted(self._supervisor.workers.items())
            ]
            shells, processes = self._sessions.shell_counts()
            requirements = self._factory.config.requirements
            return PoolStatus(
                name=self._factory.config.name,
                owner_pid=self._pid,
                adapter=self._factory.config.adapter_name,
                workers=workers,
                stats=self.stats(),
                sessions=list(self._accounting.sessions),
                problem=self._supervisor.slots.problem or self._accounting.problem(),
                ends=list(self._supervisor.ends),
                shells=shells,
                processes=processes,
                notebook=notebook_name(),
                jobs=running_jobs.status(),
                environment=None if requirements is None else str(requirements),
            )

    def logs(self) -> dict[str, str]:
        """Return the last output of each worker's process, by the worker's name."""
        with self._accounting.lock:
            workers = [worker for _, worker in sorted(self._supervisor.workers.items())]
        return {worker.name: worker.process.last_output() for worker in workers}

    def slots(self) -> list[int]:
        """Return the numbers of the slots that have a worker."""
        with self._accounting.lock:
            return sorted(self._supervisor.workers)

    async def run(self) -> None:
        """Periodically update the status file, free memory, and keep sessions alive."""
        while True:
            # Polled, because an event for each call would make every call slower.
            await asyncio.sleep(STATUS_INTERVAL)
            if not self._folder.path.is_dir():
                self._published = None  # the published file has been removed
            self.publish()
            stats = self.stats()
            if stats.queued or stats.running:
                send_activity()
            if self._reservation.workers != (size := len(self._supervisor.slots)):
                await in_thread(self._reservation.update, size)
            self._trim(TRIM_AFTER)
            if self._sessions.are_used:
                await in_thread(self._maintain_sessions)

    def _trim(self, seconds: float) -> None:
        """Free the buffers for large values of workers that have been idle for so many seconds."""
        idle_since = time.monotonic() - seconds
        with self._accounting.lock:  # no lane is assigned meanwhile
            for worker in self._supervisor.workers.values():
                if worker.state.is_in_service and not worker.current and worker.since < idle_since:
                    for lane in worker.lanes:
                        lane.marshaller.trim()

    def _maintain_sessions(self) -> None:
        """Extend the expiry of sessions with unfinished work, and delete expired sessions."""
        try:
            self._sessions.keep_alive(self._accounting.working_sessions())
            self._sessions.sweep()
        except SnakepitError as error:  # the next interval tries again
            logger.warning("%s", error)

    def publish(self) -> None:
        """Update the file that `snakepit status` reads, if something has changed."""
        status = self.status()
        news = (
            status.stats,
            status.shells,
            status.processes,
            status.jobs,
            [(w.name, w.state, w.tainted) for w in status.workers],
        )
        if news != self._published:
            self._published = news
            try:
                path = status_path(self._folder.present())
                check_file(path)  # writing to a pipe in its place would block
                write_file(path, json.dumps(status.as_json()))
            except OSError as error:  # such as a full disk; the pool works without the file
                logger.warning("snakepit status cannot show pool %s: %s", status.name, error)


def _status_of(worker: Worker, now: float, kept: Sequence[str]) -> WorkerStatus:
    running = worker.running()
    sessions = dict.fromkeys(call.session for call in running if call.session is not None)
    return WorkerStatus(
        name=worker.name,
        pid=worker.process.pid,
        state=worker.shown_state,
        seconds=now - worker.since,
        calls=worker.calls,
        memory_bytes=memory_of(worker.process.pid),
        running=", ".join(call.name for call in running) or None,
        run_id=worker.process.run_id,
        tainted=worker.tainted or None,
        device=worker.config.accelerators.label(worker.slot),
        running_seconds=max((call.seconds for call in running), default=None),
        session=", ".join(sessions) or None,
        done=worker.done,
        kept=_tally(kept) or None,
    )


def _tally(names: Sequence[str]) -> str:
    counts = Counter(names).items()
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts)
