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
"""Messages that end an exchange."""

MAX_LINGERING = 1000
"""Ended calls of a lane whose late output is still shown."""


PlainAnswer = tuple[messages.Result, bytes, int]
"""An answer whose value is a pickle without buffers: message, pickle, and end of the frame."""

_EndedCall = tuple[int, Display | None, contextvars.Context]
"""Id, display and context of a call that has ended."""

_NO_CALL: _EndedCall = (0, None, contextvars.Context())


class LaneClosed(ConnectionError):
    """The worker closed its end, or died."""


class OwnerLane:
    """The owner's end of one lane, used by one caller at a time.

    Its caller has one exchange on it, and others nested in that: the calls that are made on behalf
    of the host calls of the first.

    Parameters
    ----------
    sock
        Connected stream socket.
    control
        The lane's control words.
    marshaller
        Encodes and decodes values.

    Attributes
    ----------
    on_returned
        Gets the ids of calls that the worker has returned unstarted.
    on_event
        Gets the events that the worker's code emits.
    on_hello
        Gets the worker's first message; what it raises is raised by `receive`.
    """

    def __init__(self, sock: socket.socket, control: ControlWords, marshaller: Marshaller) -> None:
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
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}  # loops that read it, with counts
        self.control = control
        self.on_returned: Callable[[list[int]], None] | None = None
        self.on_event: Callable[[messages.Event], None] | None = None
        self.on_quitting: Callable[[], None] | None = None
        self.on_hello: Callable[[messages.Hello], None] | None = None
        self.marshaller = marshaller
        self._lingering: OrderedDict[int, _EndedCall] = OrderedDict()
        self._last: _EndedCall = _NO_CALL
        self._late_before_answer: list[tuple[messages.Late, Frame]] = []
        self.depth = 0  # host calls that are being served, each nested in the one before
        _open_lanes.add(self)

    def fileno(self) -> int:
        """Return the socket's file descriptor, for event loops; -1 when it is closed."""
        return self._socket.fileno()

    @property
    def has_arrived(self) -> bool:
        """Whether something was received that has not been passed to its exchange."""
        return not self._reader.is_empty

    def new_call_id(self) -> int:
        """Return a new call id, higher than all before on this lane."""
        self.last_call_id += 1
        return self.last_call_id

    def send(self, segments: Sequence[Segment], deadline: float | None = None) -> None:
        """Send a frame; wait until the worker has read it.

        After an exception in the middle (Ctrl-C, the deadline) the rest of the frame stays queued,
        and the next `send` sends it first, so the stream stays intact.

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
                self._set_deadline(deadline)
            while not self._writer.send(self._socket.sendmsg):
                self._set_deadline(deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise LaneClosed(*error.args) from error

    def ask(self, exchange: Exchange, segments: Sequence[Segment], deadline: float | None) -> bool:
        """Send a request, and receive its answer if a plain value is the next frame.

        That is the common case: one system call sends, one receives. `receive` does all else.

        Returns
        -------
        bool
            Whether the exchange is answered.

        Raises
        ------
        TimeoutError, LaneClosed
            As for `send`.
        """
        request = _plain_frame(segments)
        if request is None:
            self.send(segments, deadline)
            return False
        reader = self._reader
        try:
            if self._timeout is not None:
                self._set_timeout(None)
            if not self._send_whole(request):
                self.send((), deadline)
            if not reader.is_empty:  # frames of another call, which come first
                return False
            if not self._spin():
                if deadline is not None:
                    self._wait_until(deadline)
                reader.receive(self._socket.recv_into)
        except TimeoutError:
            raise
        except OSError as error:
            raise LaneClosed(*error.args) from error
        if (found := self._peek_result(exchange)) is None:
            return False
        message, body, end = found
        exchange.is_answered = True  # before it is consumed: an interrupt must not wait for another
        reader.consume(end)
        exchange.restore(message, body)
        return True

    def send_now(self, segments: Sequence[Segment]) -> bool:
        """Queue a frame, and send what goes without waiting; return whether nothing is left.

        Whether the worker is gone shows when its answer is received.
        """
        request = _plain_frame(segments)
        try:
            if request is not None:
                return self._send_whole(request)
            self.put(segments)
            return self.send_ready()
        except OSError:
            return False

    def await_answer(self, exchange: Exchange, seconds: float) -> PlainAnswer | None:
        """Wait for the answer to a request; return it if a plain value is the next frame.

        None if it does not come in time, or anything else does, such as the end of the lane:
        `receive_ready` gives that to the exchange, or raises the error.
        """
        try:
            if not self._spin():
                if not self._incoming.poll(min(seconds, MAX_POLL_SECONDS) * 1000):
                    return None
                self._receive_nowait()
        except LaneClosed:
            return None
        return self._peek_result(exchange)

    def take_answer(self, exchange: Exchange, found: PlainAnswer) -> bool:
        """Restore the value of an answer that was awaited; return whether that was possible.

        If not, `receive_ready` finds the answer once more, and its exchange gets the error.
        """
        message, body, end = found
        exchange.restore(message, body)
        if exchange.has_failed:
            return False
        exchange.is_answered = True  # not before: after an interrupt it is restored once more
        self._reader.consume(end)
        return True

    def _peek_result(self, exchange: Exchange) -> PlainAnswer | None:
        """Return the next frame if it is the plain value of an exchange, and where it ends."""
        found = self._reader.peek()
        if found is None:
            return None
        header, body, end = found
        message = messages.decode_from_worker(header)
        if type(message) is not messages.Result or message.id != exchange.call_id or message.shared:
            return None
        return message, body, end

    def _send_whole(self, frame: bytes) -> bool:
        """Send as much of a frame as goes without waiting; return whether nothing is left."""
        try:
            return self._writer.send_whole(frame, self._socket.send, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False

    def _wait_until(self, deadline: float) -> None:
        """Wait until something has arrived.

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
        """Queue a frame, for `send_ready` to send."""
        self._writer.put(segments)

    def send_ready(self) -> bool:
        """Send as much as possible without waiting; return whether nothing is left.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        try:
            self._set_timeout(0.0)
            while not self._writer.send(self._socket.sendmsg):
                pass
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed(*error.args) from error
        return True

    # -- exchanges -----------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """Register an exchange to receive the frames of its call."""
        exchange.taken_before = self._writer.taken
        self._exchanges[exchange.call_id] = exchange

    def has_request_of(self, exchange: Exchange) -> bool:
        """Whether the request of a registered exchange has been queued or sent."""
        return self._writer.taken != exchange.taken_before

    def end(self, exchange: Exchange) -> None:
        """Unregister an exchange; later frames of its call are dropped."""
        self._exchanges.pop(exchange.call_id, None)
        exchange.close()
        # A process that it has left may show more, which the worker cannot know.
        self._last = exchange.call_id, exchange.display, contextvars.copy_context()
        if exchange.lingers:
            self._lingering[exchange.call_id] = self._last
            if len(self._lingering) > MAX_LINGERING:
                self._lingering.popitem(last=False)
        if self._late_before_answer:
            waiting, self._late_before_answer = self._late_before_answer, []
            for message, frame in waiting:
                self.show_late(message, frame)

    def show_late(self, message: messages.Late, frame: Frame) -> None:
        """Show late output of a call, in any thread, if its display is still known."""
        if message.call in self._exchanges:  # its answer has not been read yet
            self._late_before_answer.append((message, frame))
            return
        number, display, context = self._lingering.get(message.call, self._last)
        if number == message.call:
            display = display or Display()
            display.use_context(context)
            display.publish(message.kind, *messages.shown(frame.body), frame.buffers)

    def is_innermost(self, exchange: Exchange) -> bool:
        """Whether an exchange is the last that has begun, of those that go on."""
        return next(reversed(self._exchanges), None) == exchange.call_id

    def receive(self, deadline: float | None = None) -> None:
        """Wait for the next frame, and pass it to its exchange.

        Parameters
        ----------
        deadline
            `time.monotonic` at which to stop waiting.

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
            if self._spin():
                continue
            try:
                self._set_deadline(deadline)
                self._reader.receive(self._socket.recv_into)
            except TimeoutError:
                raise
            except OSError as error:
                raise LaneClosed(*error.args) from error
        self._route(frame)

    def _spin(self) -> bool:
        """Spin for an answer, unless another thread spins; return whether data arrived."""
        acquired: list[bool] = []
        try:
            acquired.extend(map(_spinning.acquire, (False,)))  # in C: Ctrl-C cannot lose the lock
            return acquired[0] and self._spin_wait.poll(self._receive_nowait)
        finally:
            if acquired and acquired[0]:
                _spinning.release()

    def _receive_nowait(self) -> bool:
        if self._timeout:  # recv would wait so long, whatever its flags say
            self._set_timeout(0.0)
        try:
            self._reader.receive(self._recv_now)
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed(*error.args) from error
        return True

    def receive_ready(self) -> None:
        """Pass the frames that have arrived to their exchanges, without waiting.

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
            if not self._receive_nowait():
                return

    def _route(self, frame: Frame) -> None:
        """Pass a frame to its exchange; drop it if its call was abandoned."""
        message = messages.decode_from_worker(frame.header)
        if isinstance(message, ANSWERS) and message.id in self._exchanges:
            exchange = self._exchanges[message.id]
            # No call between these: no caller waits for an answer that was read.
            exchange.is_answered = True
            self._reader.unrouted = None
            exchange.receive(message, frame, self.marshaller)
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
            self._exchanges[number].receive(message, frame, self.marshaller)
        elif isinstance(message, messages.Event):
            if self.on_event is not None:
                self.on_event(message)
        elif isinstance(message, messages.WithValue):
            self.marshaller.discard(message)

    # -- in an event loop ----------------------------------------------------------------------

    async def converse(self, exchange: Exchange) -> None:
        """Send what is queued, and wait until an exchange has a chunk or its answer.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        if exchange.has_news:
            return
        loop = asyncio.get_running_loop()
        if self.send_ready() and self._spin():
            self.receive_ready()
            if exchange.has_news:  # at once: the loop need not read the lane
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
        """Let a loop read the lane; it may already do so for an outer exchange."""
        descriptor = self.fileno()
        if descriptor < 0:
            raise LaneClosed
        readers = self._loops.get(loop, 0)
        self._loops[loop] = readers + 1
        if not readers:
            loop.add_reader(descriptor, self.read_arrived)
        try:
            yield
        finally:
            self._loops[loop] -= 1
            if not self._loops[loop]:
                del self._loops[loop]
                loop.remove_reader(descriptor)
                loop.remove_writer(descriptor)

    def read_arrived(self) -> None:
        """Pass what has arrived to its exchanges, or the error that ends the lane."""
        try:
            self.receive_ready()
        except BaseException as error:  # noqa: BLE001 - handed over to the tasks that wait
            self._wake_all(error)

    def flush_soon(self) -> None:
        """Send what is queued, in the running loop, as the worker reads it."""
        loop = asyncio.get_running_loop()
        if not self.send_ready():
            loop.add_writer(self.fileno(), self._flush, loop)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            if self.send_ready():
                loop.remove_writer(self.fileno())
        except LaneClosed as error:
            loop.remove_writer(self.fileno())
            self.end_after_write(error)

    def end_after_write(self, error: LaneClosed) -> None:
        """Pass on what the worker has sent before its end, which a write was first to notice."""
        try:
            self.receive_ready()
        except BaseException as later:  # noqa: BLE001 - handed over to the tasks that wait
            self._wake_all(later)
        else:
            self._wake_all(error)

    def _wake_all(self, error: BaseException) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.wake(error)

    # -- details -------------------------------------------------------------------------------

    def _set_deadline(self, deadline: float | None) -> None:
        """Set the socket's timeout so that the next system call ends at the deadline."""
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise TimeoutError
        self._set_timeout(timeout)

    def _set_timeout(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout

    def hang_up(self) -> None:
        """Shut the socket down, from another thread: both ends see the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the lane, when no thread uses it. The worker notices, and ends."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self.marshaller.close()
            self._late_before_answer.clear()
            self._lingering.clear()
            self._last = _NO_CALL
        _open_lanes.discard(self)


def _plain_frame(segments: Sequence[Segment]) -> bytes | None:
    """Return a frame that is one segment of bytes; None for any other."""
    frame = segments[0]
    return frame if len(segments) == 1 and isinstance(frame, bytes) else None


_spinning = threading.Lock()  # held while spinning: threads that spin in turn would all be slow
_open_lanes: WeakSet[OwnerLane] = WeakSet()


def _close_in_child() -> None:
    """Close every lane in a forked child: two users would corrupt the stream."""
    for lane in list(_open_lanes):
        lane.close()


os.register_at_fork(after_in_child=_close_in_child)
