"""State of a session in the store: variables, programs and metadata, in the owner's process."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import SessionNotFound
from ..ids import check_name
from ..store.schema import GLOBAL
from ..store.session_table import SessionRow, SessionSummary
from ..store.store import Store, open_store
from ..tracebacks import hides_own_frames
from ..validation import FOREVER
from .handle import SessionHandle
from .program_service import MetadataService, ProgramService
from .programs import Metadata, Programs
from .values import MAX_VARIABLE_BYTES, when
from .variable_service import VariableService
from .variables import Attributes, Variables
from .watch import Watch

if TYPE_CHECKING:
    from ..shells.of_session import SessionProcesses, SessionShells
    from ..shells.shell import Shell

SHELLS = f"{__package__.partition('.')[0]}.shells.manager"
"""The module that is loaded with the first shell."""

NOTEBOOK_TTL, SCRIPT_TTL = 30 * 86400.0, 3600.0
"""Default seconds that a session lives without being used, in a notebook and elsewhere."""

MAX_SESSIONS = 10_000

MOST_READ_COUNT = 10
"""Number of most read variables in statistics."""

DEFAULT: Final = "default"

Service = VariableService | ProgramService | MetadataService


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session in a list.

    Attributes
    ----------
    id
        Its name.
    created, used
        Times; ``used`` is late by at most a twentieth of ``ttl``.
    ttl
        Seconds that it lives without being used; None for ever.
    expires
        When it expires unless it is used; None for never.
    variables, programs
        Number of each.
    size_bytes
        Size of their present values.
    """

    id: str
    created: datetime
    used: datetime
    ttl: float | None
    expires: datetime | None
    variables: int
    programs: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """Statistics of a session.

    Attributes
    ----------
    variables, programs
        Number of each.
    variable_bytes, program_bytes
        Size of their present values.
    types
        Number of variables by type.
    updates
        Number of times that existing variables were set since they were registered.
    registered_last_hour, registered_last_day
        Number of variables registered recently.
    reads
        Number of reads of variables in this process, by the notebook and its workers.
    most_read
        The variables read most often, with the number of reads.
    """

    variables: int
    programs: int
    variable_bytes: int
    program_bytes: int
    types: Mapping[str, int]
    updates: int
    registered_last_hour: int
    registered_last_day: int
    reads: int
    most_read: list[tuple[str, int]]


