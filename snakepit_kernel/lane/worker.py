"""The worker's end of a lane: frames in and out, and interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from types import FrameType
from typing import Any, Literal

from ..protocol import messages
from ..protocol.frames import Frame, FrameReader, FrameWriter, Segment, pack
from .carrier import Carrier
from .lookout import Lookout
from .page import Slot

OUTPUT_CHUNK = 8192
"""Characters of output that are sent together at most."""

ROW_LIMIT = 5e-3
"""Seconds after which a row of calls lets the main loop have its turn."""


class WorkerLane:
    """Reads a lane whenever its loop is idle or a thread waits for a frame; writes at any time.

    Parameters
    ----------
    sock
        The inherited socket.
    carrier
        Lays out values and restores them.
    on_frame
        Handles a frame, in the thread that has read it.
    on_close
        Called once, in the loop's thread, when the owner has closed its end or died.
    """

    def __init__(
        self,
        sock: socket.socket,
        carrier: Carrier,
        on_frame: Callable[[Frame], None],
        on_close: Callable[[], None],
    ) -> None:
        self.carrier = carrier
        self._socket = sock
        self._reader = FrameReader()
        self._writer = FrameWriter()
        # Reentrant: a signal handler or a finalizer may print in the middle of a send.
        self._sending = threading.RLock()
        self._reading = threading.Lock()
        self._arrived = threading.Condition()
        self._followers = 0  # threads that wait while another one reads
        self._on_frame = on_frame
        self._on_close = on_close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._answered = 0.0
        self._lookout = Lookout()
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        sock.setblocking(True)
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        """Forget, in a child that a tool forked, locks that a thread of its parent held."""
        self._sending = threading.RLock()
        self._reading = threading.Lock()
        self._arrived = threading.Condition()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the lane whenever this loop has time. Called in the loop's thread."""
        self._loop = loop
        self._thread = threading.get_ident()
        loop.add_reader(self._socket.fileno(), self._on_readable)

    @contextlib.contextmanager
    def also_read_in(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Read the lane in another loop of the same thread, which runs inside a call."""
        loop.add_reader(self._socket.fileno(), self._on_readable)
        try:
            yield
        finally:
            loop.remove_reader(self._socket.fileno())

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the thread that serves the lane."""
        return threading.get_ident() == self._thread

    @property
    def is_open(self) -> bool:
        """Whether the owner is still there."""
        return self._socket.fileno() >= 0

    def send(self, segments: Sequence[Segment]) -> None:
        """Send a frame, from any thread; wait until the owner has taken it."""
        try:
            with self._sending:
                self._writer.put(segments)
                while not self._writer.send(self._socket.sendmsg):
                    pass
        except OSError:
            self._owner_is_gone()  # nobody is left to hear it

    # -- reading, in the loop ------------------------------------------------------------------

    def _on_readable(self) -> None:
        if not self._receive_now():
            return
        until = perf_counter() + ROW_LIMIT
        while self._handle_frames() and perf_counter() < until:
            if self._reader.at_end or not self._lookout.look(self._receive_now):
                break
        self._answered = perf_counter()
        if self._reader.at_end:
            self._close()

    def _receive_now(self) -> bool:
        """Read what has arrived; say whether that was anything."""
        taken: list[bool] = []
        try:
            taken.extend(map(self._reading.acquire, (False,)))  # in C: Ctrl-C cannot lose the lock
            if not taken[0]:
                return False  # a thread of a tool reads, and is awake by now
            return self._has_come()
        except OSError:
            self._close()
            return False
        finally:
            if taken and taken[0]:
                self._reading.release()

    def _handle_frames(self) -> bool:
        """Handle what has arrived; say whether that was something."""
        handled = False
        while (frame := self._next_frame()) is not None:
            self._on_frame(frame)
            handled = True
        return handled

    def take_ahead(self) -> list[Frame]:
        """Return what has arrived and was not handled, in the middle of whatever is going on."""
        frames: list[Frame] = []
        while True:
            self._receive_now()
            taken: list[bool] = []
            try:
                taken.extend(map(self._reading.acquire, (False,)))
                frame = self._reader.next_frame() if taken[0] else None
            finally:
                if taken and taken[0]:
                    self._reading.release()
            if frame is None:
                return frames
            frames.append(frame)

    def _next_frame(self) -> Frame | None:
        with self._reading:
            return self._reader.next_frame()

    def rests(self, seconds: float) -> bool:
        """Whether nothing has arrived for some time."""
        return perf_counter() - self._answered >= seconds

    # -- reading, in the middle of a call ------------------------------------------------------

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Handle frames, in any thread, until something is done.

        One thread reads at a time, for all that wait; the others are told of each frame.

        Raises
        ------
        ConnectionError
            The owner is gone.
        """
        loop = asyncio._get_running_loop()  # noqa: SLF001 - public in asyncio.events
        asyncio._set_running_loop(None)  # noqa: SLF001 - it does not run: this thread waits
        try:
            while not is_done():
                frame = self._lead()
                if frame is not None:
                    self._on_frame(frame)
                    self._tell_followers()
                else:
                    self._follow(is_done)
        finally:
            asyncio._set_running_loop(loop)  # noqa: SLF001
            self._tell_followers()  # one of them is to read now

    def _lead(self) -> Frame | None:
        """Read until a frame is there; None when another thread reads."""
        taken: list[bool] = []
        try:
            taken.extend(map(self._reading.acquire, (False,)))
            if not taken[0]:
                return None
            while (frame := self._reader.next_frame()) is None:
                if self._reader.at_end:
                    msg = "the owner of this worker has ended"
                    raise ConnectionError(msg)
                if not self._lookout.look(self._has_come):
                    self._reader.receive(self._socket.recv_into)
            return frame
        finally:
            if taken and taken[0]:
                self._reading.release()

    def _has_come(self) -> bool:
        try:
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        return True

    def _follow(self, is_done: Callable[[], bool]) -> None:
        with self._arrived:
            self._followers += 1
            try:
                # Who reads lets go of the lock first, and then tells, under this condition.
                if not is_done() and self._reading.locked():
                    self._arrived.wait()
            finally:
                self._followers -= 1

    def _tell_followers(self) -> None:
        if self._followers:
            with self._arrived:
                self._arrived.notify_all()

    # -- the end -------------------------------------------------------------------------------

    def _owner_is_gone(self) -> None:
        if self.is_own_thread:
            self._close()
        # Else the loop sees the end of the stream itself; it alone may touch its readers.

    def _close(self) -> None:
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._on_close()


class Interrupts:
    """Lets SIGINT reach the call it was meant for, and nothing else. One for each lane.

    The handler stays in place for the life of the worker; ipykernel puts its own in its place while
    a cell runs. It acts only while a call runs, and only if the page names that very call, or no
    call at all: then somebody else sent the signal, and means whatever runs in the main thread.

    Parameters
    ----------
    slot
        The words that the owner writes.
    """

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._calls: list[int] = []  # that run in the lane's thread, each inside the one before
        self._cancels: dict[int, Callable[[], object]] = {}  # of coroutines, by their call
        self._cancelled: set[int] = set()
        self._thread = threading.get_ident()

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that an interrupt of this call may stop.

        Raises
        ------
        KeyboardInterrupt
            The call was interrupted, perhaps before it began.
        """
        calls = self._calls
        try:
            calls.append(call_id)
            if self._slot.interrupted_call == call_id and self.is_news():
                raise KeyboardInterrupt
            return function()
        finally:
            calls.remove(call_id)

    async def run_async(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Do the same for a function that gives an awaitable: an interrupt cancels it."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(_awaited(function))
        self._cancels[call_id] = partial(loop.call_soon_threadsafe, task.cancel)
        try:
            if self._slot.interrupted_call == call_id and self.is_news():
                self._cancelled.add(call_id)
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if call_id not in self._cancelled:
                raise  # the tool's own doing
            raise KeyboardInterrupt from None
        finally:
            self._cancels.pop(call_id, None)
            self._cancelled.discard(call_id)

    def is_news(self) -> bool:
        """Note that an interrupt was heard; say whether it is more than its own repetition."""
        call_id = self._slot.interrupted_call
        if call_id and self._slot.heard_call == call_id:
            return False
        self._slot.heard_call = call_id
        return True

    def deliver(self) -> None:
        """Interrupt what is to be interrupted; called by the handler, in the main thread."""
        call_id = self._slot.interrupted_call or self._latest()
        if call_id in self._cancels:
            if self.is_news():
                self._cancelled.add(call_id)
                self._cancels[call_id]()  # raising would end the loop, not the task
        # A call that has another one inside it is interrupted when that has ended: the owner asks
        # again until it is heard.
        elif self._calls and self._calls[-1] == call_id and self.is_news():
            self._raise()

    def _latest(self) -> int:
        """Return the call that a signal means which names none; 0 in other threads."""
        if self._thread != threading.get_ident():
            return 0
        return (self._calls or list(self._cancels) or [0])[-1]

    def _raise(self) -> None:
        raise KeyboardInterrupt


class ThreadInterrupts(Interrupts):
    """The same for a lane that is served by another thread than the main one.

    Python has no signals for threads. An exception is left at the thread's door, which finds it
    when it next runs Python code: it does not leave a system call for it.
    """

    def __init__(self, slot: Slot) -> None:
        super().__init__(slot)
        self._guard = threading.Lock()  # the handler runs in the main thread, which never holds it

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


def install(signum: int, handlers: Sequence[Callable[[], None]]) -> None:
    """Call functions at each signal from now on. The first may raise, so it is called last."""

    def handle(_signum: int, _frame: FrameType | None) -> None:
        for each in reversed(handlers):
            each()

    signal.signal(signum, handle)


async def _awaited(function: Callable[[], Any]) -> Any:
    return await function()


class CallOutput(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr`` while a call runs, and sends what it prints.

    Parameters
    ----------
    lane
        Where to send it.
    stream
        Which of the two it is.

    Attributes
    ----------
    call_id
        The call that runs.
    """

    def __init__(self, lane: WorkerLane, stream: Literal["stdout", "stderr"]) -> None:
        self.call_id = 0
        self._lane = lane
        self._stream: Literal["stdout", "stderr"] = stream
        self._pieces: list[str] = []
        self._length = 0
        self._writing = threading.RLock()  # a call may have threads that print
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        self._writing = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Text is sent as it is; this is what others ask for."""
        return "utf-8"

    def writable(self) -> bool:
        """Whether it can be written to: yes."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the kernel's own stream: a subprocess writes there."""
        stream = sys.__stdout__ if self._stream == "stdout" else sys.__stderr__
        if stream is None:
            raise io.UnsupportedOperation
        return stream.fileno()

    def write(self, text: str) -> int:
        """Keep a text until its line ends, or there is enough of it."""
        if not isinstance(text, str):
            msg = f"write() argument must be str, not {type(text).__name__}"
            raise TypeError(msg)
        with self._writing:
            self._pieces.append(text)
            self._length += len(text)
            if "\n" in text or "\r" in text or self._length >= OUTPUT_CHUNK:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what is kept."""
        if not self._pieces:
            return
        with self._writing:
            pieces, self._pieces, self._length = self._pieces, [], 0
            self.send(messages.Output(self.call_id, self._stream, "".join(pieces)))

    def send(self, message: messages.Output | messages.Progress) -> None:
        """Send what a call shows, behind what was sent before."""
        self._lane.send(pack(messages.encode(message)))
