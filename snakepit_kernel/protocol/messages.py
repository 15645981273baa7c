"""The messages between owner and worker on a lane.

Decoding is validation: an unknown message, a missing field or a wrong type is an error.

=============  =========  ================================================================
message        direction  body
=============  =========  ================================================================
`Hello`        ← worker   none; the worker is ready
`Configure`    → worker   a `WorkerSetup`
`Configured`   ← worker   none
`Define`       → worker   a function of the notebook; a tool from now on
`Encode`       → worker   ``(type, encode, decode)``
`Prepare`      → worker   a function that calls refer to from now on
`Release`      → worker   none; functions that no call refers to any more
`ShowLines`    → worker   none; source lines of functions that follow
`Follow`       → worker   none; the owner's new search path and working directory
`Forget`       → worker   none; a session is reset
`Call`         → worker   ``(args, kwargs)`` of a tool
`Apply`        → worker   ``(function, args, kwargs)``, or ``args`` for a prepared function
`Chunk`        ← worker   what a stream yielded
`Credit`       → worker   none; more chunks of a stream may be sent
`CancelStream` → worker   none; the consumer of a stream has left
`Output`       ← worker   none; what the running call printed
`Shown`        ← worker   what the running call showed, see `as_shown`
`Progress`     ← worker   none; state of a progress bar of the running call
`Event`        ← worker   none; an event that the worker's code emits
`HostToolCall` ← worker   ``(args, kwargs)`` of a host tool
`SessionCall`  ← worker   ``(args, kwargs)`` of a method of a part of the session
`Requeued`     ← worker   none; calls returned unstarted
`Quitting`     ← worker   none; its code has requested its exit
`Result`       both       the value that a call returned
`Failure`      both       the exception that a call raised, if it can be pickled
=============  =========  ================================================================

A worker answers each `Configure`, `Call` and `Apply` exactly once, by `Configured`, `Result` or
`Failure` of the same ``id``; `Output`, `Shown`, `Progress` and `Chunk` of that id come before. The
owner answers each host call (`HostToolCall`, `SessionCall`) by `Result` or `Failure` of the host
call's own ``id``, which the worker assigned. While a worker waits for that, it serves calls that
were made on behalf of the host call, and no others. Several calls may be sent at once: a worker
runs them one after the other, and returns those that it has not begun when the owner asks for them
(`ControlWords.recalled_call`). An `Event` may come at any time, and is not answered. Nor is
`Quitting`: the worker continues to serve what it is sent until the owner ends it.

Output of a call or cell that has ended is sent as `Late` on a separate socket, which the owner
always reads: a lane that is not assigned to a caller is not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .codec import Codec
from .sources import Source


class _Message(
    msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True, omit_defaults=True
):
    """Base of all messages."""


class SharedRegion(msgspec.Struct, frozen=True, array_like=True):
    """Region in shared memory of a buffer that is not in the frame.

    Attributes
    ----------
    offset, length, ticket
        As in `Region` of an arena.
    is_yours
        Whether it is part of a buffer that the receiver once sent, returned by reference.
    """

    offset: int
    length: int
    ticket: int
    is_yours: bool


class WithValue(_Message, frozen=True, kw_only=True):
    """Base of messages that carry a value.

    Attributes
    ----------
    shared
        Empty when all buffers of the value are in the frame; else for each buffer its region in
        shared memory, or None if it is in the frame.
    """

    shared: list[SharedRegion | None] = []


class Hello(_Message, frozen=True, tag="hello"):
    """The first message of a worker: its main loop runs.

    Attributes
    ----------
    version
        That of this package.
    python
        Major and minor version, as in ``"3.12"``.
    """

    pid: int
    version: str
    python: str = ""


class Configure(WithValue, frozen=True, tag="configure"):
    """Load the pool's tools."""

    id: int


class ToolInfo(msgspec.Struct, frozen=True):
    """Description of a tool for its callers.

    Attributes
    ----------
    signature
        As Python writes it: ``(item: str, amount: int = 1) -> float``.
    schema
        JSON Schema of the arguments, an object by name.
    checks
        Data to check arguments in another process, see ``tools/arguments/portable.py``.
    streams
        Whether it yields chunks.
    """

    name: str
    description: str
    signature: str
    schema: dict[str, Any]
    checks: bytes
    idempotent: bool = False
    timeout: float | None = None
    streams: bool = False

    def __repr__(self) -> str:
        return f"<Tool {self.name}{self.signature}>"


class Configured(_Message, frozen=True, tag="configured"):
    """The pool's tools are loaded; ``failed_preloads`` names the modules that were not, and why."""

    id: int
    tools: list[ToolInfo]
    failed_preloads: dict[str, str]


class OpenChannels(_Message, frozen=True, tag="open_channels"):
    """Build the Jupyter channels; answered when they are ready."""

    id: int


