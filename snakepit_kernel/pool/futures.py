"""The futures that a pool gives."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures._base import PENDING
from typing import Any, TypeVar

from ..locks import Condition, RLock
from ..processes.supervisor import Supervisor
from ..seconds import bounded

T = TypeVar("T")


class CallFuture(concurrent.futures.Future[T]):
    """A future whose `cancel` also reaches a call that runs.

    A queued call is taken out of the queue and never runs. A running one is interrupted; the
    future is cancelled at once, and the worker serves others as soon as it has stopped.

    Attributes
    ----------
    correlation_id
        Of the call, as its worker, host tools and events have it.
    keeper
        Whoever brings the outcome.
    """

    correlation_id: str = ""
    keeper: Supervisor | None = None

    def __init__(self) -> None:
        # What the base class does, with one condition instead of two: there may be many thousands.
        self._condition = Condition()  # no Ctrl-C may leave it locked
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self._guard = RLock()  # not the condition's: callbacks run inside
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

    def result(self, timeout: float | None = None) -> T:
        """Wait for the outcome; return the value, or raise the exception.

        Parameters
        ----------
        timeout
            Seconds, up to infinity; None for as long as it takes.

        Raises
        ------
        TimeoutError
            There was none in time.
        RuntimeError
            The pool's own thread asks, in the callback of a future or while it restores a result:
            it would wait for itself.
        """
        try:
            self._check_wait(timeout)
            return super().result(bounded(timeout))
        finally:
            self = None  # type: ignore[assignment] # noqa: PLW0642 - the traceback has this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the outcome; return the exception, or None. The rest is as in `result`."""
        self._check_wait(timeout)
        return super().exception(bounded(timeout))

    def _check_wait(self, timeout: float | None) -> None:
        if self.keeper is None or self.done() or not self.keeper.is_current:
            return
        if timeout is None or timeout > 0:
            msg = (
                "this code runs in the pool's own thread, as callbacks of futures and __setstate__ "
                "of results do, and would wait for a result that this very thread has to bring; "
                "use another thread, or a callback of that future"
            )
            raise RuntimeError(msg)

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


def _nothing() -> None:
    pass
