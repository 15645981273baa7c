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
        Takes a frame in, in the thread that has read it, while nobody else reads: who waits for
        what is in it must not begin to wait for the next. What takes longer (a call) it returns,
        to be done by that thread then.
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
        self._readers: dict[asyncio.AbstractEventLoop, int] = {}  # loops that read it, and why
        self._own_loops: list[asyncio.AbstractEventLoop] = []  # of the lane's thread, as they nest
        self._handed_over: deque[Callable[[], None]] = deque()
        self._thread = 0
        self._answered = 0.0
        self._spin_wait = SpinWait()
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        sock.setblocking(True)
        children.watch()
        os.register_at_fork(after_in_child=self._leave_to_the_parent)

    def _leave_to_the_parent(self) -> None:
        """Have no part in the conversation any more, in a child that a tool forked.

        Threads of its parent may have held the locks. The loops are not told: a child shares with
        its parent what they listen to.
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
        """Pickle values as the owner has asked for, and take in frames as large as these may be."""
        self.marshaller.codec = codec
        self._reader.max_bytes = max(MAX_BYTES, codec.max_bytes)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the lane whenever this loop has time. Called in the loop's thread."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._begin_to_read_in(loop)

    @contextlib.contextmanager
    def also_read_in(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Read the lane in a loop that runs inside a call, of whatever thread; called there."""
        self._begin_to_read_in(loop)
        try:
            yield
        finally:
            self._readers[loop] -= 1
            if not self._readers[loop]:
                del self._readers[loop]
                if loop in self._own_loops:
                    self._own_loops.remove(loop)
                loop.remove_reader(self._socket.fileno())

    def _begin_to_read_in(self, loop: asyncio.AbstractEventLoop) -> None:
        readers = self._readers.get(loop, 0)
        self._readers[loop] = readers + 1
        if not readers:
            if self.is_own_thread:
                self._own_loops.append(loop)
            loop.add_reader(self._socket.fileno(), self._on_readable)

    def hand_over(self, action: Callable[[], None]) -> None:
        """Have something done in the lane's own thread, which may wait for a frame just now."""
        self._handed_over.append(action)
        if self._own_loops:
            self._own_loops[-1].call_soon_threadsafe(self._take_over)

    def _take_over(self) -> bool:
        """Do what was handed over; say whether there was something."""
        taken = False
        while self._handed_over:
            self._handed_over.popleft()()
            taken = True
        return taken

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
                frame = segments[0]
                if len(segments) == 1 and isinstance(frame, bytes):
                    if self._writer.send_whole(frame, self._socket.send):
                        return
                else:
                    self._writer.put(segments)
                while not self._writer.send(self._socket.sendmsg):
                    pass
        except OSError:
            self._owner_is_gone()  # nobody is left to hear it

    def offer(self, segments: Sequence[Segment]) -> bool:
        """Send a small frame if the owner takes it at once; say whether it was sent."""
        taken: list[bool] = []
        try:
            taken.extend(map(self._sending.acquire, (False,)))  # in C: Ctrl-C cannot lose the lock
            if not taken[0] or not self._has_room():
                return False
            self.send(segments)
            return True
        finally:
            if taken and taken[0]:
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
        until = perf_counter() + ROW_LIMIT
        while self._handle_frames() and perf_counter() < until:
            if self._reader.at_end or not self._spin_wait.look(self._receive_now):
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
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        except OSError:
            self._close()
            return False
        else:
            return True
        finally:
            if taken and taken[0]:
                self._reading.release()
                if self._followers:
                    self._tell_followers()

    def _handle_frames(self) -> bool:
        """Handle what has arrived; say whether that was something."""
        handled = False
        while not self._reader.is_empty and (act := self._take_frame()) is not None:
            act()
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

    def _take_frame(self) -> Callable[[], None] | None:
        taken: list[bool] = []
        try:
            taken.extend(map(self._reading.acquire, (False,)))
            if not taken[0]:
                return None  # a thread of a tool reads, and takes it; it may wait for the next
            frame = self._reader.next_frame()
            return None if frame is None else self._on_frame(frame) or _nothing
        finally:
            if taken and taken[0]:
                self._reading.release()
                if self._followers:
                    self._tell_followers()

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
        leave_loop, enter_loop = around_another_loop()  # what is asked for meanwhile may run one
        try:
            leave_loop()
            while not is_done():
                if self._handed_over and self.is_own_thread:
                    self._take_over()
                    continue
                act = self._lead()
                if act is not None:
                    self._tell_followers()  # one of them reads while this thread acts
                    act()
                else:
                    self._follow(is_done)
        finally:
            enter_loop()
            self._tell_followers()  # one of them is to read now
            if not self._reader.is_empty and self._own_loops:
                # What came behind the last frame: of the socket no loop would hear of it any more.
                self._own_loops[-1].call_soon_threadsafe(self._handle_frames)

    def _lead(self) -> Callable[[], None] | None:
        """Read until a frame is there; return what it asks for, or None when another one reads."""
        taken: list[bool] = []
        try:
            taken.extend(map(self._reading.acquire, (False,)))
            if not taken[0]:
                return None
            while (frame := self._reader.next_frame()) is None:
                if self._reader.at_end:
                    msg = "the owner of this worker has ended"
                    raise ConnectionError(msg)
                if not self._spin_wait.look(self._has_come):
                    self._reader.receive(self._socket.recv_into)
            return self._on_frame(frame) or _nothing
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
                must_act = self._handed_over and self.is_own_thread
                if not is_done() and not must_act and self._reading.locked():
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
        if not self.is_own_thread:  # in a loop of a tool's thread; ours will see the end as well
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        elif self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._on_close()


def _nothing() -> None:
    pass
