"""A lock between processes: a file with ``flock``, which the end of its holder sets free."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from ..files import open_file

OnWait = Callable[[str], object]
"""Called with a text that names the holder, before a wait."""


class FileLock:
    """A lock on a file, held until `release`.

    The file is removed by who holds it exclusively; so a lock counts only if the file that it is on
    still has its name.

    Parameters
    ----------
    path
        The file; it is made when it is missing.
    exclusive
        Whether nobody else may hold it at the same time, not even shared.
    on_wait
        Called before a wait, if it has to be waited for. None: do not wait.

    Raises
    ------
    BlockingIOError
        Somebody else holds it, and it is not to be waited for.
    OSError
        The file cannot be used.

    Attributes
    ----------
    descriptor
        The open file. A process that inherits it holds the lock as well.
    """

    def __init__(self, path: Path, *, exclusive: bool, on_wait: OnWait | None = None) -> None:
        self._path = path
        self._pid = os.getpid()
        self.descriptor = -1
        operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        while True:
            self.descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                self._lock(operation, on_wait)
                if self._has_its_name():
                    break
            except BaseException:
                self.release()
                raise
            self.release()
        if exclusive:
            with contextlib.suppress(OSError):  # the disk is full; it is only for people
                os.ftruncate(self.descriptor, 0)
                os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def _lock(self, operation: int, on_wait: OnWait | None) -> None:
        try:
            fcntl.flock(self.descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is None:
                raise
            on_wait(self._holder())
            fcntl.flock(self.descriptor, operation)

    def _holder(self) -> str:
        pid = os.pread(self.descriptor, 20, 0).decode("ascii", "replace")
        return f"process {pid}" if pid.isdecimal() else "another process"

    def _has_its_name(self) -> bool:
        try:
            named = os.stat(self._path)  # noqa: PTH116 - the two calls belong together
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(self.descriptor))

    def remove(self) -> None:
        """Remove the file. Only for its exclusive holder."""
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Set it free; again does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            if os.getpid() == self._pid:  # in a forked child, it is the parent's
                # Closing alone would leave it to a child that was forked meanwhile.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def __del__(self) -> None:
        """Set it free, if Ctrl-C came before its holder had it."""
        self.release()
