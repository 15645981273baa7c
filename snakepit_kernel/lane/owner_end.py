"""The owner's end of a lane."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import select
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from weakref import WeakSet, ref

from ..output.display import Display
from ..protocol import messages
from ..protocol.frames import MAX_BYTES, Frame, FrameReader, FrameWriter, Segment
from .control_page import ControlWords
from .exchange import Exchange
from .marshalling import Marshaller
from .spin_wait import SpinWait

MAX_POLL_SECONDS = 1e6
"""Seconds that one system call may wait."""

ANSWERS = (messages.Result, messages.Failure, messages.Configured)
"""What ends an exchange."""

MAX_LINGERING = 1000
"""Calls that have ended, of a lane, whose late output is shown."""


_Ended = tuple[int, Display | None, contextvars.Context]
"""A call that has ended, and where it stood."""

_NONE: _Ended = (0, None, contextvars.Context())


class LaneClosed(ConnectionError):
    """The worker closed its end, or died."""


class OwnerLane:
    """One lane to a worker, held by one caller at a time.

    Its caller has one exchange on it, and others inside that: the calls that are made on behalf of
    the host calls of the first.

    Parameters
    ----------
    sock
        Connected stream socket.
    slot
        The words beside it.
    carrier
        Lays out values and restores them.

    Attributes
    ----------
    on_returned
        Gets the ids of calls that the worker has given back.
    on_event
        Gets what the worker's code tells of.
    on_hello
        Gets the worker's first message; what it raises is raised by who waits for the next one.
    """

    def __init__(self, sock: socket.socket, slot: ControlWords, marshaller: Marshaller) -> None:
        self._socket = sock
        self._timeout: float | None = sock.gettimeout()
        self._incoming = select.poll()
        self._incoming.register(sock, select.POLLIN)
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        self._reader = FrameReader(max(MAX_BYTES, marshaller.codec.max_bytes), keeps_frames=True)
        self._writer = FrameWriter()
        self.last_call_id = 0
        self._spin_wait = SpinWait()
        self._exchanges: dict[int, Exchange] = {}
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}  # that read it, by their readers
        self.slot = slot
        self.on_returned: Callable[[list[int]], None] | None = None
        self.on_event: Callable[[messages.Event], None] | None = None
        self.on_quitting: Callable[[], None] | None = None
        self.on_hello: Callable[[messages.Hello], None] | None = None
        self.marshaller = marshaller
        self._lingering: OrderedDict[int, _Ended] = OrderedDict()
        self._last: _Ended = _NONE
        self._early: list[tuple[messages.Late, Frame]] = []
        self.depth = 0  # host calls that are served in this moment, each inside the one before
        _open_lanes.add(self)

    def fileno(self) -> int:
        """Return the socket's file descriptor, for event loops; -1 when it is closed."""
        return self._socket.fileno()

    def new_call_id(self) -> int:
        """Return an id that no other call on this lane has, higher than those before."""
        self.last_call_id += 1
        return self.last_call_id

    def send(self, segments: Sequence[Segment], deadline: float | None = None) -> None:
        """Send a frame; wait as long as the worker takes to read it.

        An exception in the middle (Ctrl-C, the deadline) leaves the rest of the frame in the lane,
        and the next `send` sends it first, so the stream stays whole.

        Raises
        ------
        TimeoutError
            The deadline passed.
        LaneClosed
            The worker is gone.
        """
        self._writer.put(segments)
        try:
            if deadline is not None or self._timeout is not None:
                self._limit(deadline)
            while not self._writer.send(self._socket.sendmsg):
                self._limit(deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise LaneClosed(*error.args) from error

    def ask(self, exchange: Exchange, segments: Sequence[Segment], deadline: float | None) -> bool:
        """Send a request, and take in its answer if that is a value that comes by itself.

        Mostly it does: one system call sends, one receives. All else is left to `receive`.

        Returns
        -------
        bool
            Whether the exchange is answered.

        Raises
        ------
        TimeoutError, LaneClosed
            As for `send`.
        """
        request = segments[0]
        if len(segments) != 1 or not isinstance(request, bytes):
            self.send(segments, deadline)
            return False
        reader = self._reader
        try:
            if self._timeout is not None:
                self._let_wait(None)
            if not self._send_now(request):
                self.send((), deadline)
            if not reader.is_empty:  # of another call here, which is served first
                return False
            if not self._look_out():
                if deadline is not None:
                    self._wait_until(deadline)
                reader.receive(self._socket.recv_into)
        except TimeoutError:
            raise
        except OSError as error:
            raise LaneClosed(*error.args) from error
        found = reader.peek()
        if found is None:
            return False
        header, body, end = found
        message = messages.decode_from_worker(header)
        if type(message) is not messages.Result or message.id != exchange.call_id or message.shared:
            return False
        exchange.is_answered = True  # before it is consumed: who is interrupted waits for no other
        reader.consume(end)
        exchange.restore(message, body)
        return True

    def _send_now(self, frame: bytes) -> bool:
        """Send a frame as far as goes without waiting; say whether nothing is left."""
        try:
            return self._writer.send_whole(frame, self._socket.send, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _wait_until(self, deadline: float) -> None:
        """Wait until something has come.

        Raises
        ------
        TimeoutError
            The deadline passed before.
        """
        while (left := deadline - time.monotonic()) > 0:
            if self._incoming.poll(min(left, MAX_POLL_SECONDS) * 1000):
                return
        raise TimeoutError

    def put(self, segments: Sequence[Segment]) -> None:
        """Take in a frame, for `send_ready` to send."""
        self._writer.put(segments)

    def send_ready(self) -> bool:
        """Send as much as goes without waiting; say whether nothing is left.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        try:
            self._let_wait(0.0)
            while not self._writer.send(self._socket.sendmsg):
                pass
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed(*error.args) from error
        return True

    # -- exchanges -----------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """Give an exchange, from now on, the frames that belong to it."""
        exchange.taken_before = self._writer.taken
        self._exchanges[exchange.call_id] = exchange

    def has_request_of(self, exchange: Exchange) -> bool:
        """Whether the request of an exchange that has begun was taken in, to be sent."""
        return self._writer.taken != exchange.taken_before

    def end(self, exchange: Exchange) -> None:
        """Drop what still comes for an exchange."""
        self._exchanges.pop(exchange.call_id, None)
        exchange.close()
        # A process that it has left may show more, without anybody's knowing of it.
        self._last = exchange.call_id, exchange.display, contextvars.copy_context()
        if exchange.lingers:
            self._lingering[exchange.call_id] = self._last
            if len(self._lingering) > MAX_LINGERING:
                self._lingering.popitem(last=False)
        if self._early:
            early, self._early = self._early, []
            for message, frame in early:
                self.show_late(message, frame)

    def show_late(self, message: messages.Late, frame: Frame) -> None:
        """Show what a call shows that has ended, in any thread, if it is known where that stood."""
        if message.call in self._exchanges:  # its answer has not been read yet
            self._early.append((message, frame))
            return
        number, display, context = self._lingering.get(message.call, self._last)
        if number == message.call:
            display = display or Display()
            display.stay(context)
            display.publish(message.kind, *messages.shown(frame.body), frame.buffers)

    def is_innermost(self, exchange: Exchange) -> bool:
        """Whether no other exchange has begun after one, and still goes on."""
        return next(reversed(self._exchanges), None) == exchange.call_id

    def receive(self, deadline: float | None = None) -> None:
        """Wait for the next frame, and give it to its exchange.

        Parameters
        ----------
        deadline
            `time.monotonic` at which to give up.

        Raises
        ------
        TimeoutError
            The deadline passed; nothing that was received so far is lost.
        LaneClosed
            The worker is gone.
        """
        while (frame := self._reader.next_frame()) is None:
            if self._reader.at_end:
                raise LaneClosed
            if self._look_out():
                continue
            try:
                self._limit(deadline)
                self._reader.receive(self._socket.recv_into)
            except TimeoutError:
                raise
            except OSError as error:
                raise LaneClosed(*error.args) from error
        self._route(frame)

    def _look_out(self) -> bool:
        """Stay awake for an answer, if no other thread here does; say whether one came."""
        taken: list[bool] = []
        try:
            taken.extend(map(_awake.acquire, (False,)))  # in C: Ctrl-C cannot lose the lock
            return taken[0] and self._spin_wait.look(self._has_come)
        finally:
            if taken and taken[0]:
                _awake.release()

    def _has_come(self) -> bool:
        if self._timeout:  # recv would wait so long, whatever its flags say
            self._let_wait(0.0)
        try:
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed(*error.args) from error
        return True

    def receive_ready(self) -> None:
        """Give the frames that have arrived to their exchanges, without waiting.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        while True:
            while (frame := self._reader.next_frame()) is not None:
                self._route(frame)
            if self._reader.at_end:
                raise LaneClosed
            if not self._has_come():
                return

    def _route(self, frame: Frame) -> None:
        """Give a frame to its exchange; what belongs to a call that was given up is dropped."""
        message = messages.decode_from_worker(frame.header)
        if isinstance(message, ANSWERS) and message.id in self._exchanges:
            exchange = self._exchanges[message.id]
            # Both, or an interrupt would have a caller wait for an answer that was read.
            exchange.is_answered = True
            self._reader.unrouted = None
            exchange.take(message, frame, self.marshaller)
            return
        self._reader.unrouted = None
        self._route_other(message, frame)

    def _route_other(self, message: messages.FromWorker, frame: Frame) -> None:
        if isinstance(message, messages.Hello):
            if self.on_hello is not None:
                self.on_hello(message)
            return
        if isinstance(message, messages.Requeued):
            if self.on_returned is not None:
                self.on_returned(message.ids)
            return
        if isinstance(message, messages.Quitting):
            if self.on_quitting is not None:
                self.on_quitting()
            return
        number = message.call if isinstance(message, messages.HostCall) else message.id
        if number in self._exchanges:
            self._exchanges[number].take(message, frame, self.marshaller)
        elif isinstance(message, messages.Event):
            if self.on_event is not None:
                self.on_event(message)
        elif isinstance(message, messages.WithValue):
            self.marshaller.drop(message)

    # -- in an event loop ----------------------------------------------------------------------

    async def converse(self, exchange: Exchange) -> None:
        """Send what is to be sent, and wait until an exchange has something new.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        if exchange.has_news:
            return
        loop = asyncio.get_running_loop()
        if self.send_ready() and self._look_out():
            self.receive_ready()
            if exchange.has_news:  # at once: the loop need not even be told of the lane
                return
        with self.read_in(loop):
            self.flush_soon()
            if exchange.has_news:  # a call inside this one has read it
                return
            waiter = loop.create_future()
            exchange.waiter = ref(waiter)
            try:
                await waiter
            finally:
                exchange.waiter = None

    @contextlib.contextmanager
    def read_in(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Have a loop read the lane, which may do so already for an outer exchange."""
        descriptor = self.fileno()
        if descriptor < 0:
            raise LaneClosed
        readers = self._loops.get(loop, 0)
        self._loops[loop] = readers + 1
        if not readers:
            loop.add_reader(descriptor, self._on_readable)
        try:
            yield
        finally:
            self._loops[loop] -= 1
            if not self._loops[loop]:
                del self._loops[loop]
                loop.remove_reader(descriptor)
                loop.remove_writer(descriptor)

    def _on_readable(self) -> None:
        try:
            self.receive_ready()
        except BaseException as error:  # noqa: BLE001 - handed over to the tasks that wait
            self._fail(error)

    def flush_soon(self) -> None:
        """Send what is to be sent, in the running loop, as the worker takes it."""
        loop = asyncio.get_running_loop()
        if not self.send_ready():
            loop.add_writer(self.fileno(), self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self.send_ready():
                loop.remove_writer(self.fileno())
        except LaneClosed as error:
            loop.remove_writer(self.fileno())
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.tell(error)

    # -- details -------------------------------------------------------------------------------

    def _limit(self, deadline: float | None) -> None:
        """Let the next system call wait until the deadline at most."""
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise TimeoutError
        self._let_wait(timeout)

    def _let_wait(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout

    def hang_up(self) -> None:
        """End the conversation from another thread: both ends see the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the lane, when no thread uses it. The worker sees it and ends."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self.marshaller.close()
            self._early.clear()
            self._lingering.clear()
            self._last = _NONE
        _open_lanes.discard(self)


_awake = threading.Lock()  # of who looks out; threads that take turns at that would all be slow
_open_lanes: WeakSet[OwnerLane] = WeakSet()


def _release_in_child() -> None:
    """Close every lane in a forked child: two processes on one stream would tear it."""
    for lane in list(_open_lanes):
        lane.close()


os.register_at_fork(after_in_child=_release_in_child)
