"""Locks for ``with`` statements that Ctrl-C cannot leave locked.

Ctrl-C may raise `KeyboardInterrupt` wherever Python code of the main thread has called a function.
A lock that the main thread has acquired at that moment, and never releases, blocks every other
thread for ever.

Until Python 3.13 a ``with`` statement acquires a lock in one step, and the lock's own methods are
written in C: no signal handler runs in between. `threading.Condition` has Python methods. Since
Python 3.14 the statement calls ``__enter__`` like any function, and the handler may run after the
lock is acquired and before the statement has noticed; a function in Python returns its value
without such a moment.
"""

from __future__ import annotations

import sys
import threading
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

_ENTERS_LIKE_A_CALL: Final = sys.version_info >= (3, 14)


class _Lock:
    """A lock whose ``__enter__`` has acquired it when it returns, and has not when it raises.

    Parameters
    ----------
    lock
        The underlying lock.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.acquire = lock.acquire
        self.release = lock.release
        for name in ("_release_save", "_acquire_restore", "_is_owned"):  # for Condition
            if hasattr(lock, name):
                setattr(self, name, getattr(lock, name))

    def __enter__(self) -> bool:
        taken: list[bool] = []
        try:
            taken.extend(map(self.acquire, (True,)))  # in C: acquired and recorded in one step
        except BaseException:
            if taken:
                self.release()
            raise
        return True

    # Called by the ``with`` statement in C: no handler runs before the lock is free.
    __exit__ = property(attrgetter("_lock.__exit__"))

    def locked(self) -> bool:
        """Whether a thread holds it."""
        return bool(self._lock.locked())


class Condition(threading.Condition):
    """A condition with such a lock; by default a reentrant one."""

    if _ENTERS_LIKE_A_CALL:

        def __init__(self, lock: Any = None) -> None:
            super().__init__(RLock() if lock is None else lock)

    # As properties, these call the lock's own methods.
    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


if TYPE_CHECKING or not _ENTERS_LIKE_A_CALL:
    Lock = threading.Lock
    RLock = threading.RLock
else:

    def Lock() -> _Lock:  # noqa: N802 - named like the class that it replaces
        """Return a lock that is not reentrant."""
        return _Lock(threading.Lock())

    def RLock() -> _Lock:  # noqa: N802
        """Return a reentrant lock."""
        return _Lock(threading.RLock())
