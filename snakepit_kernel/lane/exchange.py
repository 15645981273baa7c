"""State of one call on a lane, from its request to its reply."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import frames_alone
from ..output.display import Display
from ..protocol import messages
from ..protocol.codec import loads
from ..protocol.frames import Frame
from ..protocol.messages import (
    Chunk,
    Configured,
    Failure,
    HostCall,
    HostToolCall,
    Output,
    Progress,
    Result,
    SessionCall,
    Shown,
    shown,
)
from .marshalling import Marshaller
from .replies import Interrupted, cannot_restore, decode_error, decode_value

OnNews = Callable[[BaseException | None], None]
OnHostCall = Callable[[HostCall, Frame], None]


class Closable(Protocol):
    """What a call has opened in the owner's process."""

    def close(self) -> None:
        """Close it, without waiting."""


class Exchange:
    """The owner's state of one call, from its request to its reply.

    Parameters
    ----------
    call_id
        The call's id on its lane.
    name
        Name of what is called, for errors.
    display
        Shows what the call prints, and its progress bars; by default one is made when needed.
    raise_original
        Raise the remote exception itself if it could be pickled, as executors do; else a
        `ToolError`.

    Attributes
    ----------
    is_answered
        Whether the answer has arrived.
    display
        Shows its output; None if it had none so far, and none was given.
    lingers
        Whether the call has left threads or tasks that may show more.
    chunks
        Chunks of a stream that have not been taken yet.
    on_host_call
        Gets each host call; set by the code that drives the lane.
    on_news
        Called when a chunk or the answer has arrived, or with the error that ends the lane.
    opened
        What its host calls have opened for it, by numbers that the worker gives; closed with it.
    deferred
        Host calls that arrived while too many others were being served, each nested in the one
        before.
    taken_before
        What the lane's writer had queued when the exchange began.
    waiter
        The future that a task of an event loop awaits. Only the task holds it: a future whose loop
        was closed must not be kept alive here.
    """

    __slots__ = (
        "_exception",
        "_raise_original",
        "_value",
        "call_id",
        "chunks",
        "deferred",
        "display",
        "is_answered",
        "lingers",
        "name",
        "on_host_call",
        "on_news",
        "opened",
        "taken_before",
        "waiter",
    )

    def __init__(
        self,
        call_id: int,
        name: str,
        *,
        display: Display | None = None,
        raise_original: bool = False,
    ) -> None:
        self.call_id = call_id
        self.name = name
        self.is_answered = False
        self.lingers = False
        self.taken_before = 0
        self.chunks: deque[Any] = deque()
        self.on_host_call: OnHostCall | None = None
        self.on_news: OnNews | None = None
        self.opened: dict[int, Closable] | None = None
        self.deferred: deque[tuple[HostCall, Frame]] = deque()
        self.waiter: weakref.ref[asyncio.Future[None]] | None = None
        self.display = display
        self._raise_original = raise_original
        self._value: Any = None
        self._exception: BaseException | None = None

    def receive(self, message: messages.FromWorker, frame: Frame, marshaller: Marshaller) -> None:
        """Handle a message of this call; decode its value with the lane's marshaller."""
        match message:
            case Result():
                self.lingers = message.lingers
                # Before it is restored: a caller interrupted there must not wait for another one.
                self.is_answered = True
                self._restore_value(message, frame, marshaller)
            case Chunk():
                self.chunks.append(self._restore_chunk(message, frame, marshaller))
            case Failure():
                self.lingers = message.lingers
                self.is_answered = True
                self._exception = decode_error(
                    marshaller,
                    message,
                    frame,
                    self.name,
                    "worker",
                    raise_original=self._raise_original,
                )
            case Output():
                self.open_display().write(message.stream, message.text)
                return
            case Shown(kind=kind):
                self.open_display().publish(kind, *shown(frame.body), frame.buffers)
                return
            case HostToolCall() | SessionCall():
                if self.on_host_call is not None:
                    self.on_host_call(message, frame)
                return
            case Progress():
                self.open_display().move(message.bar, message.settings, ended=message.ended)
                return
            case Configured():
                self.is_answered = True
                self._value = message
        self.wake()

    @property
    def has_failed(self) -> bool:
        """Whether its outcome is an exception."""
        return self._exception is not None

    @property
    def where_interrupted(self) -> str:
        """Where its code was when it was interrupted, as frames; empty when it was not."""
        if not isinstance(self._exception, Interrupted):
            return ""
        return frames_alone(self._exception.traceback, KeyboardInterrupt.__name__, "")

    @property
    def has_news(self) -> bool:
        """Whether a chunk or the answer has arrived and was not taken."""
        return self.is_answered or bool(self.chunks)

    def wake(self, error: BaseException | None = None) -> None:
        """Wake the task that waits, if any, or end its wait with an error."""
        if self.on_news is not None:
            self.on_news(error)
        waiter = self.waiter() if self.waiter is not None else None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    def open_display(self) -> Display:
        """Return the display of the call's output."""
        if self.display is None:
            self.display = Display()
        return self.display

    def close(self) -> None:
        """Close the call's display and drop its callbacks: nothing more arrives.

        The callbacks refer to the exchange in turn: a reference cycle would keep its value until
        the garbage collector runs.
        """
        self.on_host_call = self.on_news = None
        if self.display is not None:
            self.display.close()
        if self.opened is not None:
            opened, self.opened = self.opened, None
            for each in list(opened.values()):  # another thread may add to them
                each.close()

    def outcome(self) -> Any:
        """Return the call's value, or raise its exception; to be called once."""
        error, self._exception = self._exception, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # a frame of its traceback would refer to it

    def _restore_value(self, message: Result, frame: Frame, marshaller: Marshaller) -> None:
        try:
            self._value = decode_value(marshaller, message, frame, self.name)
        except Exception as error:  # noqa: BLE001 - it is this call's outcome, not the reader's
            self._exception = error

    def restore(self, message: Result, body: bytes) -> None:
        """Restore the value of an answer that is a pickle without buffers."""
        self.lingers = message.lingers
        try:
            self._value = loads(body)
        except Exception as error:  # noqa: BLE001 - it is this call's outcome, not the reader's
            self._exception = cannot_restore(self.name, error)

    def _restore_chunk(self, message: Chunk, frame: Frame, marshaller: Marshaller) -> Any:
        try:
            return decode_value(marshaller, message, frame, self.name)
        except Exception as error:  # noqa: BLE001 - it is raised when its turn has come
            return BrokenChunk(error)

    def next_chunk(self) -> Any:
        """Take the oldest chunk, or raise the error with which it could not be restored."""
        chunk = self.chunks.popleft()
        if type(chunk) is BrokenChunk:
            raise chunk.error
        return chunk


class BrokenChunk:
    """Placeholder of a chunk that could not be restored."""

    def __init__(self, error: Exception) -> None:
        self.error = error
