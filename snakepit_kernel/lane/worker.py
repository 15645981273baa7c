"""The worker's end of a lane: frames in and out, and interrupts."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic, perf_counter
from types import FrameType
from typing import Any

from ..locks import Condition, RLock
from ..processes import children, foreground
from ..protocol.frames import MAX_BYTES, Frame, FrameReader, FrameWriter, Segment
from ..protocol.values import Codec
from .carrier import Carrier
from .lookout import Lookout
from .loops import around_another_loop
from .page import Slot

ROW_LIMIT = 5e-3
"""Seconds after which a row of calls lets the main loop have its turn."""


ECHO = 1.0
"""Seconds after an interrupt in which a signal may be its repetition, sent before it was heard."""


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
        carrier: Carrier,
        on_frame: Callable[[Frame], Callable[[], None] | None],
        on_close: Callable[[], None],
    ) -> None:
        self.carrier = carrier
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
        self._lookout = Lookout()
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
        self.carrier.codec = codec
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
                self._tell_followers()

    def _handle_frames(self) -> bool:
        """Handle what has arrived; say whether that was something."""
        handled = False
        while (act := self._take_frame()) is not None:
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
                if not self._lookout.look(self._has_come):
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


class Interrupts:
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

    def __init__(self, slot: Slot) -> None:
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
        if call_id and self._slot.heard_call == call_id:
            return False
        self._slot.heard_call = self._slot.interrupted_call
        return True

    def is_meant(self) -> bool:
        """Whether the page names a call of this lane that has not heard."""
        call_id = self._slot.interrupted_call
        return call_id != self._slot.heard_call and self._is_to_come(call_id)

    def _is_to_come(self, call_id: int) -> bool:
        """Whether a call runs, or will."""
        runs = call_id in self._calls or call_id in self._cancels
        return runs or call_id > self._last_begun

    def _named(self) -> int:
        """Return the call that the page names; 0 when that was over and done with long ago."""
        call_id = self._slot.interrupted_call
        if call_id != self._last_named[0]:
            self._last_named = call_id, monotonic()
        if call_id != self._slot.heard_call and self._is_to_come(call_id):
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


class ThreadInterrupts(Interrupts):
    """The same for a lane that is served by another thread than the main one.

    Python has no signals for threads. An exception is left at the thread's door, which finds it
    when it next runs Python code: it does not leave a system call for it.
    """

    def __init__(self, slot: Slot) -> None:
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


def install(main: Interrupts, others: Sequence[Interrupts]) -> Callable[[], bool]:
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


def _nothing() -> None:
    pass


async def _awaited(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return await function(), None
    except (KeyboardInterrupt, SystemExit) as error:  # a task that raised these would end the loop
        return None, error
