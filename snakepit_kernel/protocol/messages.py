"""The messages of a lane.

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
`Follow`       → worker   none; where the owner finds modules and files from now on
`Forget`       → worker   none; a session begins again
`Call`         → worker   ``(args, kwargs)`` of a tool
`Apply`        → worker   ``(function, args, kwargs)``, or ``args`` for a prepared function
`Chunk`        ← worker   what a stream yielded
`Credit`         → worker   none; room for chunks
`CancelStream`        → worker   none; nobody wants the rest of a stream
`Output`       ← worker   none; what the running call printed
`Shown`        ← worker   what the running call showed, see `as_shown`
`Progress`     ← worker   none; how far a progress bar of the running call is
`Event`        ← worker   none; something that the worker's code tells of
`HostCall`     ← worker   ``(args, kwargs)`` of a host tool
`Requeued`     ← worker   none; calls that have not begun
`Quitting`     ← worker   none; its code has told it to end
`Result`       both       the value that a call returned
`Failure`      both       the exception that a call raised, when it can travel
=============  =========  ================================================================

A worker answers each `Configure`, `Call` and `Apply` exactly once, by `Configured`, `Result` or
`Failure` of the same ``id``; `Output`, `Shown`, `Progress` and `Chunk` of that id come before. The
owner answers each `HostCall` by `Result` or `Failure` of the host call's own ``id``, which the
worker minted. While a worker waits for that, it serves calls that were made on behalf of the host
call, and no others. Several calls may be sent at once: a worker runs them one after the other, and
gives back those that it has not begun when the owner asks for them (`Slot.recalled_call`). An
`Event` may come at any time, and is not answered. Nor is `Quitting`: the worker goes on to serve
what it is sent until the owner ends it.

What a call or cell shows when it has ended comes as `Late` on a socket of its own, which the owner
always reads: nobody reads a lane that is not lent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .codec import Codec


class _Message(
    msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True, omit_defaults=True
):
    """Base of all messages."""


class SharedRegion(msgspec.Struct, frozen=True, array_like=True):
    """Where in shared memory a buffer lies that did not travel in the frame.

    Attributes
    ----------
    offset, length, ticket
        As `Place` of an arena has them.
    is_yours
        Whether it lies in what the receiver once sent, and comes back.
    """

    offset: int
    length: int
    ticket: int
    is_yours: bool


class WithValue(_Message, frozen=True, kw_only=True):
    """Base of messages that come with a value.

    Attributes
    ----------
    shared
        Empty when all buffers of the value are in the frame; else for each the place of one that
        is not, or None.
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
    """What a caller needs to know of a tool.

    Attributes
    ----------
    signature
        As Python writes it: ``(item: str, amount: int = 1) -> float``.
    schema
        JSON Schema of the arguments, an object by name.
    checks
        What arguments can be checked by in another process, see ``tools/portable.py``.
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


class Define(WithValue, frozen=True, tag="define"):
    """A function of the notebook is a tool from now on. Not answered: the next call tells."""

    name: str


class Encode(WithValue, frozen=True, tag="encode"):
    """Values of a type travel in a way of their own from now on. Not answered."""


class Prepare(WithValue, frozen=True, tag="prepare"):
    """Keep a function, because several calls will run it. Not answered: the next call tells.

    Attributes
    ----------
    number
        By which calls refer to it.
    """

    number: int


class Release(_Message, frozen=True, tag="release"):
    """Keep functions no longer that were prepared. Not answered."""

    numbers: list[int]


class Follow(_Message, frozen=True, tag="follow"):
    """Look for modules and files where the owner does, before the next call. Not answered.

    Attributes
    ----------
    path
        The owner's ``sys.path``, see `WorkerSetup`.
    directory
        Its working directory; None for workers that have one of their own.
    """

    path: list[str]
    directory: str | None = None


class Forget(_Message, frozen=True, tag="forget"):
    """Drop what a session has in this worker, before the next call. Not answered.

    Attributes
    ----------
    number
        Grows with each that a worker is sent. One may be sent again, and is heeded once.
    """

    session: str
    number: int


class Call(WithValue, frozen=True, tag="call"):
    """Run a tool.

    Attributes
    ----------
    credit
        Chunks that a stream may send before it is told that there is room for more; 0 for a call
        that returns its value.
    inside
        The host call that it is made on behalf of, which this worker waits for; 0 for none.
    correlation
        Id of the outermost call that it is made for.
    """

    id: int
    tool: str
    session: str | None = None
    credit: int = 0
    inside: int = 0
    correlation: str = ""


class Apply(WithValue, frozen=True, tag="apply"):
    """Run a function that travels with the call, or was prepared. The rest is as in `Call`.

    Attributes
    ----------
    function
        Number of one that was prepared; 0 for one that travels.
    belongs_to_cell
        It is the pool's own, for a cell that runs before or behind it: at its end nothing is shown.
    """

    id: int
    session: str | None = None
    inside: int = 0
    correlation: str = ""
    function: int = 0
    belongs_to_cell: bool = False


class Output(_Message, frozen=True, tag="output"):
    """Text that the running call wrote."""

    id: int
    stream: Literal["stdout", "stderr"]
    text: str


class Shown(_Message, frozen=True, tag="shown"):
    """Something rich that the running call showed.

    Attributes
    ----------
    kind
        The type of the message that Jupyter has for it: ``display_data``, ``clear_output``, …
    """

    id: int
    kind: str


class Late(_Message, frozen=True, tag="late"):
    """What a call, or cell, showed when it had ended. Its body is as that of `Shown`.

    Attributes
    ----------
    kind
        As for `Shown`, or ``stream``.
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
    """A progress bar of the running call has moved.

    Attributes
    ----------
    bar
        Number of the bar.
    settings
        What tqdm says of it: ``n``, ``total``, ``prefix`` (its description), ``elapsed`` and their
        like, all each time. What is None there is missing here.
    ended
        It moves no more.
    """

    id: int
    bar: int
    settings: dict[str, bool | int | float | str | None]
    ended: bool = False


