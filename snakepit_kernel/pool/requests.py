"""Requests of calls: pickled before a lane is assigned, encoded for that lane afterwards."""

from __future__ import annotations

from ..protocol.frames import Segment
from ..protocol.messages import Apply, Call
from .scheduling.affinity import Home
from .tools import SharedFunction, ToolDefinitions, preamble
from .work_item import WorkItem
from .workers.worker import PooledLane


class ToolRequest:
    """A call of a tool.

    Parameters
    ----------
    definitions
        The tools defined in the notebook, which a worker may have to be sent first.
    tool
        Name of the tool.
    body, buffers
        The pickled arguments.
    room
        Chunks that a stream may send ahead; 0 for a tool that returns its value.
    home
        The worker that has a value which an argument stands for; None if there is none.
    keeps
        Whether the value stays in the worker.
    """

    __slots__ = ("_body", "_buffers", "_definitions", "_keeps", "_room", "_tool", "home")

    def __init__(
        self,
        definitions: ToolDefinitions,
        tool: str,
        body: bytes,
        buffers: list[memoryview],
        *,
        room: int = 0,
        home: Home[PooledLane] | None = None,
        keeps: bool = False,
    ) -> None:
        self._definitions = definitions
        self._tool = tool
        self._body = body
        self._buffers = buffers
        self._room = room
        self._keeps = keeps
        self.home = home

    def encode(self, lane: PooledLane, call_id: int, work: WorkItem) -> list[Segment]:
        """Encode the request for a lane, with the call's id there."""
        nested = work.nested_in
        message = Call(
            call_id,
            self._tool,
            work.session,
            self._room,
            0 if nested is None else nested.call_id,
            work.correlation,
            self._keeps,
        )
        segments = lane.marshaller.pack(message, self._body, self._buffers)
        missing = self._definitions.missing(lane, self._tool)
        return [*missing, *segments] if missing else segments


class FunctionRequest:
    """A call of a function that is sent with its arguments.

    Parameters
    ----------
    body, buffers
        The pickled function and arguments.
    home, keeps
        As for `ToolRequest`.
    """

    __slots__ = ("_body", "_buffers", "_keeps", "home")

    def __init__(
        self,
        body: bytes,
        buffers: list[memoryview],
        home: Home[PooledLane] | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        self._body = body
        self._buffers = buffers
        self._keeps = keeps
        self.home = home

    def encode(self, lane: PooledLane, call_id: int, work: WorkItem) -> list[Segment]:
        """Encode the request for a lane, with the call's id there."""
        message = Apply(call_id, work.session, work.inside, work.correlation, keeps=self._keeps)
        return [*preamble(lane), *lane.marshaller.pack(message, self._body, self._buffers)]


class SharedRequest:
    """A call of a function that many calls share, and that is sent once to each worker.

    Parameters
    ----------
    shared
        The function.
    body, buffers
        The pickled arguments.
    home
        As for `ToolRequest`.
    """

    __slots__ = ("_body", "_buffers", "_shared", "home")

    def __init__(
        self,
        shared: SharedFunction,
        body: bytes,
        buffers: list[memoryview],
        home: Home[PooledLane] | None = None,
    ) -> None:
        self._shared = shared
        self._body = body
        self._buffers = buffers
        self.home = home

    def encode(self, lane: PooledLane, call_id: int, work: WorkItem) -> list[Segment]:
        """Encode the request for a lane, with the call's id there."""
        shared = self._shared
        message = Apply(call_id, work.session, work.inside, work.correlation, shared.number)
        segments = lane.marshaller.pack(message, self._body, self._buffers)
        return [*shared.missing(lane), *segments]