class SessionState:
    """A session's variables, programs and metadata, without a pool.

    `open_session` returns one; a `Session` of a pool has the same.

    Parameters
    ----------
    store
        The session's store.
    row
        The session's row.
    max_variable_bytes
        Maximum size of one variable's value.
    source
        Name of this process as a writer.

    Attributes
    ----------
    variables
        Typed variables, by name.
    v
        The variables as attributes: ``session.v.temperature``.
    programs
        Objects, by name.
    metadata
        Metadata of the session, by name.
    """

    def __init__(
        self,
        store: Store,
        row: SessionRow,
        *,
        max_variable_bytes: int = MAX_VARIABLE_BYTES,
        source: str = "",
    ) -> None:
        self._handle = SessionHandle(store, row)
        self._variable_service = VariableService(self._handle, max_variable_bytes)
        self._services: dict[str, Service] = {
            "variables": self._variable_service,
            "programs": ProgramService(self._handle),
            "metadata": MetadataService(self._handle),
        }
        writer = source or writer_name()
        find = {name: partial(bound, each, writer) for name, each in self._services.items()}
        watch = partial(_watch, self._variable_service, store)  # a method would make a cycle
        self.variables = Variables(find["variables"], watch)
        self.v = Attributes(self.variables)
        self.programs = Programs(find["programs"])
        self.metadata = Metadata(find["metadata"])
        self._shells: SessionShells | None = None
        self._owner: tuple[object, str | None] = (None, None)

    def __repr__(self) -> str:
        return f"<SessionState {self.id!r}>"

    # -- properties ----------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of the session."""
        return self._handle.row.id

    @property
    def number(self) -> int:
        """Number of the session; a later session of the same name has another one."""
        return self._handle.row.number

    @property
    def store(self) -> Store:
        """Store of the session."""
        return self._handle.store

    @property
    def ttl(self) -> float | None:
        """Seconds that it lives without being used; None for ever."""
        return self._handle.row.ttl

    @property
    def expires(self) -> datetime | None:
        """When it expires unless it is used; None for never."""
        expires = self._handle.row.expires
        return None if expires is None else when(expires)

    @hides_own_frames
    def stats(self) -> SessionStats:
        """Return statistics of the session."""
        self.touch()
        rows, programs = self.store.variables.sizes(self.number), self.programs.list()
        now = time.time()
        ages = [now - created for _, _, created, _ in rows]
        reads = self._variable_service.reads
        return SessionStats(
            variables=len(rows),
            programs=len(programs),
            variable_bytes=sum(size_bytes for *_, size_bytes in rows),
            program_bytes=sum(program.size_bytes for program in programs),
            types=Counter(type_name for type_name, *_ in rows),
            updates=sum(version - 1 for _, version, *_ in rows),
            registered_last_hour=sum(age < 3600 for age in ages),
            registered_last_day=sum(age < 86400 for age in ages),
            reads=reads.total(),
            most_read=reads.most_common(MOST_READ_COUNT),
        )

    @property
    def host_tools(self) -> list[str]:
        """Names of the host tools that it had, also in an earlier kernel."""
        return self.store.sessions.host_tools(self.number)

    def remember_host_tools(self, names: Iterable[str]) -> None:
        """Store the names of its host tools; the functions themselves end with the kernel."""
        known = set(self.host_tools)
        for name in names:
            if name not in known:
                self.store.sessions.add_host_tool(self.number, name)

    # -- shell and processes -------------------------------------------------------------------

    @property
    def shells(self) -> SessionShells:
        """Its shell and background processes in this process."""
        if self._shells is None:
            from ..shells.of_session import SessionShells

            store, number = self.store, self.number
            self._shells = SessionShells(
                (store.path, number),
                self.id,
                load=partial(store.sessions.shell_state, number),
                save=partial(store.sessions.set_shell_state, number),
                fork=partial(_fork_shells, self),
            )
            self._shells.own(*self._owner)
        return self._shells

    def owned_by(self, token: object, pool: str) -> None:
        """Let the end of a pool end the shell and the processes that are started from now on."""
        self._owner = (token, pool)
        if self._shells is not None:
            self._shells.own(*self._owner)

    @property
    def shell(self) -> Shell:
        """The session's shell, a bash whose state stays; it is opened at its first use."""
        self.touch()
        return self.shells.shell

    @hides_own_frames
    def open_shell(self, **options: Any) -> Shell:
        """Open the session's shell with options, before its first use.

        Parameters
        ----------
        options
            ``env``, ``cwd``: environment variables beyond those of this process (None for one that
            is not set), and the working directory, with which it begins. ``timeout``: seconds for
            each command that names no other number. ``max_output``: bytes that results keep.
            ``on_exit``: ``"restart"``, or ``"terminate"`` if ``exit`` is to end the shell.
            ``checkpoint``: ``"idle"``, ``"always"``, or ``"never"``, when nothing of it is to be
            kept with the session.

        Raises
        ------
        ValueError
            It is open; or an option is wrong, which is named.
        """
        self.touch()
        return self.shells.open(**options)

    @property
    def processes(self) -> SessionProcesses:
        """The session's background processes."""
        return self.shells.processes

    # -- expiry, copies, deletion --------------------------------------------------------------

    def touch(self) -> None:
        """Refresh the session's expiry.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        self._handle.touch()

    def refresh(self) -> None:
        """Check at the next use whether the session exists, and its time to live."""
        self._handle.refresh()

    @hides_own_frames
    def delete(self, *, detach: bool = False) -> None:
        """Delete the session with everything in it, also its shell and its processes.

        Parameters
        ----------
        detach
            Whether its background processes go on, until this process ends.

        Raises
        ------
        SessionNotFound
            It does not exist any more.
        """
        if self._shells is not None or SHELLS in sys.modules:  # else nobody has opened one
            self.shells.close(detach=detach)
        if not self.store.delete_session(self.number):
            raise SessionNotFound(self.id)
        self._handle.refresh()

    @hides_own_frames
    def fork(self, session_id: str) -> SessionState:
        """Copy the session: its variables without their history, programs and metadata.

        Raises
        ------
        ValueError
            There is a session of that name.
        """
        check_name("session", session_id)
        self.touch()
        row, made = self.store.sessions.open(
            session_id, ttl=self.ttl, change_ttl=False, max_sessions=MAX_SESSIONS
        )
        if not made:
            msg = f"there is a session {session_id!r} already; name another one, or delete it"
            raise ValueError(msg)
        try:
            self.store.copy_session(self.number, row.number)
        except BaseException:
            self.store.delete_session(row.number)
            raise
        return SessionState(self.store, row, max_variable_bytes=self._variable_service.max_bytes)

    # -- serving workers -----------------------------------------------------------------------

    def serve(self, source: str, part: str, method: str) -> Callable[..., Any]:
        """Return a method of a part of the session, for a worker.

        Parameters
        ----------
        source
            Name of the worker.
        part, method
            ``"variables"``, ``"programs"`` or ``"metadata"``, and one of its methods for workers.
        """
        service = self._services[part]
        if method not in service.REMOTE:
            msg = f"a session's {part} have no method {method!r} for workers"
            raise ValueError(msg)
        return bound(service, source, method)


def _fork_shells(state: SessionState, session_id: str) -> SessionShells:
    return state.fork(session_id).shells


def _watch(service: VariableService, store: Store, pattern: str) -> Watch:
    return Watch(service, pattern, store.hub)


def bound(service: Service, source: str, method: str) -> Callable[..., Any]:
    """Return a method of a service, bound to its caller's name if it writes."""
    found: Callable[..., Any] = getattr(service, method)
    return partial(found, source=source) if method in service.WRITES else found


