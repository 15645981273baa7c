"""Standby workers: started in advance to replace workers that die."""

from __future__ import annotations

import asyncio

from ...errors import StartFailed
from ...loggers import get_logger
from .factory import WorkerFactory
from .worker import Worker

logger = get_logger(__name__)

DELAY = 0.2
"""Seconds before a missing standby worker is started: the pool's own work comes first."""

BACKOFF = 5.0
"""Seconds before a failed start is retried; no caller waits for it."""

STANDBY_SLOT = 0
"""Slot number in the names of workers that have no slot yet."""


class StandbyWorkers:
    """Keeps a number of standby workers. Its coroutines run in the pool's loop thread.

    Parameters
    ----------
    count
        How many to keep.
    factory
        Starts and ends them.
    """

    def __init__(self, count: int, factory: WorkerFactory) -> None:
        self._count = count
        self._factory = factory
        self._ready: list[Worker] = []
        self._missing = asyncio.Event()

    async def keep(self) -> None:
        """Start them and replace those that are taken or die, one at a time, until cancelled."""
        while True:
            while len(self._ready) < self._count:
                await asyncio.sleep(DELAY)
                try:
                    self._ready.append(await self._factory.start(STANDBY_SLOT))
                except StartFailed as error:
                    logger.warning("%s", error)
                    await asyncio.sleep(BACKOFF)
            self._missing.clear()
            deaths = [asyncio.ensure_future(worker.process.died.wait()) for worker in self._ready]
            try:
                await asyncio.wait(
                    [*deaths, asyncio.ensure_future(self._missing.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for death in deaths:
                    death.cancel()
            for worker in [worker for worker in self._ready if worker.process.died.is_set()]:
                self._ready.remove(worker)
                await worker.end(0.0)

    def take(self, slot: int) -> Worker | None:
        """Return a living standby worker, which now belongs to a slot; None if there is none.

        One that a signal has stopped is terminated.
        """
        stopped = [worker for worker in self._ready if worker.process.is_stopped]
        for worker in stopped:
            worker.process.terminate()  # which continues it, so that it no longer looks stopped
        living = next((w for w in self._ready if w not in stopped and not w.process.has_died), None)
        if living is not None:
            self._ready.remove(living)
            self._missing.set()
            living.take_slot(slot, self._factory.next_incarnation(slot))
        return living

    def end_without_main_thread(self) -> None:
        """Terminate those whose main thread has ended; they are replaced."""
        for worker in self._ready:
            if worker.process.has_lost_its_main_thread:
                worker.process.terminate()

    def take_all(self) -> list[Worker]:
        """Return all of them; the caller ends them."""
        workers, self._ready = self._ready, []
        return workers
