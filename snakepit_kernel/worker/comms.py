"""The comms of a worker: in which session each was opened, and which targets the page can open."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from ..ids import SESSION_KEY
from ..protocol import messages
from .output import LateSender


class CommSessions:
    """Knows the session of each open comm: what the page sends to it is handled there.

    Parameters
    ----------
    current
        Returns the session whose state is in place.
    """

    def __init__(self, current: Callable[[], str | None]) -> None:
        self._current = current
        self._sessions: dict[str, str | None] = {}

    def note_sent(self, kind: str, content: dict[str, Any]) -> str | None:
        """Note a comm message that this worker is about to send; return the comm's session."""
        comm_id = content["comm_id"]
        if kind == "comm_open":
            self._sessions[comm_id] = self._current()
        if kind == "comm_close":
            return self._sessions.pop(comm_id, None)
        return self._sessions.get(comm_id)

    def session_of(self, request: dict[str, Any]) -> str | None:
        """Return the session of a comm message of the page."""
        named: str | None = request.get("metadata", {}).get(SESSION_KEY)
        comm_id = request["content"].get("comm_id", "")
        match request["header"]["msg_type"]:
            case "comm_open":
                self._sessions[comm_id] = named
                return named
            case "comm_close":
                return self._sessions.pop(comm_id, named)
            case _:
                return self._sessions.get(comm_id, named)

    def report_targets(self, kernel: Any, late: LateSender) -> None:
        """Tell the owner of each target that code registers from now on."""
        manager = kernel.comm_manager
        register = manager.register_target

        @wraps(register)
        def register_target(target_name: str, f: Any) -> None:
            register(target_name, f)
            content = kernel.session.pack({"target_name": target_name, "session": self._current()})
            late.show(messages.Late(messages.COMM_TARGET), messages.as_shown(content))

        manager.register_target = register_target
