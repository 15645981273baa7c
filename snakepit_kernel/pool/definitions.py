"""What a pool knows of its tools: the notebook's own functions, and how arguments are prepared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..protocol import messages, values
from ..protocol.frames import Segment, pack
from ..protocol.messages import Define, ToolInfo
from .validation import Validator
from .worker import Seat


class Definitions:
    """The notebook's functions that are tools of a pool, ready to travel, each with a version."""

    def __init__(self) -> None:
        self._frames: dict[str, tuple[int, list[Segment]]] = {}
        self.infos: dict[str, ToolInfo] = {}
        self.validator = Validator()

    def add(self, info: ToolInfo, function: Callable[..., Any]) -> None:
        """Add a function, or replace it."""
        body, buffers = values.dumps(function)
        version = self._frames[info.name][0] + 1 if info.name in self._frames else 1
        self._frames[info.name] = (version, pack(messages.encode(Define(info.name)), body, buffers))
        self.infos[info.name] = info

    def missing(self, seat: Seat, name: str) -> list[Segment]:
        """Return the frame that a worker needs before it can call a tool, or nothing."""
        definition = self._frames.get(name)
        if definition is None or seat.defined.get(name) == definition[0]:
            return []
        seat.defined[name] = definition[0]
        return definition[1]


def pickled(
    tool: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[bytes, list[memoryview]]:
    """Pickle the arguments of a tool before a worker is taken.

    Raises
    ------
    TypeError
        An argument cannot travel; it is named.
    """
    try:
        return values.dumps((tuple(args), dict(kwargs)))
    except Exception as error:
        named = [(f"argument {i + 1}", value) for i, value in enumerate(args)]
        named += [(f"argument {name!r}", value) for name, value in kwargs.items()]
        culprits = [label for label, value in named if not _can_travel(value)]
        which = ", ".join(culprits) or "an argument"
        msg = f"{which} of {tool} cannot travel to a worker: {error}"
        raise TypeError(msg) from error


def _can_travel(value: object) -> bool:
    with contextlib.suppress(Exception):
        values.dumps(value)
        return True
    return False
