"""The messages of a lane.

Decoding is validation: an unknown message, a missing field or a wrong type is an error.

=============  =========  ================================================================
message        direction  body
=============  =========  ================================================================
`Hello`        ← worker   none; the worker is ready
`Configure`    → worker   a `WorkerSetup`
`Configured`   ← worker   none
`Define`       → worker   a function of the notebook; a tool from now on
`Call`         → worker   ``(args, kwargs)`` of a tool
`Apply`        → worker   ``(function, args, kwargs)``
`Output`       ← worker   none; what the running call printed
`Result`       ← worker   the value that a call returned
`Failure`      ← worker   the exception that a call raised, when it can travel
=============  =========  ================================================================

A worker answers each `Configure`, `Call` and `Apply` exactly once, by `Configured`, `Result` or
`Failure` of the same ``id``; `Output` of that id comes before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec


class _Message(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """Base of all messages."""


class Hello(_Message, frozen=True, tag="hello"):
    """The first message of a worker: its main loop runs."""

    pid: int
    version: str


class Configure(_Message, frozen=True, tag="configure"):
    """Load the pool's tools."""

    id: int


class ToolInfo(msgspec.Struct, frozen=True):
    """What a caller needs to know of a tool.

    Attributes
    ----------
    signature
        As Python writes it: ``(item: str, amount: int = 1) -> float``.
    schema
        JSON Schema of the arguments, an object by name.
    checks
        What arguments can be checked by in another process, see ``tools/portable.py``.
    """

    name: str
    description: str
    signature: str
    schema: dict[str, Any]
    checks: bytes
    idempotent: bool = False
    timeout: float | None = None

    def __repr__(self) -> str:
        return f"<Tool {self.name}{self.signature}>"


class Configured(_Message, frozen=True, tag="configured"):
    """The pool's tools are loaded; ``failed_preloads`` says which modules were not, and why."""

    id: int
    tools: list[ToolInfo]
    failed_preloads: dict[str, str]


class OpenChannels(_Message, frozen=True, tag="open_channels"):
    """Have the Jupyter channels ready when this is answered."""

    id: int


class Assign(_Message, frozen=True, tag="assign"):
    """Take a slot, and the name that goes with it. Not answered."""

    worker: str


class Define(_Message, frozen=True, tag="define"):
    """A function of the notebook is a tool from now on. Not answered: the next call tells."""

    name: str


class Call(_Message, frozen=True, tag="call"):
    """Run a tool."""

    id: int
    tool: str
    session: str | None = None


class Apply(_Message, frozen=True, tag="apply"):
    """Run a function that travels with the call."""

    id: int
    session: str | None = None


class Output(_Message, frozen=True, tag="output"):
    """Text that the running call wrote."""

    id: int
    stream: Literal["stdout", "stderr"]
    text: str


class Result(_Message, frozen=True, tag="result"):
    """A call returned."""

    id: int


class Failure(_Message, frozen=True, tag="failure"):
    """A call raised.

    Attributes
    ----------
    kind
        ``raised``: the code of the call raised; ``interrupted``: it was interrupted;
        ``arguments``: it did not run because its arguments do not fit, one sentence for each in
        ``problems``; ``tool``: there is no such tool, ``problems`` names those that exist.
    """

    id: int
    kind: Literal["raised", "interrupted", "arguments", "tool"]
    type_name: str
    message: str
    traceback: str
    problems: list[str] = []


ToWorker = Configure | Assign | OpenChannels | Define | Call | Apply
FromWorker = Hello | Configured | Output | Result | Failure

encode = msgspec.msgpack.Encoder().encode
decode_for_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker is told once, before its first call.

    Attributes
    ----------
    adapter
        ``"module:Class"``, ``"module"``, a class or a module; None for no tools.
    import_path
        Where the owner finds modules; the worker looks there after its own places.
    preload
        Modules to import.
    pool, worker
        Names.
    """

    adapter: object
    import_path: list[str]
    pool: str
    worker: str
    preload: list[str] = field(default_factory=list)
