"""One call's conversation on a lane, whoever reads the lane for it."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from ..output.display import Display
from ..protocol import messages
from ..protocol.codec import loads
from ..protocol.frames import Frame
from ..protocol.messages import (
    Chunk,
    Configured,
    Failure,
    HostCall,
    Output,
    Progress,
    Result,
    Shown,
    shown,
)
from .marshalling import Marshaller
from .replies import cannot_restore, decode_error, value_of

OnNews = Callable[[BaseException | None], None]
OnHostCall = Callable[[HostCall, Frame], None]


class Exchange:
    """A call from its request to its reply.

    Parameters
    ----------
    call_id
        The call's id on its lane.
    name
        What is called, for errors.
    display
        Shows what the call prints, and its progress bars; by default it is done here.
    raise_original
        Raise the remote exception itself where it can travel, as executors do; else a `ToolError`.

    Attributes
    ----------
    is_answered
        Whether the answer is here.
    display
        What shows its output; None when it had none so far, and no place was given.
    lingers
        Whether it has left something that may show more.
    chunks
        What a stream has yielded and nobody has taken yet.
    on_host_call
        Gets each call that comes back; set by whoever drives the lane.
    on_news
        Called when something is here, or with the error that ends the lane.
    deferred
        Calls that came back while too many others were being served, each inside the one before.
    taken_before
        What the lane's writer had taken in when it began.
    waiter
        What a task of an event loop waits for, held by that task alone: one whose loop was closed
        must not live on here.
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
        self.deferred: deque[tuple[HostCall, Frame]] = deque()
        self.waiter: weakref.ref[asyncio.Future[None]] | None = None
        self.display = display
        self._raise_original = raise_original
        self._value: Any = None
        self._exception: BaseException | None = None

    def take(self, message: messages.FromWorker, frame: Frame, marshaller: Marshaller) -> None:
        """Take in a message of this call, and its value from the lane's carrier."""
        match message:
            case Result():
                self.lingers = message.lingers
                # Before it is restored: who is interrupted there must not wait for another one.
                self.is_answered = True
                self._restore_value(message, frame, marshaller)
            case Chunk():
                self.chunks.append(self._restored_chunk(message, frame, marshaller))
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
                self._shown().write(message.stream, message.text)
                return
            case Shown(kind=kind):
                self._shown().publish(kind, *shown(frame.body), frame.buffers)
                return
            case HostCall():
                if self.on_host_call is not None:
                    self.on_host_call(message, frame)
                return
            case Progress():
                self._shown().move(message.bar, message.settings, ended=message.ended)
                return
            case Configured():
                self.is_answered = True
                self._value = message
        self.tell()

    @property
    def has_news(self) -> bool:
        """Whether something is here that nobody has taken."""
        return self.is_answered or bool(self.chunks)

    def tell(self, error: BaseException | None = None) -> None:
        """Wake the task that waits, if one does, or end its wait with an error."""
        if self.on_news is not None:
            self.on_news(error)
        waiter = self.waiter() if self.waiter is not None else None
        if waiter is None or waiter.done():
            return
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)

    def _shown(self) -> Display:
        if self.display is None:
            self.display = Display()
        return self.display

    def close(self) -> None:
        """End what the call still shows: nothing more comes.

        Whoever is told of its news refers to it in turn: that would keep its value until the
        garbage collector comes.
        """
        self.on_host_call = self.on_news = None
        if self.display is not None:
            self.display.close()

    def outcome(self) -> Any:
        """Return the call's value, or raise its exception; to be asked once."""
        error, self._exception = self._exception, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error  # a frame of its traceback would refer to it

    def _restore_value(self, message: Result, frame: Frame, marshaller: Marshaller) -> None:
        try:
            self._value = value_of(marshaller, message, frame, self.name)
        except Exception as error:  # noqa: BLE001 - it is this call's outcome, not the reader's
            self._exception = error

    def restore(self, message: Result, body: bytes) -> None:
        """Take in a value that is a pickle and nothing else."""
        self.lingers = message.lingers
        try:
            self._value = loads(body)
        except Exception as error:  # noqa: BLE001 - it is this call's outcome, not the reader's
            self._exception = cannot_restore(self.name, error)

    def _restored_chunk(self, message: Chunk, frame: Frame, marshaller: Marshaller) -> Any:
        try:
            return value_of(marshaller, message, frame, self.name)
        except Exception as error:  # noqa: BLE001 - it is raised when its turn has come
            return Broken(error)

    def next_chunk(self) -> Any:
        """Return the oldest chunk that nobody has taken, or raise why it cannot be restored."""
        chunk = self.chunks.popleft()
        if type(chunk) is Broken:
            raise chunk.error
        return chunk


class Broken:
    """Stands in the place of a chunk that could not be restored."""

    def __init__(self, error: Exception) -> None:
        self.error = error
