"""Calls of host tools (functions of the notebook) from a worker, over one lane."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ..lane.replies import Interrupted, decode_error, decode_value
from ..lane.worker_end import WorkerLane
from ..processes import children
from ..protocol import messages
from ..protocol.codec import pickled
from ..protocol.frames import Frame, Segment
from ..protocol.messages import CELL, HostCall, HostToolCall, SessionCall, SessionPart
from ..telemetry.correlation import correlation_id, stamp
from ..tools.context import Arguments, session_ended_error
from .emitter import Emitter

Answer = tuple[messages.Result | messages.Failure, Frame]

MakeHostCall = Callable[[int, int, bool], HostCall]
"""Makes the message, from the id of the host call, the call that makes it, and `reentrant`."""


class HostCalls:
    """Calls host tools, and methods of the session, on behalf of the calls of one lane.

    Parameters
    ----------
    lane
        The lane.
    is_cell_served
        Returns whether the owner serves the running cell's host calls.

    Attributes
    ----------
    events
        Sends the events that these calls emit.
    interrupted
        The last call whose host call was interrupted, and so the call with it; 0 for none.
    """

    def __init__(self, lane: WorkerLane, is_cell_served: Callable[[], bool]) -> None:
        self.events = Emitter(lane)
        self.interrupted = 0
        self._lane = lane
        self._is_cell_served = is_cell_served
        self._ids = itertools.count(1)
        self._running: set[int] = set()
        self._awaited: dict[int, tuple[int, Callable[[], None]]] = {}  # the caller, and its waker
        self._answers: dict[int, Answer] = {}

    def begin(self, call_id: int) -> None:
        """Allow a call to make host calls."""
        self._running.add(call_id)

    def end(self, call_id: int) -> None:
        """Forbid a call further host calls, and end those it has left: none will be answered."""
        self._running.discard(call_id)
        if self._awaited:
            for caller, wake in list(self._awaited.values()):
                if caller == call_id:
                    wake()

    def receive_reply(self, message: messages.Result | messages.Failure, frame: Frame) -> None:
        """Store an answer and wake its caller; discard it if no caller waits any more."""
        awaited = self._awaited.get(message.id)
        if awaited is None:
            self._lane.marshaller.discard(message)
        else:
            self._answers[message.id] = message, frame
            awaited[1]()

    def call(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Call a host tool from a call, in any thread, and wait for its value.

        Raises
        ------
        RuntimeError
            The call, or cell, has ended; or the owner does not serve its host calls.
        TypeError
            An argument cannot be pickled.
        ToolNotFound, InvalidArguments
            There is no such host tool, or the arguments do not fit; nothing ran.
        ToolError
            The host tool raised; ``__cause__`` is the exception itself if it can be pickled.
        """
        return self._call(call_id, partial(HostToolCall, tool=tool), arguments)

    def call_session(
        self, call_id: int, part: SessionPart, method: str, arguments: Arguments
    ) -> Any:
        """Call a method of a part of the session, in the same way and with the same errors."""
        return self._call(call_id, partial(SessionCall, part=part, method=method), arguments)

    def _call(self, call_id: int, make: MakeHostCall, arguments: Arguments) -> Any:
        # A thread that a tool started cannot serve calls: these belong to the lane's own thread.
        call, frames = self._request(call_id, make, arguments, self._lane.is_own_thread)
        number = call.id
        self._awaited[number] = call_id, _nothing
        try:
            self._lane.send(frames)
            self._lane.wait(lambda: number in self._answers or not self._is_served(call_id))
            try:
                return self._outcome(call)
            except KeyboardInterrupt:
                self.interrupted = call_id
                raise
        finally:
            self._forget(number)

    async def acall(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Do the same as `call`, without blocking the event loop."""
        return await self._acall(call_id, partial(HostToolCall, tool=tool), arguments)

    async def acall_session(
        self, call_id: int, part: SessionPart, method: str, arguments: Arguments
    ) -> Any:
        """Do the same as `call_session`, without blocking the event loop."""
        make = partial(SessionCall, part=part, method=method)
        return await self._acall(call_id, make, arguments)

    async def _acall(self, call_id: int, make: MakeHostCall, arguments: Arguments) -> Any:
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        call, frames = self._request(call_id, make, arguments, reentrant=True)
        self._awaited[call.id] = call_id, partial(_set, loop, answered)
        try:
            with self._lane.also_read_in(loop):  # perhaps a loop that the tool has made
                self._lane.send(frames)
                await answered.wait()
            try:
                return self._outcome(call)
            except KeyboardInterrupt:  # which would end the loop, not the task
                msg = f"{_title(call)} was interrupted"
                raise asyncio.CancelledError(msg) from None
        finally:
            self._forget(call.id)

    def _request(
        self, call_id: int, make: MakeHostCall, arguments: Arguments, reentrant: bool
    ) -> tuple[HostCall, list[Segment]]:
        call = make(next(self._ids), call_id, reentrant)
        if children.is_child:
            msg = (
                f"{_title(call)} cannot be used in a forked child: the notebook talks to its "
                "parent alone"
            )
            raise RuntimeError(msg)
        if not self._is_served(call_id):
            raise _ended_error(call)
        marshaller = self._lane.marshaller
        body, buffers = pickled(marshaller.codec, _title(call), *arguments, to="the notebook")
        return call, marshaller.pack(call, body, buffers)

    def _is_served(self, call_id: int) -> bool:
        return self._is_cell_served() if call_id == CELL else call_id in self._running

    def _forget(self, number: int) -> None:
        self._awaited.pop(number, None)
        self._answers.pop(number, None)

    def _outcome(self, call: HostCall) -> Any:
        if call.id not in self._answers:
            raise _ended_error(call)
        message, frame = self._answers[call.id]
        marshaller = self._lane.marshaller
        if isinstance(message, messages.Result):
            return decode_value(marshaller, message, frame, call.target)
        error = decode_error(marshaller, message, frame, call.target, "notebook")
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt
        stamp(error, correlation_id())
        raise error


def _title(call: HostCall) -> str:
    return f"host tool {call.tool!r}" if isinstance(call, HostToolCall) else "the session"


def _ended_error(call: HostCall) -> RuntimeError:
    """Return the error of a host call whose call, or cell, has ended."""
    if isinstance(call, SessionCall):
        return session_ended_error()
    return RuntimeError(
        f"{_title(call)} cannot be called any more; host tools work while a call, or a "
        "cell that the pool runs, has not ended"
    )


def _set(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was a thread's own, and has been closed
        loop.call_soon_threadsafe(answered.set)


def _nothing() -> None:
    pass
