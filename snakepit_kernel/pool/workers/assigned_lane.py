"""A lane of a worker, which a pool assigns to one work item at a time."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from ... import telemetry
from ...ids import SESSION_KEY
from ...lane.control_page import RECALL_SIGNAL, ControlWords
from ...lane.marshalling import Marshaller
from ...lane.owner_end import OwnerLane
from ...protocol.messages import Event, Forget
from ...telemetry.spans import Scalar
from ..scheduling.scheduler import Purpose
from ..status import RunningCall
from .comms import WorkerComms
from .process import WorkerProcess


class Holder(Protocol):
    """What a lane is assigned to."""

    name: str
    finished: bool

    def caller_of(self, call_id: int) -> object:
        """Return the caller's span of one of its calls at the worker, for `telemetry.emit`."""

    def running(self) -> RunningCall | None:
        """Describe the call that runs at the worker, for status displays; None between two."""


class LaneWorker(Protocol):
    """The worker of a lane, as far as the lane needs it."""

    name: str
    pool: str
    current: list[str]
    process: WorkerProcess
    comms: WorkerComms

    @property
    def lanes(self) -> Sequence[Any]:
        """Its lanes."""

    def interrupt(self, call_id: int) -> None:
        """Interrupt its running call or cell, from any thread."""

    def note_quitting(self) -> None:
        """Report that its own code has asked it to exit."""


W = TypeVar("W", bound=LaneWorker)


class AssignedLane(OwnerLane, Generic[W]):
    """A lane that a pool assigns to one work item at a time.

    Parameters
    ----------
    worker
        The worker at its other end.
    sock, control, marshaller
        As for `OwnerLane`.
    purposes
        Kinds of work that it can carry.

    Attributes
    ----------
    holder
        The work item that it is assigned to, if any.
    is_stuck
        Whether its work ignores interrupts, and ends with the worker.
    defined
        The functions of the notebook that were sent on it, by name, with their version.
    encoders
        Number of encoders that were sent on it.
    sources
        Number of files of functions whose lines were sent on it, see `Sources`.
    search_path_version
        Version of the owner's search path that was sent on it last, see `SearchPath`.
    released
        Numbers of shared functions that were sent on it and that no call needs any more.
    forgets
        `Forget` messages, for sessions that begin again; they are sent before each request until
        such a request has been answered.
    forgotten
        Number of the last of these that was sent.
    """

    # With more than 30 attributes in its dictionary, each access to any of them is slower.
    __slots__ = (
        "defined",
        "encoders",
        "forgets",
        "forgotten",
        "holder",
        "is_stuck",
        "purposes",
        "released",
        "search_path_version",
        "sources",
        "worker",
    )

    def __init__(
        self,
        worker: W,
        sock: socket.socket,
        control: ControlWords,
        marshaller: Marshaller,
        purposes: frozenset[Purpose],
    ) -> None:
        super().__init__(sock, control, marshaller)
        self.worker = worker
        self.purposes = purposes
        self.holder: Holder | None = None
        self.is_stuck = False
        self.defined: dict[str, int] = {}
        self.encoders = 0
        self.sources = 0
        self.search_path_version = 0
        self.released: deque[int] = deque()
        self.forgets: deque[Forget] = deque()
        self.forgotten = 0
        self.on_event = self._report_event
        self.on_quitting = worker.note_quitting

    def note_comm(self, kind: str, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Note a comm message of a call's code."""
        self.worker.comms.note(kind, content, metadata.get(SESSION_KEY))

    def origin(self, session: str | None, correlation: str) -> dict[str, Scalar]:
        """Return the attributes that say where an event comes from."""
        attributes: dict[str, Scalar] = {
            "pool": self.worker.pool,
            "worker": self.worker.name,
            "correlation_id": correlation,
        }
        if session is not None:
            attributes["session"] = session
        return attributes

    def _report_event(self, event: Event) -> None:
        """Emit an event that code in the worker has emitted."""
        if telemetry.is_on():
            telemetry.note_dropped(event.dropped)
            attributes = event.attributes | self.origin(event.session, event.correlation)
            caller = None if self.holder is None else self.holder.caller_of(event.call)
            telemetry.emit(event.name, attributes, caller=caller, at=event.at)

    @property
    def load(self) -> int:
        """How many lanes of its worker are assigned."""
        return len(self.worker.current)

    @property
    def neighbours(self) -> Sequence[Any]:
        """The lanes of its worker, itself included."""
        return self.worker.lanes

    def interrupt(self, call_id: int = 0) -> None:
        """Interrupt a call that runs and has not acknowledged an interrupt, from any thread.

        A cell is interrupted by any id; 0 stands for any running call.
        """
        if self.fileno() < 0:
            return
        if not call_id or self.control.acknowledged_call != call_id:
            self.control.interrupted_call = call_id
            self.worker.interrupt(call_id)

    def recall(self) -> None:
        """Ask the worker to return the calls that were sent so far and have not begun."""
        if self.fileno() >= 0:
            self.control.recalled_call = self.last_call_id
            self.worker.process.signal(RECALL_SIGNAL)
