"""Sessions that a pool has open, and the requests that its workers make to them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import SessionNotFound, SnakepitError
from ..locks import Lock
from ..sessions.state import (
    SHELLS,
    SessionInfo,
    SessionState,
    global_state,
    open_session,
    sessions_of,
)
from ..store.store import Store, open_store
from .config import PoolConfig


class PoolSessions:
    """Opens sessions for a pool, refreshes them while they have work, and serves workers.

    The store is opened with the first session: a pool without sessions never opens it.

    Parameters
    ----------
    config
        The pool's options.
    forget
        Called with the name of a session that was deleted, or was created again.
    """

    def __init__(self, config: PoolConfig, forget: Callable[[str], None]) -> None:
        self._config = config
        self._forget = forget
        self._lock = Lock()
        self._states: dict[str, SessionState] = {}
        self._global: SessionState | None = None

    @property
    def store(self) -> Store:
        """The pool's store."""
        return open_store(self._config.store)

    @property
    def are_used(self) -> bool:
        """Whether any session is open."""
        return bool(self._states)

    def open(
        self, session_id: str, ttl: float | str | None, metadata: Mapping[str, Any] | None
    ) -> SessionState:
        """Return a session; create it if there is none. Errors are those of `open_session`."""
        state = open_session(
            session_id,
            ttl=ttl,
            metadata=metadata,
            store=self._config.store,
            max_variable_bytes=self._config.max_variable_bytes,
        )
        with self._lock:
            known = self._states.get(session_id)
            if known is not None and known.number == state.number:
                known.refresh()  # its time to live may have changed
                return known
            self._states[session_id] = state
        state.owned_by(self, self._config.name)
        if known is not None:
            self._forget(session_id)
        return state

    def delete(self, state: SessionState, *, detach: bool = False) -> None:
        """Delete a session with everything in it, and what workers remember of it."""
        try:
            state.delete(detach=detach)
        finally:
            self.drop(state)

    def drop(self, state: SessionState) -> None:
        """Forget a session."""
        with self._lock:
            if self._states.get(state.id) is state:
                del self._states[state.id]
                self._forget(state.id)

    def opened(self) -> list[SessionState]:
        """Return the open sessions."""
        with self._lock:
            return list(self._states.values())

    def keep(self, states: Iterable[SessionState]) -> None:
        """Have sessions open again after `close`, unless others have been opened in their place."""
        with self._lock:
            for state in states:
                self._states.setdefault(state.id, state)

    def all(self) -> list[SessionInfo]:
        """Return all sessions of the store."""
        return sessions_of(self.store)

    @property
    def global_state(self) -> SessionState:
        """State that belongs to no session."""
        if self._global is None:
            self._global = global_state(self.store)
        return self._global

    def find(self, session_id: str | None, part: str) -> SessionState:
        """Return the state of the session of a worker's call, or of none, to serve a part of it.

        Raises
        ------
        RuntimeError
            The call belongs to no session, and so has no variables, and no shell.
        SessionNotFound
            The session was deleted, or has expired, while its work went on.
        """
        if session_id is None:
            if part != "programs":
                msg = (
                    f"this call belongs to no session, and has no {part}; "
                    'make it by pool.session("NAME").call(…)'
                )
                raise RuntimeError(msg)
            return self.global_state
        state = self._states.get(session_id)
        if state is None:  # deleted while its work goes on, which must not recreate it
            raise SessionNotFound(session_id)
        return state

    def host_tools_of(self, session_id: str) -> list[str]:
        """Return the names of the host tools that a session had, also in an earlier kernel."""
        state = self._states.get(session_id)
        try:
            return [] if state is None else state.host_tools
        except SnakepitError:  # the caller is already about to report an error
            return []

    def shell_counts(self) -> tuple[int, int]:
        """Return the number of open shells, and of running background processes."""
        module = sys.modules.get(SHELLS)
        return (0, 0) if module is None else module.manager.counts(self)

    def close_shells(self) -> None:
        """End the shells and processes of the sessions; return when that is verified."""
        if (module := sys.modules.get(SHELLS)) is not None:  # else there are none
            module.manager.close_owner(self, "its pool was closed")

    def close(self) -> None:
        """Close the store; sessions that are still in use open it again."""
        with self._lock:
            used = [*self._states.values(), *([self._global] if self._global is not None else [])]
            self._states.clear()
            self._global = None
        for store in {state.store for state in used}:
            store.rest()

    # -- in the background -----------------------------------------------------------------------

    def keep_alive(self, working: set[str]) -> None:
        """Refresh the expiry of sessions that have work in progress."""
        for session_id in working:
            state = self._states.get(session_id)
            if state is not None:
                try:
                    state.touch()
                except SessionNotFound:  # its work will raise the error
                    self.drop(state)

    def sweep(self) -> None:
        """Delete expired sessions, if a sweep is due."""
        over = {row.number for row in self.store.sweep_if_due()}
        for state in list(self._states.values()):
            if state.number in over:
                self.drop(state)
