"""Routing of SIGINT in a worker to the call that it was sent for."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from types import FrameType
from typing import Any

from ..lane.control_page import ControlWords
from ..locks import RLock
from ..processes import foreground

REPEAT_SECONDS = 1.0
"""Seconds in which a signal may repeat an interrupt, sent before that was acknowledged."""


class InterruptRouter:
    """Delivers SIGINT to the call it was sent for, and to no other. One for each lane.

    The handler stays installed for the life of the worker; ipykernel replaces it by its own while a
    cell runs. It acts only while a call runs, and only if the control page names that very call, or
    only one that ended a while ago: then another process sent the signal, for whatever runs in the
    main thread.

    Parameters
    ----------
    control
        The lane's words in the control page, which the owner writes.

    Attributes
    ----------
    interrupted
        The last call that was interrupted; 0 for none.
    """

    def __init__(self, control: ControlWords) -> None:
        self.interrupted = 0
        self._control = control
        self._calls: list[int] = []  # running in the lane's thread, each nested in the one before
        self._cancels: dict[int, Callable[[], object]] = {}  # of coroutine calls
        self._cancelled: set[int] = set()
        self._commands: dict[int, foreground.Foreground] = {}  # subprocesses that calls wait for
        self._spare: foreground.Foreground | None = None  # unused, for the next call
        self._last_begun = 0
        self._last_named = (0, 0.0)  # the call in the page, and when it was first seen there
        self._thread = threading.get_ident()
        self._deferrals = 0
        self._is_deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer interrupts in the main thread during work that belongs to no call.

        Uses may nest: signal handlers interrupt each other.
        """
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
            if self._is_deferred and not self._deferrals:
                self._is_deferred = False
                signal.raise_signal(signal.SIGINT)

    def must_defer(self) -> bool:
        """Return whether an interrupt has to wait; it is then raised again later."""
        self._is_deferred = self._deferrals > 0
        return self._is_deferred

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that can be interrupted under a call's id.

        Raises
        ------
        KeyboardInterrupt
            The call was interrupted, perhaps before it began.
        """
        calls = self._calls
        commands, self._spare = self._spare or foreground.Foreground(), None
        self._commands[call_id] = commands
        token = foreground.begin(commands)
        try:
            calls.append(call_id)
            self._last_begun = max(self._last_begun, call_id)
            if self._control.interrupted_call == call_id and self.is_new():
                self.interrupted = call_id
                raise KeyboardInterrupt
            return function()
        finally:
            calls.remove(call_id)
            foreground.leave(token)
            del self._commands[call_id]
            if commands.is_unused:
                self._spare = commands

    async def run_async(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Do the same as `run` for a function that returns an awaitable, which is cancelled."""
        loop = asyncio.get_running_loop()
        commands = self._commands[call_id] = foreground.Foreground()
        token = foreground.begin(commands)
        task = loop.create_task(_awaited(function))
        self._cancels[call_id] = partial(loop.call_soon_threadsafe, task.cancel)
        self._last_begun = max(self._last_begun, call_id)
        try:
            if self._control.interrupted_call == call_id and self.is_new():
                self._cancelled.add(call_id)
                task.cancel()
            value, ended_by = await task
        except asyncio.CancelledError as cancelled:
            if call_id not in self._cancelled:
                raise  # the tool cancelled itself
            self.interrupted = call_id
            raise KeyboardInterrupt().with_traceback(cancelled.__traceback__) from None
        finally:
            self._cancels.pop(call_id, None)
            self._cancelled.discard(call_id)
            foreground.leave(token)
            self._commands.pop(call_id, None)
        if ended_by is not None:
            raise ended_by
        return value

    def is_new(self) -> bool:
        """Acknowledge an interrupt; return whether it is new, and no repetition."""
        call_id = self._named_call()
        if call_id and self._control.acknowledged_call == call_id:
            return False
        self._control.acknowledged_call = self._control.interrupted_call
        return True

    def has_pending(self) -> bool:
        """Whether the page names a call of this lane that has not been interrupted yet."""
        call_id = self._control.interrupted_call
        return call_id != self._control.acknowledged_call and self._is_running_or_ahead(call_id)

    def _is_running_or_ahead(self, call_id: int) -> bool:
        """Whether a call runs, or has not begun yet."""
        runs = call_id in self._calls or call_id in self._cancels
        return runs or call_id > self._last_begun

    def _named_call(self) -> int:
        """Return the call that the page names; 0 if it was handled long ago."""
        call_id = self._control.interrupted_call
        if call_id != self._last_named[0]:
            self._last_named = call_id, monotonic()
        if call_id != self._control.acknowledged_call and self._is_running_or_ahead(call_id):
            return call_id
        return call_id if monotonic() - self._last_named[1] < REPEAT_SECONDS else 0

    def deliver(self) -> None:
        """Interrupt the call that a signal is for; called by the handler, in the main thread."""
        call_id = self._named_call() or self._latest_call()
        if call_id in self._cancels:
            if self.is_new():
                self._cancelled.add(call_id)
                self._commands[call_id].interrupt()
                is_alone = not self._calls and len(self._cancels) == 1
                if is_alone and foreground.is_below(_awaited):
                    self._raise()  # it would not be cancelled before it awaits again
                self._cancels[call_id]()  # raising would end the loop, not the task
        # A call with another one nested in it is interrupted when that has ended: the owner repeats
        # the signal until it is acknowledged.
        elif self._calls and self._calls[-1] == call_id and self.is_new():
            self._commands[call_id].interrupt()
            self.interrupted = call_id
            self._raise()

    def _latest_call(self) -> int:
        """Return the call that a signal without a named call is for; 0 in other threads."""
        if self._thread != threading.get_ident():
            return 0
        return (self._calls or list(self._cancels) or [0])[-1]

    def _raise(self) -> None:
        raise KeyboardInterrupt


