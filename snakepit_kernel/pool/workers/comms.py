"""The comms that the code of a worker has opened, in the notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ...output.comms import PageMessage, comm_relay
from ...protocol.messages import COMM_TARGET


class Named(Protocol):
    """A worker, as far as its comms need it."""

    name: str


class WorkerComms:
    """Registers the comms of one worker in the notebook, until the worker ends.

    Parameters
    ----------
    worker
        The worker.

    Attributes
    ----------
    deliver
        Delivers a message of the page to the worker, without waiting for it.
    """

    def __init__(self, worker: Named) -> None:
        self.deliver: Callable[[PageMessage], None] | None = None
        self._worker = worker
        self._are_known = False  # whether the notebook knows any
        self._have_ended = False

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._worker.name

    def note(self, kind: str, content: dict[str, Any], session: str | None) -> None:
        """Note a comm message that the worker has sent; called where its output is shown."""
        relay = None if self._have_ended else comm_relay()
        if relay is None:
            return
        if kind == "comm_open":
            self._are_known = True
            relay.open(content["comm_id"], content.get("target_name", ""), self, session)
        elif kind == COMM_TARGET:
            self._are_known = True
            relay.add_target(content["target_name"], self, content["session"])
        elif kind == "comm_close":
            relay.forget(content["comm_id"])

    def receive(self, message: PageMessage) -> None:
        """Deliver a message of the page."""
        if self.deliver is None:
            message.on_handled()
        else:
            self.deliver(message)

    def end(self, *, is_announced: bool) -> None:
        """Forget the comms: the worker has ended. See `CommRelay.end`."""
        self._have_ended = True
        relay = comm_relay() if self._are_known else None
        if relay is not None:
            relay.end(self, is_announced=is_announced)