class Event(_Message, frozen=True, tag="event"):
    """Something that code in a worker tells of.

    Attributes
    ----------
    call
        The call that tells of it, or `CELL`.
    at
        When: nanoseconds since 1970. It may be read much later.
    session, correlation
        What that belongs to.
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
        """No call's: it may come when that has ended."""
        return -1


class Chunk(WithValue, frozen=True, tag="chunk"):
    """A stream yielded a value."""

    id: int


class Credit(_Message, frozen=True, tag="more"):
    """There is room for so many more chunks. Not answered."""

    id: int
    count: int


class CancelStream(_Message, frozen=True, tag="leave"):
    """Nobody wants the rest of a stream: close it. Its call is answered as ever."""

    id: int


LAST_WORDS = b"w"
"""What the worker sends first on the socket for what comes late, with the ends of its pipes."""

CELL = 0
"""Stands for the cell that runs in the place of the id of a call."""


class HostCall(WithValue, frozen=True, tag="host_call"):
    """Run a function of the notebook.

    Attributes
    ----------
    id
        Of the host call.
    call
        The call, on this lane, that makes it, or `CELL`.
    tool
        Name of the host tool.
    reentrant
        Whether the worker serves other calls while it waits for this.
    """

    id: int
    call: int
    tool: str
    reentrant: bool


class Requeued(_Message, frozen=True, tag="returned"):
    """Calls that have not begun are given back, as the owner asked."""

    ids: list[int]


class Quitting(_Message, frozen=True, tag="quitting"):
    """Code in the worker has told it to end, as ``exit()`` does in a cell."""


class Result(WithValue, frozen=True, tag="result"):
    """A call returned.

    Attributes
    ----------
    lingers
        Whether it has left something that may show more.
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
    | HostCall
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


def sendable(text: str) -> str:
    """Return a text with escapes for what is no Unicode, as names of files may hold."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


encode = msgspec.msgpack.Encoder().encode
decode_for_worker = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_late = msgspec.msgpack.Decoder(Late).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetup:
    """What a worker is told once, before its first call.

    Attributes
    ----------
    adapter
        ``"module:Class"``, ``"module"``, a class or a module; None for no tools.
    import_path
        Where the owner finds modules, in its order; an empty entry stands for the working
        directory of whoever looks.
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
        What its process may take, by the names of `Limits`.
    autoreload
        Whether modules that were edited are loaded anew before each piece of work.
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