class ThreadInterruptRouter(InterruptRouter):
    """Interrupts for a lane that is served by another thread than the main one.

    Python has no signals for threads. An asynchronous exception is set instead, which the thread
    raises when it next runs Python code: it does not interrupt a system call.
    """

    def __init__(self, control: ControlWords) -> None:
        super().__init__(control)
        # The handler runs in the main thread, where the next signal may come in the middle of it.
        self._lock = RLock()

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that can be interrupted under a call's id."""
        self._thread = threading.get_ident()
        try:
            return super().run(call_id, function)
        finally:
            with self._lock:  # an exception that comes too late must not hit the next call
                _set_async_exception(self._thread, None)

    def deliver(self) -> None:
        """Interrupt the call that a signal is for; called by the handler, in the main thread."""
        with self._lock:
            super().deliver()

    def _raise(self) -> None:
        _set_async_exception(self._thread, KeyboardInterrupt)


def _set_async_exception(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind)
    )


def install(main: InterruptRouter, others: Sequence[InterruptRouter]) -> Callable[[], bool]:
    """Install the SIGINT handler.

    Parameters
    ----------
    main, others
        The routers of the main thread's lane, and of the others.

    Returns
    -------
    interrupts_cell
        For the handler that replaces this one while a cell runs: returns whether the cell is to be
        interrupted. As a side effect it interrupts calls in other threads.
    """

    def is_for_main() -> bool:
        pending = [each for each in others if each.has_pending()]
        for each in pending:
            each.deliver()
        return main.has_pending() or not pending

    def handle(_signum: int, _frame: FrameType | None) -> None:
        if not main.must_defer() and is_for_main():
            main.deliver()

    signal.signal(signal.SIGINT, handle)
    return lambda: is_for_main() and main.is_new()


async def _awaited(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return await function(), None
    except (KeyboardInterrupt, SystemExit) as error:  # raised by a task, these would end the loop
        return None, error
