"""What the kernels of one template are doing, so that preparing others does not get in their way.

They share a file in memory. A kernel whose cell runs holds a lock on one byte of it, and who
prepares something ahead holds one on another. A lock ends with its process, whatever ends that.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

TURN = 0
CELL = 1

LOOK_INTERVAL = 0.02
"""Seconds between looks whether it is one's turn."""

PATIENCE = 2.0
"""Seconds that cells may hold back what is to be prepared: one may run for hours."""

_file = -1


def hold(descriptor: int) -> None:
    """Use a template's file from now on."""
    global _file  # noqa: PLW0603 - there is one process
    _file = descriptor


def begin_cell() -> None:
    """Note that a cell of this kernel runs."""
    if _file >= 0:
        with contextlib.suppress(OSError):  # somebody looks at this very moment
            fcntl.lockf(_file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, CELL)


def end_cell() -> None:
    """Note that it has ended."""
    if _file >= 0:
        fcntl.lockf(_file, fcntl.LOCK_UN, 1, CELL)


class IdleTurn:
    """The right to prepare something ahead: one process at a time, and not while a cell runs."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._has_it = False

    def is_ours(self) -> bool:
        """Whether it is our turn now."""
        if _file < 0:
            return True
        try:
            if not self._has_it:
                fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, TURN)
                self._has_it = True
            if time.monotonic() - self._began < PATIENCE:
                fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, CELL)
                fcntl.lockf(_file, fcntl.LOCK_UN, 1, CELL)
        except OSError:
            return False
        return True

    def wait(self, is_called_off: Callable[[float], bool]) -> None:
        """Wait until it is our turn.

        Parameters
        ----------
        is_called_off
            Waits for some seconds; says whether there is no time left to wait.
        """
        while not self.is_ours():
            if is_called_off(LOOK_INTERVAL):
                return

    def end(self) -> None:
        """Let the next one come."""
        if self._has_it:
            self._has_it = False
            fcntl.lockf(_file, fcntl.LOCK_UN, 1, TURN)


def _release() -> None:
    global _file  # noqa: PLW0603
    if _file >= 0:
        os.close(_file)
        _file = -1


os.register_at_fork(after_in_child=_release)
