"""Calls that a worker makes to functions of the notebook, on one lane."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ..lane.replies import Interrupted, decode_error, value_of
from ..lane.worker_end import WorkerLane
from ..processes import children
from ..protocol import messages
from ..protocol.codec import pickled
from ..protocol.frames import Frame, Segment
from ..protocol.messages import CELL
from ..telemetry.correlation import correlation_id, stamp
from ..tools.context import SESSION_TOOL, Arguments, unheard
from .emitter import Emitter

Answer = tuple[messages.Result | messages.Failure, Frame]


class HostCalls:
    """Calls functions of the notebook, for the calls of one lane.

    Parameters
    ----------
    lane
        The lane.
    cell_is_served
        Asked whether the owner listens to the cell that runs.

    Attributes
    ----------
    events
        Sends what these calls tell of.
    interrupted
        The last call whose host call was interrupted, and so the call with it; 0 for none.
    """

    def __init__(self, lane: WorkerLane, cell_is_served: Callable[[], bool]) -> None:
        self.events = Emitter(lane)
        self.interrupted = 0
        self._lane = lane
        self._cell_is_served = cell_is_served
        self._ids = itertools.count(1)
        self._running: set[int] = set()
        self._awaited: dict[int, tuple[int, Callable[[], None]]] = {}  # by call, and whom to tell
        self._answers: dict[int, Answer] = {}

    def begin(self, call_id: int) -> None:
        """Let a call make host calls."""
        self._running.add(call_id)

    def end(self, call_id: int) -> None:
        """Let a call make no more host calls, and end those it has left: nobody hears them."""
        self._running.discard(call_id)
        if self._awaited:
            for caller, tell in list(self._awaited.values()):
                if caller == call_id:
                    tell()

    def take(self, message: messages.Result | messages.Failure, frame: Frame) -> None:
        """Take in an answer; one that nobody waits for any more is dropped."""
        awaited = self._awaited.get(message.id)
        if awaited is None:
            self._lane.marshaller.drop(message)
        else:
            self._answers[message.id] = message, frame
            awaited[1]()

    def call(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Call a host tool from a call, in any thread, and wait for its value.

        Raises
        ------
        RuntimeError
            The call, or cell, has ended; or nobody listens to it.
        TypeError
            An argument cannot travel.
        ToolNotFound, InvalidArguments
            There is no such host tool, or the arguments do not fit; nothing ran.
        ToolError
            The host tool raised; ``__cause__`` is the exception itself when it can travel.
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
        """Do the same while the event loop goes on."""
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        number, frames = self._request(call_id, tool, arguments, reentrant=True)
        self._awaited[number] = call_id, partial(_tell, loop, answered)
        try:
            with self._lane.also_read_in(loop):  # which may be one that the tool has made
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
            raise _of_child(tool)
        if not self._is_served(call_id):
            raise unheard(tool)
        codec = self._lane.marshaller.codec
        body, buffers = pickled(codec, f"host tool {tool!r}", *arguments, to="the notebook")
        number = next(self._ids)
        message = messages.HostCall(number, call_id, tool, reentrant)
        return number, self._lane.marshaller.pack(message, body, buffers)

    def _is_served(self, call_id: int) -> bool:
        return self._cell_is_served() if call_id == CELL else call_id in self._running

    def _answered(self, number: int, tool: str) -> Any:
        if number not in self._answers:
            raise unheard(tool)
        return self._outcome(tool, *self._answers[number])

    def _forget(self, number: int) -> None:
        self._awaited.pop(number, None)
        self._answers.pop(number, None)

    def _outcome(self, tool: str, message: messages.Result | messages.Failure, frame: Frame) -> Any:
        marshaller = self._lane.marshaller
        if isinstance(message, messages.Result):
            return value_of(marshaller, message, frame, tool)
        error = decode_error(marshaller, message, frame, tool, "notebook")
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt
        stamp(error, correlation_id())
        raise error


def _of_child(tool: str) -> RuntimeError:
    what = "the session" if tool == SESSION_TOOL else f"host tool {tool!r}"
    msg = f"{what} cannot be used in a forked child: the notebook talks to its parent alone"
    return RuntimeError(msg)


def _tell(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was a thread's own, and has been closed
        loop.call_soon_threadsafe(answered.set)


def _nothing() -> None:
    pass
