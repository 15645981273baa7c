"""Calls that a worker makes to functions of the notebook, on one lane."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from ..lane.answers import Interrupted, error_of, value_of
from ..lane.worker import WorkerLane
from ..protocol import messages
from ..protocol.frames import Frame, Segment
from ..protocol.messages import CELL

Answer = tuple[messages.Result | messages.Failure, Frame]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class HostCalls:
    """Calls functions of the notebook, for the calls of one lane.

    Parameters
    ----------
    lane
        The lane.
    cell_is_served
        Asked whether the owner listens to the cell that runs.
    """

    def __init__(self, lane: WorkerLane, cell_is_served: Callable[[], bool]) -> None:
        self._lane = lane
        self._cell_is_served = cell_is_served
        self._ids = itertools.count(1)
        self._running: set[int] = set()
        self._awaited: dict[int, Callable[[], None]] = {}
        self._answers: dict[int, Answer] = {}

    def begin(self, call_id: int) -> None:
        """Let a call make host calls."""
        self._running.add(call_id)

    def end(self, call_id: int) -> None:
        """Let a call make no more host calls: nobody would hear them."""
        self._running.discard(call_id)

    def take(self, message: messages.Result | messages.Failure, frame: Frame) -> None:
        """Take in an answer; one that nobody waits for any more is dropped."""
        tell = self._awaited.get(message.id)
        if tell is None:
            self._lane.carrier.drop(message)
        else:
            self._answers[message.id] = message, frame
            tell()

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
        self._awaited[number] = _nothing
        try:
            self._lane.send(frames)
            self._lane.wait(lambda: number in self._answers)
            return self._outcome(tool, *self._answers[number])
        finally:
            self._forget(number)

    async def acall(self, call_id: int, tool: str, arguments: Arguments) -> Any:
        """Do the same while the event loop goes on."""
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        number, frames = self._request(call_id, tool, arguments, can_nest=True)
        self._awaited[number] = partial(_tell, loop, answered)
        try:
            self._lane.send(frames)
            await answered.wait()
            return self._outcome(tool, *self._answers[number])
        finally:
            self._forget(number)

    def _request(
        self, call_id: int, tool: str, arguments: Arguments, can_nest: bool
    ) -> tuple[int, list[Segment]]:
        is_served = self._cell_is_served() if call_id == CELL else call_id in self._running
        if not is_served:
            msg = (
                f"host tool {tool!r} cannot be called: nobody listens; host tools work while a "
                "call, or a cell that the pool runs, has not ended"
            )
            raise RuntimeError(msg)
        try:
            body, buffers = self._lane.carrier.codec.dumps(arguments)
        except Exception as error:
            msg = f"an argument of host tool {tool!r} cannot travel to the notebook: {error}"
            raise TypeError(msg) from error
        number = next(self._ids)
        message = messages.HostCall(number, call_id, tool, can_nest)
        return number, self._lane.carrier.pack(message, body, buffers)

    def _forget(self, number: int) -> None:
        self._awaited.pop(number, None)
        self._answers.pop(number, None)

    def _outcome(self, tool: str, message: messages.Result | messages.Failure, frame: Frame) -> Any:
        carrier = self._lane.carrier
        if isinstance(message, messages.Result):
            return value_of(carrier, message, frame, tool)
        error = error_of(carrier, message, frame, tool, "notebook")
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt
        raise error


def _tell(loop: asyncio.AbstractEventLoop, answered: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was a thread's own, and has been closed
        loop.call_soon_threadsafe(answered.set)


def _nothing() -> None:
    pass
