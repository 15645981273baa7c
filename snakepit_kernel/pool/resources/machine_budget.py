"""Budget of the machine's cores and memory, shared by the pools of all notebooks.

The budget is advisory: a pool with a given number of workers always gets them. A pool of
``"auto"`` workers gets what other pools have left.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import psutil

from ...ids import new_run_id
from ...loggers import get_logger
from ...processes.run_registry import Registry

logger = get_logger(__name__)

_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def usable_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that this runs in."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(_GROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return total


class MachineReservation:
    """The part of the machine's budget that one pool has reserved.

    Parameters
    ----------
    pool
        Name of the pool.
    bytes_each
        Memory limit of a worker; 0 for none.

    Attributes
    ----------
    workers
        Number of reserved workers; 0 before the first reservation.
    """

    def __init__(self, pool: str, bytes_each: int) -> None:
        self.workers = 0
        self._registry = Registry()
        self._name = new_run_id()
        self._pool = pool
        self._bytes_each = bytes_each

    def reserve_remaining(self, most: int) -> Self:
        """Reserve at most ``most`` of the workers that other pools have left, at least one."""
        self.workers = self._registry.book(
            self._name,
            self._pool,
            most,
            bytes_each=self._bytes_each,
            cores=usable_cores(),
            memory_bytes=usable_memory(),
        )
        return self

    def update(self, workers: int) -> None:
        """Reserve a number of workers, even beyond the budget; warn if memory is overcommitted."""
        if not self.workers:
            self.reserve_remaining(1)
        self.workers = workers
        self._registry.rebook(self._name, workers, workers * self._bytes_each)
        booked = sum(booking.memory_bytes for booking in self._registry.bookings())
        if self._bytes_each and booked > (memory := usable_memory()):
            logger.warning(
                "pool %s: the workers of all pools on this machine may take %.1f GiB together,"
                " and it has %.1f; snakepit status lists them",
                self._pool,
                booked / 2**30,
                memory / 2**30,
            )

    def release(self) -> None:
        """Release the reservation."""
        if self.workers:
            self._registry.unbook(self._name)
            self.workers = 0


def describe_machine() -> str:
    """Describe in one line what all pools have reserved; empty when there are none."""
    bookings = Registry().bookings()
    if not bookings:
        return ""
    workers = sum(booking.workers for booking in bookings)
    booked = sum(booking.memory_bytes for booking in bookings)
    text = (
        f"machine: {workers} worker{'s' * (workers != 1)} of {len(bookings)} "
        f"pool{'s' * (len(bookings) != 1)} on {usable_cores()} cores"
    )
    if booked:
        text += f", which may take {booked / 2**30:.1f} of {usable_memory() / 2**30:.1f} GiB"
    return text