class Assign(_Message, frozen=True, tag="assign"):
    """Assign a slot of the pool to the worker, with its name. Not answered."""

    worker: str


class Define(WithValue, frozen=True, tag="define"):
    """Add a function of the notebook as a tool. Not answered: an error is raised by its calls."""

    name: str


class Encode(WithValue, frozen=True, tag="encode"):
    """Register an encoder for values of a type. Not answered."""


class Prepare(WithValue, frozen=True, tag="prepare"):
    """Keep a function that several calls will run. Not answered: an error is raised by its calls.

    Attributes
    ----------
    number
        The number by which calls refer to it.
    """

    number: int


class Release(_Message, frozen=True, tag="release"):
    """Drop functions that were prepared. Not answered."""

    numbers: list[int]


class ShowLines(_Message, frozen=True, tag="show_lines"):
    """Show these source lines in tracebacks. Not answered."""

    files: list[Source]


class Follow(_Message, frozen=True, tag="follow"):
    """Adopt the owner's search path and working directory, before the next call. Not answered.

    Attributes
    ----------
    path
        The owner's ``sys.path``, see `WorkerSetup`.
    directory
        Its working directory; None for workers that have their own.
    """

    path: list[str]
    directory: str | None = None


class Forget(_Message, frozen=True, tag="forget"):
    """Drop a session's state in this worker, before the next call. Not answered.

    Attributes
    ----------
    number
        Increases with each that a worker is sent. One may be sent again, and is applied once.
    """

    session: str
    number: int


class Call(WithValue, frozen=True, tag="call"):
    """Run a tool.

    Attributes
    ----------
    credit
        Chunks that a stream may send before it is granted more; 0 for a call that returns its
        value.
    inside
        The host call that it is made on behalf of, which this worker waits for; 0 for none.
    correlation
        Id of the outermost call that it is made for.
    keeps
        Whether the value stays in the worker, which describes it in its answer.
    """

    id: int
    tool: str
    session: str | None = None
    credit: int = 0
    inside: int = 0
    correlation: str = ""
    keeps: bool = False


class Apply(WithValue, frozen=True, tag="apply"):
    """Run a function that is sent with the call, or was prepared. The rest is as in `Call`.

    Attributes
    ----------
    function
        Number of one that was prepared; 0 for one that is sent.
    belongs_to_cell
        Whether it is the pool's own, for a cell that runs before or after it: no figures are shown
        at its end.
    """

    id: int
    session: str | None = None
    inside: int = 0
    correlation: str = ""
    function: int = 0
    belongs_to_cell: bool = False
    keeps: bool = False


class Output(_Message, frozen=True, tag="output"):
    """Text that the running call wrote."""

    id: int
    stream: Literal["stdout", "stderr"]
    text: str


class Shown(_Message, frozen=True, tag="shown"):
    """Rich output of the running call.

    Attributes
    ----------
    kind
        Type of the Jupyter message: ``display_data``, ``clear_output``, …
    """

    id: int
    kind: str


class Late(_Message, frozen=True, tag="late"):
    """Output of a call or cell after its end. Its body is as that of `Shown`.

    Attributes
    ----------
    kind
        As for `Shown`, or ``stream``, or `COMM_TARGET`.
    lane, call
        The call, and the number of its lane.
    cell
        Id of the request that ran the cell; empty for a call.
    """

    kind: str
    lane: int = 0
    call: int = 0
    cell: str = ""


class Progress(_Message, frozen=True, tag="progress"):
    """New state of a progress bar of the running call.

    Attributes
    ----------
    bar
        Number of the bar.
    settings
        Its values in tqdm: ``n``, ``total``, ``prefix`` (its description), ``elapsed`` and so on,
        all each time. Those that are None are omitted.
    ended
        Whether this is its last state.
    """

    id: int
    bar: int
    settings: dict[str, bool | int | float | str | None]
    ended: bool = False


class Event(_Message, frozen=True, tag="event"):
    """An event that code in a worker emits.

    Attributes
    ----------
    call
        The call that emits it, or `CELL`.
    at
        Time in nanoseconds since 1970. It may be read much later.
    session, correlation
        Those of the call or cell.
    dropped
        Events that this worker has not sent since the last one.
    """

    call: int
    name: str
    attributes: dict[str, bool | int | float | str]
    at: int = 0
    session: str | None = None
    correlation: str = ""
    dropped: int = 0

    @property
    def id(self) -> int:
        """An id of no call: the event may arrive when its call has ended."""
        return -1


class Chunk(WithValue, frozen=True, tag="chunk"):
    """A stream yielded a value."""

    id: int


class Credit(_Message, frozen=True, tag="more"):
    """The stream may send a number of further chunks. Not answered."""

    id: int
    count: int


