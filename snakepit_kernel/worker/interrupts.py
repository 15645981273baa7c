"""SIGINT, routed to the call that it was meant for."""

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

ECHO = 1.0
"""Seconds after an interrupt in which a signal may be its repetition, sent before it was heard."""


class InterruptRouter:
    """Lets SIGINT reach the call it was meant for, and nothing else. One for each lane.

    The handler stays in place for the life of the worker; ipykernel puts its own in its place while
    a cell runs. It acts only while a call runs, and only if the page names that very call, or none
    but such as ended a while ago: then somebody else sent the signal, and means whatever runs in
    the main thread.

    Parameters
    ----------
    slot
        The words that the owner writes.

    Attributes
    ----------
    interrupted
        The last call that was interrupted; 0 for none.
    """

    def __init__(self, slot: ControlWords) -> None:
        self.interrupted = 0
        self._slot = slot
        self._calls: list[int] = []  # that run in the lane's thread, each inside the one before
        self._cancels: dict[int, Callable[[], object]] = {}  # of coroutines, by their call
        self._cancelled: set[int] = set()
        self._commands: dict[int, foreground.Foreground] = {}  # that calls wait for
        self._spare: foreground.Foreground | None = None  # of a call that has waited for none
        self._last_begun = 0
        self._last_named = (0, 0.0)  # by the page, and when that was seen
        self._thread = threading.get_ident()
        self._holds = 0
        self._was_put_off = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put interrupts off until something is done, in the main thread, that is no call's own.

        It may be in the middle of another such thing: signal handlers interrupt each other.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if self._was_put_off and not self._holds:
                self._was_put_off = False
                signal.raise_signal(signal.SIGINT)

    def puts_off(self) -> bool:
        """Say whether an interrupt has to wait; then it comes again."""
        self._was_put_off = self._holds > 0
        return self._was_put_off

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that an interrupt of this call may stop.

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
            if self._slot.interrupted_call == call_id and self.is_news():
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
        """Do the same for a function that gives an awaitable: an interrupt cancels it."""
        loop = asyncio.get_running_loop()
        commands = self._commands[call_id] = foreground.Foreground()
        token = foreground.begin(commands)
        task = loop.create_task(_awaited(function))
        self._cancels[call_id] = partial(loop.call_soon_threadsafe, task.cancel)
        self._last_begun = max(self._last_begun, call_id)
        try:
            if self._slot.interrupted_call == call_id and self.is_news():
                self._cancelled.add(call_id)
                task.cancel()
            value, ended_by = await task
        except asyncio.CancelledError:
            if call_id not in self._cancelled:
                raise  # the tool's own doing
            self.interrupted = call_id
            raise KeyboardInterrupt from None
        finally:
            self._cancels.pop(call_id, None)
            self._cancelled.discard(call_id)
            foreground.leave(token)
            self._commands.pop(call_id, None)
        if ended_by is not None:
            raise ended_by
        return value

    def is_news(self) -> bool:
        """Note that an interrupt was heard; say whether it is more than its own repetition."""
        call_id = self._named()
        if call_id and self._slot.acknowledged_call == call_id:
            return False
        self._slot.acknowledged_call = self._slot.interrupted_call
        return True

    def is_meant(self) -> bool:
        """Whether the page names a call of this lane that has not heard."""
        call_id = self._slot.interrupted_call
        return call_id != self._slot.acknowledged_call and self._is_to_come(call_id)

    def _is_to_come(self, call_id: int) -> bool:
        """Whether a call runs, or will."""
        runs = call_id in self._calls or call_id in self._cancels
        return runs or call_id > self._last_begun

    def _named(self) -> int:
        """Return the call that the page names; 0 when that was over and done with long ago."""
        call_id = self._slot.interrupted_call
        if call_id != self._last_named[0]:
            self._last_named = call_id, monotonic()
        if call_id != self._slot.acknowledged_call and self._is_to_come(call_id):
            return call_id
        return call_id if monotonic() - self._last_named[1] < ECHO else 0

    def deliver(self) -> None:
        """Interrupt what is to be interrupted; called by the handler, in the main thread."""
        call_id = self._named() or self._latest()
        if call_id in self._cancels:
            if self.is_news():
                self._cancelled.add(call_id)
                self._commands[call_id].interrupt()
                is_alone = not self._calls and len(self._cancels) == 1
                if is_alone and foreground.is_below(_awaited):
                    self._raise()  # it would not be cancelled before it awaits again
                self._cancels[call_id]()  # raising would end the loop, not the task
        # A call that has another one inside it is interrupted when that has ended: the owner asks
        # again until it is heard.
        elif self._calls and self._calls[-1] == call_id and self.is_news():
            self._commands[call_id].interrupt()
            self.interrupted = call_id
            self._raise()

    def _latest(self) -> int:
        """Return the call that a signal means which names none; 0 in other threads."""
        if self._thread != threading.get_ident():
            return 0
        return (self._calls or list(self._cancels) or [0])[-1]

    def _raise(self) -> None:
        raise KeyboardInterrupt


class ThreadInterruptRouter(InterruptRouter):
    """The same for a lane that is served by another thread than the main one.

    Python has no signals for threads. An exception is left at the thread's door, which finds it
    when it next runs Python code: it does not leave a system call for it.
    """

    def __init__(self, slot: ControlWords) -> None:
        super().__init__(slot)
        # The handler runs in the main thread, where the next signal may come in the middle of it.
        self._guard = RLock()

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that an interrupt of this call may stop."""
        self._thread = threading.get_ident()
        try:
            return super().run(call_id, function)
        finally:
            with self._guard:  # an exception that comes too late must not hit what comes next
                _leave_exception(self._thread, None)

    def deliver(self) -> None:
        """Interrupt what is to be interrupted; called by the handler, in the main thread."""
        with self._guard:
            super().deliver()

    def _raise(self) -> None:
        _leave_exception(self._thread, KeyboardInterrupt)


def _leave_exception(thread: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if kind is None else ctypes.py_object(kind)
    )


def install(main: InterruptRouter, others: Sequence[InterruptRouter]) -> Callable[[], bool]:
    """Handle SIGINT from now on.

    Parameters
    ----------
    main, others
        The interrupts of the main thread's lane, and of the others.

    Returns
    -------
    heeds
        What another handler asks that takes the place of this one while a cell runs: whether the
        cell is to be interrupted. Calls in other threads are, by asking.
    """

    def is_for_main() -> bool:
        meant = [each for each in others if each.is_meant()]
        for each in meant:
            each.deliver()
        return main.is_meant() or not meant

    def handle(_signum: int, _frame: FrameType | None) -> None:
        if not main.puts_off() and is_for_main():
            main.deliver()

    signal.signal(signal.SIGINT, handle)
    return lambda: is_for_main() and main.is_news()


async def _awaited(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return await function(), None
    except (KeyboardInterrupt, SystemExit) as error:  # a task that raised these would end the loop
        return None, error
