"""The worker's end of a lane: frames in and out on the kernel's main loop, and interrupts."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from types import FrameType
from typing import Any, Literal

from ..protocol import messages
from ..protocol.frames import Frame, FrameReader, FrameWriter, Segment, pack
from .page import Page

OUTPUT_CHUNK = 8192
"""Characters of output that are sent together at most."""


LINGER = 30e-6
"""Seconds that a worker looks out for the next call before it goes back to its main loop."""

ROW_GAP = 200e-6
"""Seconds between an answer and the next call that make the two a row."""

ROW_LIMIT = 5e-3
"""Seconds after which a row of calls lets the main loop have its turn."""


class WorkerLane:
    """Reads the lane whenever the main loop is idle, and writes to it at any time.

    Parameters
    ----------
    sock
        The inherited socket.
    on_frame
        Handles a frame, on the main thread.
    on_close
        Called once when the owner has closed its end or died.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Frame], None],
        on_close: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._reader = FrameReader()
        self._writer = FrameWriter()
        # Reentrant: a signal handler or a finalizer may print in the middle of a send.
        self._sending = threading.RLock()
        self._on_frame = on_frame
        self._on_close = on_close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answered = 0.0
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        sock.setblocking(True)
        os.register_at_fork(after_in_child=self._unlock)

    def _unlock(self) -> None:
        """Forget, in a child that a tool forked, a lock that a thread of its parent held."""
        self._sending = threading.RLock()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the lane whenever this loop has time."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self._on_readable)

    def send(self, segments: Sequence[Segment]) -> None:
        """Send a frame, from any thread; wait until the owner has taken it."""
        try:
            with self._sending:
                self._writer.put(segments)
                while not self._writer.send(self._socket.sendmsg):
                    pass
        except OSError:
            self._owner_is_gone()  # nobody is left to hear it

    def _on_readable(self) -> None:
        try:
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        began = perf_counter()
        in_row = began - self._answered < ROW_GAP
        while self._handle_frames() and in_row and self._linger():
            if perf_counter() - began > ROW_LIMIT:
                in_row = False
        self._answered = perf_counter()
        if self._reader.at_end:
            self._close()

    def _handle_frames(self) -> bool:
        """Handle what has arrived; say whether that was something."""
        handled = False
        while (frame := self._reader.next_frame()) is not None:
            self._on_frame(frame)
            handled = True
        return handled

    def _linger(self) -> bool:
        """Look out for the next call of a row; say whether it came.

        A process that sleeps takes longer to wake than a short call takes to run. So calls that
        follow each other closely are awaited awake, for a moment, and take half the time.
        """
        until = perf_counter() + LINGER
        while perf_counter() < until and not self._reader.at_end:
            try:
                self._reader.receive(self._recv_now)
            except BlockingIOError:
                continue
            except OSError:
                return False
            return True
        return False

    def rests(self, seconds: float) -> bool:
        """Whether nothing has arrived for some time."""
        return perf_counter() - self._answered >= seconds

    def _owner_is_gone(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._close()
        # Else the main loop sees the end of the stream itself; it alone may touch its readers.

    def _close(self) -> None:
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._on_close()


class Interrupts:
    """Lets SIGINT reach the call it was meant for, and nothing else.

    The handler stays in place for the life of the worker; ipykernel puts its own in its place while
    a cell runs. It acts only while a call runs, and only if the page names that very call, or no
    call at all: then somebody else sent the signal, and means whatever runs.

    Parameters
    ----------
    page
        The page that the owner writes.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._call_id = 0
        self._cancel: Callable[[], object] | None = None
        self._interrupted = False  # the coroutine that runs

    def install(self) -> None:
        """Handle SIGINT from now on."""
        signal.signal(signal.SIGINT, self._handle)

    def run(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Run a function that an interrupt of this call may stop.

        Raises
        ------
        KeyboardInterrupt
            The call was interrupted, perhaps before it began.
        """
        try:
            self._call_id = call_id
            if self._page.interrupted_call == call_id and self.is_news():
                raise KeyboardInterrupt
            return function()
        finally:
            self._call_id = 0

    async def run_async(self, call_id: int, function: Callable[[], Any]) -> Any:
        """Do the same for a function that gives an awaitable: an interrupt cancels it."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(_awaited(function))
        self._cancel = partial(loop.call_soon_threadsafe, task.cancel)
        self._call_id = call_id
        self._interrupted = False
        try:
            if self._page.interrupted_call == call_id and self.is_news():
                self._interrupted = True
                task.cancel()
            return await task
        except asyncio.CancelledError:
            if not self._interrupted:
                raise  # the tool's own doing
            raise KeyboardInterrupt from None
        finally:
            self._call_id = 0
            self._cancel = None

    def is_news(self) -> bool:
        """Note that an interrupt was heard; say whether it is more than its own repetition."""
        call_id = self._page.interrupted_call
        if call_id and self._page.heard_call == call_id:
            return False
        self._page.heard_call = call_id
        return True

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        is_meant = self._call_id and self._page.interrupted_call in {0, self._call_id}
        if is_meant and self.is_news():
            if self._cancel is None:
                raise KeyboardInterrupt
            self._interrupted = True
            self._cancel()  # raising would end the main loop, not the task


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
            message = messages.Output(self.call_id, self._stream, "".join(pieces))
            self._lane.send(pack(messages.encode(message)))
