"""The futures that a pool gives."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures._base import PENDING
from operator import attrgetter
from typing import Any, TypeVar

T = TypeVar("T")


class CallFuture(concurrent.futures.Future[T]):
    """A future whose `cancel` also reaches a call that runs.

    A queued call is taken out of the queue and never runs. A running one is interrupted; the
    future is cancelled at once, and the worker serves others as soon as it has stopped.

    Attributes
    ----------
    correlation_id
        Of the call, as its worker, host tools and events have it.
    """

    correlation_id: str = ""

    def __init__(self) -> None:
        # What the base class does, with one condition instead of two: there may be many thousands.
        self._condition = _Condition()
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._guard = threading.RLock()  # not the condition's: callbacks run inside
        self._is_running = False
        self._on_cancel: Callable[[], None] = _nothing

    def on_cancel(self, function: Callable[[], None] | None) -> None:
        """Set what ends the work when the future is cancelled; None when it has ended."""
        self._on_cancel = function or _nothing

    def cancel(self) -> bool:
        """Cancel the call; return whether it is cancelled, false when it has ended."""
        with self._guard:
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()  # tells those who wait for several futures
        self._on_cancel()
        return True

    def running(self) -> bool:
        """Whether the call is on a worker."""
        return self._is_running and not self.done()

    def begin(self) -> bool:
        """Note that a worker has the call; say whether it is still wanted."""
        self._is_running = True
        return not self.cancelled()

    def wait_again(self) -> bool:
        """Note that no worker has the call any more; say whether it is still wanted."""
        self._is_running = False
        return not self.cancelled()

    def deliver(self, value: Any = None, exception: BaseException | None = None) -> bool:
        """Set the outcome, unless the future was cancelled meanwhile; say whether it was set."""
        with self._guard:
            if self.cancelled():
                return False
            self.set_running_or_notify_cancel()
            if exception is not None:
                self.set_exception(exception)
            else:
                self.set_result(value)
            return True


class _Condition(threading.Condition):
    """A condition whose lock Ctrl-C cannot leave locked.

    ``threading.Condition.__enter__`` is a Python function: Ctrl-C may come when it has the lock and
    the ``with`` statement does not yet know. Then whoever delivers the outcome, the thread that
    keeps the whole pool, would wait for ever. Looked up like this, the lock's own methods are
    called, in C, where no signal handler runs.
    """

    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


def _nothing() -> None:
    pass
