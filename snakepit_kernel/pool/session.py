"""The public class `Session`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..sessions.programs import Metadata, Programs
from ..sessions.state import SessionState, SessionStats
from ..sessions.variables import Attributes, Variables
from ..tracebacks import hides_own_frames
from ..validation import check_priority
from .caller import Caller
from .config import Affinity
from .engine import Engine
from .tools import ToolDefinitions

if TYPE_CHECKING:
    from ..shells.of_session import SessionProcesses
    from ..shells.shell import Shell

F = TypeVar("F", bound=Callable[..., Any])


@hides_own_frames
class Session(Caller):
    """Work that belongs together, and what it keeps: variables, programs, metadata.

    Its calls and cells find names, a working directory and an environment of their own in the
    workers that do them; these end with the worker. What it keeps is in the store, and outlives
    kernels. `Pool.session` makes one; two of the same id are the same session.

    Attributes
    ----------
    session_id
        Name of the session.
    affinity
        Which worker does its work, see `Pool`.
    state
        What it keeps, without a pool.
    priority
        That of its work in the queue of the pool.
    """

    def __init__(
        self,
        state: SessionState,
        pool: Caller,
        engine: Engine,
        definitions: ToolDefinitions,
        *,
        affinity: Affinity = "hint",
        priority: int = 0,
    ) -> None:
        self.session_id = self._session_id = state.id
        self.state = state
        self.affinity = affinity
        self._home = None if affinity == "hint" else engine.dispatcher.open_home(state.id)
        self._fails_fast = affinity == "strict_fail_fast"
        self.priority = self._priority = check_priority(priority)
        self._pool = pool  # keeps the pool alive: a pool is ended when it is collected
        self._engine = engine
        self._definitions = definitions

    # -- what it keeps -------------------------------------------------------------------------

    @property
    def variables(self) -> Variables:
        """Typed variables, by name."""
        return self.state.variables

    @property
    def v(self) -> Attributes:
        """The variables as attributes: ``session.v.temperature = 0.7``."""
        return self.state.v

    @property
    def programs(self) -> Programs:
        """Objects, models and pipelines for instance, by name."""
        return self.state.programs

    @property
    def metadata(self) -> Metadata:
        """Notes about the session, by name."""
        return self.state.metadata

    @property
    def shell(self) -> Shell:
        """The session's shell, a bash whose state stays; it is opened at its first use."""
        return self.state.shell

    def open_shell(self, **options: Any) -> Shell:
        """Open the session's shell with options, before its first use.

        Options and errors are those of `SessionState.open_shell`.
        """
        return self.state.open_shell(**options)

    @property
    def processes(self) -> SessionProcesses:
        """The session's background processes."""
        return self.state.processes

    @property
    def ttl(self) -> float | None:
        """Seconds that it lives without being used; None for no limit."""
        return self.state.ttl

    def stats(self) -> SessionStats:
        """Return statistics of the session: its size, growth, and most read variables."""
        return self.state.stats()

    # -- its life ------------------------------------------------------------------------------

    def fork(self, session_id: str) -> Session:
        """Return a new session that begins as a copy of this one.

        It has the same variables, without their past, programs and metadata.

        Raises
        ------
        ValueError
            There is a session of that name.
        """
        self.state.fork(session_id)
        state = self._engine.sessions.open(session_id, "default", None)
        return Session(
            state,
            self._pool,
            self._engine,
            self._definitions,
            affinity=self.affinity,
            priority=self.priority,
        )

    def delete(self, *, detach: bool = False) -> None:
        """Delete the session with everything in it, also what workers remember of it.

        Parameters
        ----------
        detach
            Whether its background processes go on, until the pool ends.

        Raises
        ------
        SessionNotFound
            It is gone already.
        """
        self._engine.sessions.delete(self.state, detach=detach)

    def host_tool(self, function: F) -> F:
        """Let the workers of this session call a function of the notebook; see `Pool.host_tool`.

        The session remembers its name: a kernel that has restarted can say what is missing.
        """
        super().host_tool(function)
        self.state.remember_host_tools(self._engine.host_tools.own_names(self.session_id))
        return function

    def _touch(self) -> None:
        self.state.touch()

    def __repr__(self) -> str:
        return f"<Session {self.session_id!r} of pool {self._engine.config.name!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return self.session_id == other.session_id and self._engine is other._engine

    def __hash__(self) -> int:
        return hash(self.session_id)
