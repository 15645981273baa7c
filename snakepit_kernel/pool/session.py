"""A session, as users hold it."""

from __future__ import annotations

from .caller import Caller
from .config import Affinity
from .definitions import Definitions
from .engine import Engine


class Session(Caller):
    """Work that belongs together, and has names of its own in the workers that do it.

    `Pool.session` makes one; two of the same id are the same session.

    Attributes
    ----------
    session_id
        Name of the session.
    affinity
        Which worker does its work, see `Pool`.
    """

    def __init__(
        self,
        session_id: str,
        pool: Caller,
        engine: Engine,
        definitions: Definitions,
        *,
        affinity: Affinity = "hint",
    ) -> None:
        self.session_id = session_id
        self.affinity = affinity
        self._home = None if affinity == "hint" else engine.open_home(session_id)
        self._fails_fast = affinity == "strict_fail_fast"
        self._pool = pool  # a pool that nobody holds any more is ended
        self._session_id = session_id
        self._engine = engine
        self._definitions = definitions

    def __repr__(self) -> str:
        return f"<Session {self.session_id!r} of pool {self._engine.config.name!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return self.session_id == other.session_id and self._engine is other._engine

    def __hash__(self) -> int:
        return hash(self.session_id)
