"""What a pool knows of its tools: the notebook's own functions, and how arguments are prepared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..protocol import messages
from ..protocol.encoders import encoders
from ..protocol.frames import Segment, pack
from ..protocol.messages import Define, Encode, ToolInfo
from ..protocol.values import Codec
from .validation import Validator
from .workers.worker import Seat


class Definitions:
    """The notebook's functions that are tools of a pool, ready to travel, each with a version.

    Parameters
    ----------
    codec
        How they are pickled.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._frames: dict[str, tuple[int, list[Segment]]] = {}
        self.infos: dict[str, ToolInfo] = {}
        self.validator = Validator()

    def add(self, info: ToolInfo, function: Callable[..., Any]) -> None:
        """Add a function, or replace it."""
        body, buffers = self._codec.dumps(function)
        version = self._frames[info.name][0] + 1 if info.name in self._frames else 1
        self._frames[info.name] = (version, pack(messages.encode(Define(info.name)), body, buffers))
        self.infos[info.name] = info

    def missing(self, seat: Seat, name: str) -> list[Segment]:
        """Return the frame that a worker needs before it can call a tool, or nothing."""
        definition = self._frames.get(name)
        if definition is None or seat.defined.get(name) == definition[0]:
            return ahead(seat)
        seat.defined[name] = definition[0]
        return [*ahead(seat), *definition[1]]


def ahead(seat: Seat) -> list[Segment]:
    """Return the frames that a worker needs before its next request, whatever that is."""
    known = encoders.known
    if seat.encoders == len(known) and not seat.forgets:
        return []
    missing, seat.encoders = known[seat.encoders :], len(known)
    carrier = seat.lane.carrier
    frames: list[Segment] = []
    for each in missing:
        try:
            frames += carrier.pack_value(Encode(), each)
        except TypeError:
            if not carrier.codec.why_no_code:
                raise
            # A worker of another Python cannot have it: whoever sends what it is for, is told so.
    for forget in list(seat.forgets):
        frames += pack(messages.encode(forget))
        seat.forgotten = forget.number
    return frames
