"""Workers that are started ahead, for slots whose worker dies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ...errors import StartFailed
from .worker import Worker

logger = logging.getLogger(__name__)

DELAY = 0.2
"""Seconds between a need for a standby and its start: what the others do comes first."""

BACKOFF = 5.0
"""Seconds before a start that failed is tried again; nobody waits for it."""

STANDBY_SLOT = 0
"""Stands for a slot in the names of workers that have none yet."""


class StandbyWorkers:
    """Keeps some workers ready. Its coroutines run in the supervisor's loop.

    Parameters
    ----------
    count
        How many.
    start
        Starts a worker.
    """

    def __init__(self, count: int, start: Callable[[], Awaitable[Worker]]) -> None:
        self._count = count
        self._start = start
        self._ready: list[Worker] = []
        self._missing = asyncio.Event()

    async def keep(self) -> None:
        """Start them, and those that replace them, one at a time, until this is cancelled."""
        while True:
            while len(self._ready) < self._count:
                await asyncio.sleep(DELAY)
                try:
                    self._ready.append(await self._start())
                except StartFailed as error:
                    logger.warning("%s", error)
                    await asyncio.sleep(BACKOFF)
            self._missing.clear()
            deaths = [asyncio.ensure_future(worker.died.wait()) for worker in self._ready]
            try:
                await asyncio.wait(
                    [*deaths, asyncio.ensure_future(self._missing.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for death in deaths:
                    death.cancel()
            for worker in [worker for worker in self._ready if worker.died.is_set()]:
                self._ready.remove(worker)
                await worker.end(0.0)

    def take(self) -> Worker | None:
        """Return a worker that lives, or None. One that somebody has stopped is ended."""
        stopped = [worker for worker in self._ready if worker.is_stopped]
        for worker in stopped:
            worker.terminate()  # which continues it, so that it may look alive from now on
        living = next((w for w in self._ready if w not in stopped and not w.has_died), None)
        if living is not None:
            self._ready.remove(living)
            self._missing.set()
        return living

    def end_without_main_thread(self) -> None:
        """End those whose main thread has ended; they are replaced."""
        for worker in self._ready:
            if worker.has_lost_its_main_thread:
                worker.terminate()

    def take_all(self) -> list[Worker]:
        """Return all of them, to be ended."""
        workers, self._ready = self._ready, []
        return workers