class CancelStream(_Message, frozen=True, tag="leave"):
    """Close a stream, whose consumer has left. Its call is answered as usual."""

    id: int


COMM_TARGET = "comm_target"
"""Kind of a `Late` that names a target of comms which code has registered, for the page."""

LAST_WORDS = b"w"
"""First byte that the worker sends on the socket for late output, with the ends of its pipes."""

CELL = 0
"""Call id that stands for the running cell."""


class _HostCall(WithValue, frozen=True):
    """Base of the calls from a worker to the notebook.

    Attributes
    ----------
    id
        Of the host call.
    call
        The call, on this lane, that makes it, or `CELL`.
    reentrant
        Whether the worker serves other calls while it waits for this.
    """

    id: int
    call: int
    reentrant: bool


class HostToolCall(_HostCall, frozen=True, tag="host_tool_call"):
    """Run a function of the notebook.

    Attributes
    ----------
    tool
        Name of the host tool.
    """

    tool: str

    @property
    def target(self) -> str:
        """What is called, for errors and telemetry."""
        return self.tool


SessionPart = Literal["variables", "programs", "metadata", "shell", "processes"]


class SessionCall(_HostCall, frozen=True, tag="session_call"):
    """Call a method of a part of the session that the call belongs to; of none, the global ones.

    Attributes
    ----------
    method
        One of those that the part's service has for workers.
    """

    part: SessionPart
    method: str

    @property
    def target(self) -> str:
        """What is called, for errors and telemetry."""
        return "__session__"


HostCall = HostToolCall | SessionCall


class Requeued(_Message, frozen=True, tag="returned"):
    """Calls that are returned unstarted, because the owner has asked for them."""

    ids: list[int]


class Quitting(_Message, frozen=True, tag="quitting"):
    """Code in the worker has requested its exit, as ``exit()`` does in a cell."""


class Result(WithValue, frozen=True, tag="result"):
    """A call returned.

    Attributes
    ----------
    lingers
        Whether it has left threads or tasks that may show more.
    """

    id: int
    lingers: bool = False


class Failure(WithValue, frozen=True, tag="failure"):
    """A call raised.

    Attributes
    ----------
    kind
        ``raised``: the code of the call raised; ``interrupted``: it was interrupted;
        ``arguments``: it did not run because its arguments do not fit, one sentence for each in
        ``problems``; ``tool``: there is no such tool, ``problems`` names those that exist.
    lingers
        As for `Result`.
    """

    id: int
    kind: Literal["raised", "interrupted", "arguments", "tool"]
    type_name: str
    message: str
    traceback: str
    problems: list[str] = []
    lingers: bool = False


ToWorker = (
    Configure
    | Assign
    | OpenChannels
    | Define
    | Encode
    | Prepare
    | Release
    | ShowLines
    | Follow
    | Forget
    | Call
    | Apply
    | Credit
    | CancelStream
    | Result
    | Failure
)
FromWorker = (
    Hello
    | Configured
    | Output
    | Shown
    | Progress
    | Event
    | Chunk
    | HostToolCall
    | SessionCall
    | Requeued
    | Quitting
    | Result
    | Failure
)


def as_shown(content: bytes, metadata: bytes = b"{}") -> bytes:
    """Return the body of a `Shown` or `Late`: content and metadata of Jupyter's message."""
    return b"[%b,%b]" % (content, metadata)


def shown(body: bytes | memoryview) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return content and metadata of a `Shown` or `Late`."""
    content, metadata = json.loads(bytes(body))
    return content, metadata


def as_text(stream: str, text: str) -> bytes:
    """Return the body of a `Late` that is text."""
    content: Mapping[str, str] = {"name": stream, "text": text}
    return as_shown(json.dumps(content).encode())


encode = msgspec.msgpack.Encoder().encode
decode_for_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_late = msgspec.msgpack.Decoder(Late).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """Configuration of a worker, sent once before its first call.

    Attributes
    ----------
    adapter
        ``"module:Class"``, ``"module"``, a class or a module; None for no tools.
    import_path
        The owner's search path; an empty entry stands for the working directory of the process
        that imports.
    preload
        Modules to import.
    pool, worker
        Names.
    has_threads
        Whether calls run in several threads at the same time.
    codec
        How values are pickled.
    beat_seconds
        Seconds between two beats of its pulse; 0 for none.
    limits
        Resource limits of its process, by the names of `Limits`.
    autoreload
        Whether edited modules are reloaded before each call or cell.
    """

    adapter: object
    import_path: list[str]
    pool: str
    worker: str
    preload: list[str] = field(default_factory=list)
    has_threads: bool = False
    codec: Codec = field(default_factory=Codec)
    beat_seconds: float = 0.0
    limits: dict[str, float] = field(default_factory=dict)
    autoreload: bool = False
