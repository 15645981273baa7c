"""The sessions that a pool works for, and what its workers may ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import SessionNotFound, SnakepitError
from ..locks import Lock
from ..sessions.state import SessionInfo, SessionState, global_state, open_session, sessions_of
from ..store.store import Store, open_store
from .config import PoolConfig


class PoolSessions:
    """Opens sessions for a pool, keeps them alive while they work, and serves them to workers.

    The store is opened with the first session: a pool without one never touches it.

    Parameters
    ----------
    config
        The pool's options.
    forget
        Called with the name of a session that is gone, or is another one than before.
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
        """Whether there is one to care for."""
        return bool(self._states)

    def open(
        self, session_id: str, ttl: float | str | None, metadata: Mapping[str, Any] | None
    ) -> SessionState:
        """Return a session; make it if there is none. Errors are those of `open_session`."""
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
                known.refresh()  # its time to live may be another one now
                return known
            self._states[session_id] = state
        if known is not None:
            self._forget(session_id)
        return state

    def delete(self, state: SessionState) -> None:
        """Delete a session with everything in it, and what workers remember of it."""
        try:
            state.delete()
        finally:
            self.drop(state)

    def drop(self, state: SessionState) -> None:
        """Remember a session no more."""
        with self._lock:
            if self._states.get(state.id) is state:
                del self._states[state.id]
                self._forget(state.id)

    def all(self) -> list[SessionInfo]:
        """Return all sessions of the store."""
        return sessions_of(self.store)

    @property
    def global_state(self) -> SessionState:
        """What belongs to no session."""
        if self._global is None:
            self._global = global_state(self.store)
        return self._global

    def serve(
        self, session_id: str | None, worker: str, part: str, method: str
    ) -> Callable[..., Any]:
        """Return what a worker asks for in a call of a session, or of none.

        Raises
        ------
        RuntimeError
            The call belongs to no session, and so has no variables.
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
            return self.global_state.serve(worker, part, method)
        state = self._states.get(session_id)
        if state is None:  # deleted while its work goes on, which must not bring it back
            raise SessionNotFound(session_id)
        return state.serve(worker, part, method)

    def host_tools_of(self, session_id: str) -> list[str]:
        """Return the names of the host tools that a session had, also in an earlier kernel."""
        state = self._states.get(session_id)
        try:
            return [] if state is None else state.host_tools
        except SnakepitError:  # whoever asks has an error to tell of already
            return []

    def close(self) -> None:
        """Let go of the store; who still holds one of the sessions opens it again."""
        with self._lock:
            used = [*self._states.values(), *([self._global] if self._global is not None else [])]
            self._states.clear()
            self._global = None
        for store in {state.store for state in used}:
            store.rest()

    # -- in the background -----------------------------------------------------------------------

    def keep_alive(self, working: set[str]) -> None:
        """Note that sessions are used, because work of theirs is under way."""
        for session_id in working:
            state = self._states.get(session_id)
            if state is not None:
                try:
                    state.touch()
                except SessionNotFound:  # as its work will find out
                    self.drop(state)

    def sweep(self) -> None:
        """Delete what has expired, once in a while."""
        over = {row.number for row in self.store.sweep_if_due()}
        for state in list(self._states.values()):
            if state.number in over:
                self.drop(state)
