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
from ..protocol.messages import CELL
from ..telemetry.correlation import correlation_id, stamp
from ..tools.context import SESSION_TOOL, Arguments, call_ended_error
from .emitter import Emitter

Answer = tuple[messages.Result | messages.Failure, Frame]


class HostCalls:
    """Calls host tools on behalf of the calls of one lane.

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
        # A thread that a tool started cannot serve calls: these belong to the lane's own thread.
        number, frames = self._request(call_id, tool, arguments, self._lane.is_own_thread)
        self._awaited[number] = call_id, _nothing
        try:
            self._lane.send(frames)
            self._lane.wait(lambda: number in self._answers or not self._is_served(call_id))
            try:
                return self._answered(number, tool)
            except KeyboardInterrupt:
                self.interrupted = call_id
                raise
        finally:
            self._forget(number)

    async def acall(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Do the same as `call`, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        number, frames = self._request(call_id, tool, arguments, reentrant=True)
        self._awaited[number] = call_id, partial(_set, loop, answered)
        try:
            with self._lane.also_read_in(loop):  # perhaps a loop that the tool has made
                self._lane.send(frames)
                await answered.wait()
            try:
                return self._answered(number, tool)
            except KeyboardInterrupt:  # which would end the loop, not the task
                msg = f"host tool {tool!r} was interrupted"
                raise asyncio.CancelledError(msg) from None
        finally:
            self._forget(number)

    def _request(
        self, call_id: int, tool: str, arguments: Arguments, reentrant: bool
    ) -> tuple[int, list[Segment]]:
        if children.is_child:
            raise _forked_child_error(tool)
        if not self._is_served(call_id):
            raise call_ended_error(tool)
        codec = self._lane.marshaller.codec
        body, buffers = pickled(codec, f"host tool {tool!r}", *arguments, to="the notebook")
        number = next(self._ids)
        message = messages.HostCall(number, call_id, tool, reentrant)
        return number, self._lane.marshaller.pack(message, body, buffers)

    def _is_served(self, call_id: int) -> bool:
        return self._is_cell_served() if call_id == CELL else call_id in self._running

    def _answered(self, number: int, tool: str) -> Any:
        if number not in self._answers:
            raise call_ended_error(tool)
        return self._outcome(tool, *self._answers[number])

    def _forget(self, number: int) -> None:
        self._awaited.pop(number, None)
        self._answers.pop(number, None)

    def _outcome(self, tool: str, message: messages.Result | messages.Failure, frame: Frame) -> Any:
        marshaller = self._lane.marshaller
        if isinstance(message, messages.Result):
            return decode_value(marshaller, message, frame, tool)
        error = decode_error(marshaller, message, frame, tool, "notebook")
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt
        stamp(error, correlation_id())
        raise error


def _forked_child_error(tool: str) -> RuntimeError:
    what = "the session" if tool == SESSION_TOOL else f"host tool {tool!r}"
    msg = f"{what} cannot be used in a forked child: the notebook talks to its parent alone"
    return RuntimeError(msg)


def _set(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was a thread's own, and has been closed
        loop.call_soon_threadsafe(answered.set)


def _nothing() -> None:
    pass
