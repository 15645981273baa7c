"""Pidfds: file descriptors that refer to one process, even after its pid is recycled.

Python offers the two calls only if the headers that it was built with had them, and those of
portable builds are old; then they are made by number, which is the same on every architecture. On
Linux before 5.3, and where a container forbids them, there are no pidfds: see `is_possible`.

The guardian loads this module, so it imports next to nothing.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # see guardian.py

PIDFD_SEND_SIGNAL = 424
PIDFD_OPEN = 434

ABSENT = (errno.ENOSYS, errno.EPERM, errno.EACCES)

_possible: bool | None = None


def is_possible() -> bool:
    """Whether this machine has pidfds, and this process may use them."""
    global _possible  # noqa: PLW0603 - tested once in each process
    if _possible is None:
        try:
            descriptor = open_pidfd(os.getpid())
            try:
                send_signal(descriptor, 0)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in ABSENT:  # too many open files, for example: not conclusive
                return True
            _possible = False
        else:
            _possible = True
    return _possible


def open_pidfd(pid: int) -> int:
    """Open a pidfd; it becomes readable when the process ends. It is not inherited.

    Raises
    ------
    ProcessLookupError
        There is no such process.
    OSError
        Pidfds are not possible here.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _call(PIDFD_OPEN, pid, 0)


def send_signal(descriptor: int, signum: int) -> None:
    """Send a signal to the process that a pidfd refers to.

    Raises
    ------
    ProcessLookupError
        It has ended.
    PermissionError
        It belongs to another user.
    """
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(descriptor, signum)
    else:
        _call(PIDFD_SEND_SIGNAL, descriptor, signum, 0, 0)


def _call(number: int, *arguments: int) -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    import ctypes

    values = [ctypes.c_long(value) for value in (number, *arguments)]
    result: int = ctypes.CDLL(None, use_errno=True).syscall(*values)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