@hides_own_frames
def open_session(
    session_id: str,
    *,
    ttl: float | str | None = DEFAULT,
    metadata: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | Store | None = None,
    max_variable_bytes: int = MAX_VARIABLE_BYTES,
) -> SessionState:
    """Open a session's variables, programs and metadata; create the session if there is none.

    No pool is needed. All processes that open the same session of the same store share it.

    Parameters
    ----------
    session_id
        1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
    ttl
        Seconds that it lives without being used; None for ever. Default: that of the session; for
        a new one 30 days in a notebook, an hour elsewhere.
    metadata
        Metadata of a new session.
    store
        A path, or ``sqlite:///PATH``. Default: ``sessions.sqlite`` in the data directory.
    max_variable_bytes
        Maximum size of one variable's value in the store.

    Raises
    ------
    TypeError, ValueError
        An argument is invalid; it is named.
    QuotaExceeded
        There are 10,000 sessions already.
    StoreError
        The store cannot be read or written.
    """
    check_name("session", session_id)
    seconds = check_ttl(ttl)
    opened = open_store(store)
    row, made = opened.sessions.open(
        session_id, ttl=seconds, change_ttl=ttl != DEFAULT, max_sessions=MAX_SESSIONS
    )
    state = SessionState(opened, row, max_variable_bytes=max_variable_bytes)
    if made:
        try:
            state.metadata.update(metadata or {})
        except BaseException:
            state.delete()
            raise
    opened.sweep_if_due()
    return state


def check_ttl(ttl: float | str | None) -> float | None:
    """Validate a time to live; return it in seconds, or None for ever.

    Raises
    ------
    TypeError, ValueError
        It is not a number above 0.
    """
    if ttl == DEFAULT:
        return NOTEBOOK_TTL if is_notebook() else SCRIPT_TTL
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        msg = f"ttl is a number of seconds, or None for ever, not {type(ttl).__name__}"
        raise TypeError(msg)
    if not ttl > 0:
        msg = f"ttl must be more than 0 seconds, not {ttl}"
        raise ValueError(msg)
    return None if ttl >= FOREVER else float(ttl)


def global_state(store: Store) -> SessionState:
    """Return the state of no session, which has the global programs."""
    row = SessionRow(number=GLOBAL, id="", created=0.0, used=time.time(), ttl=None, expires=None)
    return SessionState(store, row)


def sessions_of(store: Store) -> list[SessionInfo]:
    """Return the sessions of a store, most recently used first."""
    return [_info(summary) for summary in store.sessions.all()]


def _info(summary: SessionSummary) -> SessionInfo:
    row = summary.session
    return SessionInfo(
        id=row.id,
        created=when(row.created),
        used=when(row.used),
        ttl=row.ttl,
        expires=None if row.expires is None else when(row.expires),
        variables=summary.variables,
        programs=summary.programs,
        size_bytes=summary.size_bytes,
    )


def is_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    shell = sys.modules.get("IPython.core.getipython")
    running = shell.get_ipython() if shell is not None else None
    return hasattr(running, "kernel")


def writer_name() -> str:
    """Return the name of this process as a writer, for people."""
    return "notebook" if is_notebook() else "script"
