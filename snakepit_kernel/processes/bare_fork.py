"""A fork that is only a fork: without the handlers that modules have registered for it.

They take longer than the fork itself, because each writes to memory that the processes share until
then: new seeds, new locks, new threads' books. A process of one thread that only watches another
one, or executes a program at once, needs none of that.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.PyDLL(None, use_errno=True)  # it keeps the interpreter's lock, as `os.fork` does


def bare_fork() -> int:
    """Fork this process, which has one thread; return the child's pid, and 0 in the child.

    The handlers of `os.register_at_fork` do not run. They run in what the child forks by `os.fork`.

    Raises
    ------
    OSError
        There are as many processes as there may be.
    """
    pid = int(_libc.fork())
    if pid < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return pid
