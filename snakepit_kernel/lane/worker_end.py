"""The worker's end of a lane: frames in and out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter

from ..locks import Condition, RLock
from ..processes import children
from ..protocol.codec import Codec
from ..protocol.frames import MAX_BYTES, Frame, FrameReader, FrameWriter, Segment
from .marshalling import Marshaller
from .nested_loops import around_another_loop
from .spin_wait import SpinWait

SERIES_SECONDS = 5e-3
"""Seconds after which a series of calls yields to the main loop."""


class WorkerLane:
    """The worker's end of one lane: read when its loop is idle or a thread waits for a frame.

    Frames are sent at any time, from any thread.

    Parameters
    ----------
    sock
        The inherited socket.
    marshaller
        Encodes and decodes values.
    on_frame
        Handles a frame, in the thread that has read it, while no other thread reads: a thread that
        waits for its content must not begin to wait for the next frame. Longer work (a call) it
        returns as a function, which that thread calls afterwards.
    on_close
        Called once, in the loop's thread, when the owner has closed its end or died.
    """

    def __init__(
        self,
        sock: socket.socket,
        marshaller: Marshaller,
        on_frame: Callable[[Frame], Callable[[], None] | None],
        on_close: Callable[[], None],
    ) -> None:
        self.marshaller = marshaller
        self._socket = sock
        self._reader = FrameReader()
        self._writer = FrameWriter()
        # Reentrant: a signal handler or a finalizer may print in the middle of a send.
        self._sending = RLock()
        self._reading = threading.Lock()
        self._arrived = Condition()
        self._followers = 0  # threads that wait while another one reads
        self._on_frame = on_frame
        self._on_close = on_close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers: dict[asyncio.AbstractEventLoop, int] = {}  # loops that read it, with counts
        self._own_loops: list[asyncio.AbstractEventLoop] = []  # of the lane's thread, nested
        self._handed_over: deque[Callable[[], None]] = deque()
        self._thread = 0
        self._answered = 0.0
        self._spin_wait = SpinWait()
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        sock.setblocking(True)
        children.watch()
        os.register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        """Close this end in a child that a tool has forked.

        Threads of its parent may have held the locks. The loops' readers are not removed: a child
        shares the epoll instances with its parent.
        """
        self._sending = RLock()
        self._reading = threading.Lock()
        self._arrived = Condition()
        self._socket.close()
        self._reader = FrameReader()
        self._handed_over.clear()
        for loop in self._readers:
            children.end_in(loop)

    def use_codec(self, codec: Codec) -> None:
        """Use the owner's codec, and accept frames as large as its values may be."""
        self.marshaller.codec = codec
        self._reader.max_bytes = max(MAX_BYTES, codec.max_bytes)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the lane in this loop from now on. Called in the loop's thread."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._add_reader(loop)

    @contextlib.contextmanager
    def also_read_in(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Read the lane in a loop that runs inside a call, in any thread; called in that thread."""
        self._add_reader(loop)
        try:
            yield
        finally:
            self._readers[loop] -= 1
            if not self._readers[loop]:
                del self._readers[loop]
                if loop in self._own_loops:
                    self._own_loops.remove(loop)
                loop.remove_reader(self._socket.fileno())

    def _add_reader(self, loop: asyncio.AbstractEventLoop) -> None:
        readers = self._readers.get(loop, 0)
        self._readers[loop] = readers + 1
        if not readers:
            if self.is_own_thread:
                self._own_loops.append(loop)
            loop.add_reader(self._socket.fileno(), self._on_readable)

    def run_in_own_thread(self, action: Callable[[], None]) -> None:
        """Run a function in the lane's own thread, which may be waiting for a frame."""
        self._handed_over.append(action)
        self._call_in_own_thread(self._run_handed_over)

    def _call_in_own_thread(self, function: Callable[[], object]) -> None:
        """Call a function in each loop of the lane's thread: the innermost may be about to end."""
        for loop in tuple(self._own_loops):
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(function)

    def _run_handed_over(self) -> bool:
        """Run the functions that were handed over; return whether there were any."""
        acquired = False
        while self._handed_over:
            self._handed_over.popleft()()
            acquired = True
        return acquired

    @property
    def is_own_thread(self) -> bool:
        """Whether this is the thread that serves the lane."""
        return threading.get_ident() == self._thread

    @property
    def is_open(self) -> bool:
        """Whether the socket is open: the owner has not been found gone."""
        return self._socket.fileno() >= 0

    def send(self, segments: Sequence[Segment]) -> None:
        """Send a frame, from any thread; wait until the owner has taken it."""
        try:
            with self._sending:
                frame = segments[0]
                if len(segments) == 1 and isinstance(frame, bytes):
                    if self._writer.send_whole(frame, self._socket.send):
                        return
                else:
                    self._writer.put(segments)
                while not self._writer.send(self._socket.sendmsg):
                    pass
        except OSError:
            self._on_owner_gone()  # the frame is dropped

    def offer(self, segments: Sequence[Segment]) -> bool:
        """Send a small frame if that does not block; return whether it was sent."""
        acquired: list[bool] = []
        try:
            acquired.extend(
                map(self._sending.acquire, (False,))
            )  # in C: Ctrl-C cannot lose the lock
            if not acquired[0] or not self._has_room():
                return False
            self.send(segments)
            return True
        finally:
            if acquired and acquired[0]:
                self._sending.release()

    def _has_room(self) -> bool:
        """Whether the owner reads: a socket counts as writable when most of its buffer is free."""
        if not self.is_open:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        return poll.poll(0) == [(self._socket.fileno(), select.POLLOUT)]

    # -- reading, in the loop ------------------------------------------------------------------

    def _on_readable(self) -> None:
        if not self._receive_now():
            return
        until = perf_counter() + SERIES_SECONDS
        while self._handle_frames() and perf_counter() < until:
            if self._reader.at_end or not self._spin_wait.poll(self._receive_now):
                break
        self._answered = perf_counter()
        if self._reader.at_end:
            self._close()

    def _receive_now(self) -> bool:
        """Read what has arrived; return whether there was anything."""
        acquired: list[bool] = []
        try:
            # In C: Ctrl-C cannot lose the lock.
            acquired.extend(map(self._reading.acquire, (False,)))
            if not acquired[0]:
                return False  # a tool's thread reads, and has been woken
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        except OSError:
            self._close()
            return False
        else:
            return True
        finally:
            if acquired and acquired[0]:
                self._reading.release()
                if self._followers:
                    self._notify_followers()

    def _handle_frames(self) -> bool:
        """Handle what has arrived; return whether there was anything."""
        handled = False
        while not self._reader.is_empty and (act := self._handle_frame()) is not None:
            act()
            handled = True
        return handled

    def handle_arrived(self, handle: Callable[[Frame], None]) -> None:
        """Handle what has arrived otherwise than usually; for a signal handler.

        Parameters
        ----------
        handle
            Gets each frame, in order, while no other thread reads. It must not wait for one.
        """
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._reading.acquire, (False,)))
            if acquired[0]:
                self._handle_all(handle)
        finally:
            if acquired and acquired[0]:
                self._reading.release()
                self._notify_followers()
            if not self._reader.is_empty:  # no loop is notified of what is read already
                self._call_in_own_thread(self._handle_frames)

    def _handle_all(self, handle: Callable[[Frame], None]) -> None:
        with contextlib.suppress(OSError):  # there is no more, or the loop sees the end
            while not self._reader.at_end:
                while (frame := self._reader.next_frame()) is not None:
                    handle(frame)
                self._reader.receive(self._recv_now)

    def _handle_frame(self) -> Callable[[], None] | None:
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._reading.acquire, (False,)))
            if not acquired[0]:
                return None  # a tool's thread reads, and handles it; it may be waiting for it
            frame = self._reader.next_frame()
            return None if frame is None else self._on_frame(frame) or _nothing
        finally:
            if acquired and acquired[0]:
                self._reading.release()
                if self._followers:
                    self._notify_followers()

    def is_idle(self, seconds: float) -> bool:
        """Whether nothing has arrived for a number of seconds."""
        return perf_counter() - self._answered >= seconds

    # -- reading, in the middle of a call ------------------------------------------------------

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Handle frames, in any thread, until a condition holds.

        One thread, the leader, reads for all that wait; the others, its followers, are notified of
        each frame.

        Raises
        ------
        ConnectionError
            The owner is gone.
        """
        leave_loop, enter_loop = around_another_loop()  # a call handled meanwhile may run a loop
        try:
            leave_loop()
            while not is_done():
                if self._handed_over and self.is_own_thread:
                    self._run_handed_over()
                    continue
                act = self._lead()
                if act is not None:
                    self._notify_followers()  # one of them reads while this thread acts
                    act()
                else:
                    self._follow(is_done)
        finally:
            enter_loop()
            self._notify_followers()  # one of them must become the leader
            if not self._reader.is_empty:  # no loop is notified of what is read already
                self._call_in_own_thread(self._handle_frames)

    def _lead(self) -> Callable[[], None] | None:
        """Read until a frame is complete; return its action, or None if another thread reads."""
        acquired: list[bool] = []
        try:
            acquired.extend(map(self._reading.acquire, (False,)))
            if not acquired[0] or (self._handed_over and self.is_own_thread):
                return None
            while (frame := self._reader.next_frame()) is None:
                if self._reader.at_end:
                    msg = "the owner of this worker has ended"
                    raise ConnectionError(msg)
                if not self._spin_wait.poll(self._receive_nowait):
                    self._reader.receive(self._socket.recv_into)
            return self._on_frame(frame) or _nothing
        finally:
            if acquired and acquired[0]:
                self._reading.release()

    def _receive_nowait(self) -> bool:
        try:
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        return True

    def _follow(self, is_done: Callable[[], bool]) -> None:
        with self._arrived:
            self._followers += 1
            try:
                # The leader releases the lock first, and then notifies, under this condition.
                must_act = self._handed_over and self.is_own_thread
                if not is_done() and not must_act and self._reading.locked():
                    self._arrived.wait()
            finally:
                self._followers -= 1

    def _notify_followers(self) -> None:
        if self._followers:
            with self._arrived:
                self._arrived.notify_all()

    # -- the end -------------------------------------------------------------------------------

    def _on_owner_gone(self) -> None:
        if self.is_own_thread:
            self._close()
        # Else the loop sees the end of the stream itself; it alone may change its readers.

    def _close(self) -> None:
        if not self.is_own_thread:  # in a loop of a tool's thread; our own sees the end as well
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        elif self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._on_close()


def _nothing() -> None:
    pass
