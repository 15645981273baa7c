"""Makes the workers of a pool, starts them with its present options, and ends them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

import zmq.asyncio

from ...errors import SnakepitError, StartFailed
from ...loggers import get_logger
from ...output.comms import PageMessage
from ...processes.run_folders import Folder
from ...protocol.messages import WorkerSetup
from ..config import PoolConfig
from .foreign import ForeignWorker
from .jupyter import KernelSpecs
from .lifecycle import WorkerEvent, WorkerState
from .worker import Worker

logger = get_logger(__name__)


class WorkerFactory:
    """Makes workers, starts them and ends them. Its coroutines run in the pool's loop thread.

    Parameters
    ----------
    config
        The pool's options.
    folder
        Holds the sockets and logs of new workers.
    context
        ZeroMQ context of the workers' Jupyter channels.

    Attributes
    ----------
    config
        The options that new workers are started with.
    on_quitting
        Called, from any thread, with a worker whose own code has asked it to exit.
    on_page_message
        Called with each message of the page to a comm of a worker; must not wait for the worker.
    """

    def __init__(self, config: PoolConfig, folder: Folder, context: zmq.asyncio.Context) -> None:
        self.config = config
        self.on_quitting: Callable[[Worker], None] | None = None
        self.on_page_message: Callable[[Worker, PageMessage], None] | None = None
        self._folder = folder
        self._context = context
        self._specs = KernelSpecs(config.kernel)
        self._incarnations: Counter[int] = Counter()  # by slot, including removed slots
        self._made: WeakSet[Worker] = WeakSet()

    def next_incarnation(self, number: int) -> int:
        """Return the number of the next process in a slot."""
        self._incarnations[number] += 1
        return self._incarnations[number]

    def make(self, number: int) -> Worker:
        """Make a worker for a slot, which is not started yet.

        Raises
        ------
        StartFailed
            The operating system has no descriptors or memory for it.
        """
        make = Worker if self.config.kernel.has_lane else ForeignWorker
        incarnation = self.next_incarnation(number)
        try:
            worker = make(
                self.config,
                number,
                incarnation,
                folder=self._folder.present(),
                context=self._context,
                specs=self._specs,
            )
        except OSError as error:  # no descriptors, no memory
            name = f"worker {self.config.name}-{number}.{incarnation}"
            raise StartFailed(name, str(error)) from error
        worker.on_quitting = self.on_quitting
        if self.on_page_message is not None:
            worker.comms.deliver = partial(self.on_page_message, worker)
        self._made.add(worker)
        return worker

    async def make_ready(self, worker: Worker) -> None:
        """Start a worker that was made; return when it can work.

        Raises
        ------
        StartFailed
            It could not start. Nothing is left running.
        """
        setup = WorkerSetup(
            adapter=worker.config.adapter,
            import_path=worker.config.kernel.import_path(),
            pool=worker.config.name,
            worker=worker.name,
            preload=list(worker.config.preload),
            has_threads=worker.config.profile == "thread",
            codec=worker.config.codec,
            limits=worker.config.limits.of_process(),
            beat_seconds=_beat_seconds(worker.config),
            autoreload=worker.config.autoreload,
        )
        await worker.start(setup)
        worker.apply(WorkerEvent.ANSWER)

    async def start(self, number: int) -> Worker:
        """Make a worker with the present options, and start it; return it when it can work.

        Raises
        ------
        StartFailed
            It could not start. Nothing is left running.
        """
        while True:
            worker = self.make(number)
            await self.make_ready(worker)
            if worker.config is self.config:
                return worker
            await self.end(worker, 0.0)  # the pool was reloaded in the meantime

    async def end(self, worker: Worker, grace: float) -> None:
        """End a worker; return when that is verified. An error is logged."""
        try:
            await worker.end(grace)
        except SnakepitError as error:
            logger.warning("%s: %s", worker.name, error)
        finally:
            worker.comms.end(is_announced=True)

    async def end_all(self, grace: float) -> None:
        """End all workers that were made and live; return when that is verified."""
        workers = [worker for worker in self._made if worker.state is not WorkerState.DEAD]
        for worker in workers:  # the user has ended the pool: what its widgets show may stay
            worker.comms.end(is_announced=False)
        await asyncio.gather(*(self.end(worker, grace) for worker in workers))


def _beat_seconds(config: PoolConfig) -> float:
    """Return the seconds between two heartbeats of a worker; 0 for none."""
    policy = config.heartbeat
    return 0.0 if policy is None else min(policy.interval, policy.timeout) / 2
