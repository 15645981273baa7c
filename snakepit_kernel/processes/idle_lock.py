"""Lock that lets one kernel of a template prepare something ahead while no cell runs.

The kernels of one template share a file in memory. A kernel whose cell runs holds a lock on one
byte of it, and a process that prepares something ahead holds one on another. The operating system
releases a lock when its process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

PREPARING = 0
CELL = 1

POLL_INTERVAL = 0.02
"""Seconds between attempts to acquire the lock."""

CELL_PATIENCE = 2.0
"""Seconds for which running cells delay preparation at most: one may run for hours."""

_file = -1


def attach(descriptor: int) -> None:
    """Use a template's shared file from now on."""
    global _file  # noqa: PLW0603 - there is one process
    _file = descriptor


def begin_cell() -> None:
    """Lock the byte that says that a cell runs."""
    if _file >= 0:
        with contextlib.suppress(OSError):  # another process is testing it at this very moment
            fcntl.lockf(_file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, CELL)


def end_cell() -> None:
    """Release the lock of `begin_cell`."""
    if _file >= 0:
        fcntl.lockf(_file, fcntl.LOCK_UN, 1, CELL)


class IdleLock:
    """Allows preparing something ahead: in one process at a time, and while no cell runs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._has_it = False

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether preparing is allowed now."""
        if _file < 0:
            return True
        try:
            if not self._has_it:
                fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, PREPARING)
                self._has_it = True
            if time.monotonic() - self._began < CELL_PATIENCE:
                fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, CELL)
                fcntl.lockf(_file, fcntl.LOCK_UN, 1, CELL)
        except OSError:
            return False
        return True

    def acquire(self, is_cancelled: Callable[[float], bool]) -> None:
        """Wait until preparing is allowed, or the wait is cancelled.

        Parameters
        ----------
        is_cancelled
            Waits for some seconds; returns True to stop waiting.
        """
        while not self.try_acquire():
            if is_cancelled(POLL_INTERVAL):
                return

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._has_it:
            self._has_it = False
            fcntl.lockf(_file, fcntl.LOCK_UN, 1, PREPARING)


def _release() -> None:
    global _file  # noqa: PLW0603
    if _file >= 0:
        os.close(_file)
        _file = -1


os.register_at_fork(after_in_child=_release)
