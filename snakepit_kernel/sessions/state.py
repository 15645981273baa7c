"""What a session has in the store, for who holds it in the owner's process."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from ..errors import SessionNotFound
from ..ids import check_name
from ..store.schema import GLOBAL
from ..store.session_table import SessionRow, SessionSummary
from ..store.store import Store, open_store
from ..validation import FOREVER
from .handle import SessionHandle
from .program_service import MetadataService, ProgramService
from .programs import Metadata, Programs
from .values import MAX_VARIABLE_BYTES, when
from .variable_service import VariableService
from .variables import Attributes, Variables
from .watch import Watch

NOTEBOOK_TTL, SCRIPT_TTL = 24 * 3600.0, 3600.0
"""Seconds that a session lives without being used, when nothing else was said."""

MAX_SESSIONS = 10_000

MOST_READ = 10
"""Variables that statistics name."""

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
        When; ``used`` is late by at most a twentieth of ``ttl``.
    ttl
        Seconds that it lives without being used; None for ever.
    expires
        When it is over unless it is used; None for never.
    variables, programs
        How many it has.
    size_bytes
        What their present values take.
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
    """What a session has become.

    Attributes
    ----------
    variables, programs
        How many it has.
    variable_bytes, program_bytes
        What their present values take.
    types
        Number of variables by type.
    updates
        How often variables that exist were set since they were registered.
    registered_last_hour, registered_last_day
        Variables by their age: how fast the session grows.
    reads
        How often variables were read in this process, by the notebook and its workers.
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

    `open_session` gives one; what a `Session` of a pool has is the same.

    Parameters
    ----------
    store
        Where it is.
    row
        What was read of it.
    max_variable_bytes
        What one value of a variable may take.
    source
        Who writes, where it is not a worker.

    Attributes
    ----------
    variables
        Typed variables, by name.
    v
        The same as attributes: ``session.v.temperature``.
    programs
        Objects, by name.
    metadata
        Notes about the session, by name.
    """

    def __init__(
        self,
        store: Store,
        row: SessionRow,
        *,
        max_variable_bytes: int = MAX_VARIABLE_BYTES,
        source: str = "",
    ) -> None:
        self._saved = SessionHandle(store, row)
        self._variable_service = VariableService(self._saved, max_variable_bytes)
        self._services: dict[str, Service] = {
            "variables": self._variable_service,
            "programs": ProgramService(self._saved),
            "metadata": MetadataService(self._saved),
        }
        here = source or where_we_are()
        find = {name: partial(bound, each, here) for name, each in self._services.items()}
        watch = partial(_watch, self._variable_service, store)  # not a method: that were a cycle
        self.variables = Variables(find["variables"], watch)
        self.v = Attributes(self.variables)
        self.programs = Programs(find["programs"])
        self.metadata = Metadata(find["metadata"])

    def __repr__(self) -> str:
        return f"<SessionState {self.id!r}>"

    # -- looking -------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of the session."""
        return self._saved.row.id

    @property
    def number(self) -> int:
        """Number of the session: one of the same name that is made later has another one."""
        return self._saved.row.number

    @property
    def store(self) -> Store:
        """Where it is."""
        return self._saved.store

    @property
    def ttl(self) -> float | None:
        """Seconds that it lives without being used; None for ever."""
        return self._saved.row.ttl

    @property
    def expires(self) -> datetime | None:
        """When it is over unless it is used; None for never."""
        expires = self._saved.row.expires
        return None if expires is None else when(expires)

    def stats(self) -> SessionStats:
        """Return what the session has become."""
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
            most_read=reads.most_common(MOST_READ),
        )

    @property
    def host_tools(self) -> list[str]:
        """The names of the host tools that it had, also in an earlier kernel."""
        return self.store.sessions.host_tools(self.number)

    def remember_host_tools(self, names: Iterable[str]) -> None:
        """Remember what host tools it has; the functions themselves go with the kernel."""
        known = set(self.host_tools)
        for name in names:
            if name not in known:
                self.store.sessions.add_host_tool(self.number, name)

    # -- living --------------------------------------------------------------------------------

    def touch(self) -> None:
        """Note that the session is used, so that it does not expire.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        self._saved.touch()

    def refresh(self) -> None:
        """See with the next use whether the session is there, and for how long."""
        self._saved.refresh()

    def delete(self) -> None:
        """Delete the session with everything in it.

        Raises
        ------
        SessionNotFound
            It is gone already.
        """
        if not self.store.delete_session(self.number):
            raise SessionNotFound(self.id)
        self._saved.refresh()

    def fork(self, session_id: str) -> SessionState:
        """Copy the session: its variables without their past, programs and metadata.

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
            ``"variables"``, ``"programs"`` or ``"metadata"``, and what it offers to workers.
        """
        service = self._services[part]
        if method not in service.REMOTE:
            msg = f"a session's {part} have no method {method!r} for workers"
            raise ValueError(msg)
        return bound(service, source, method)


def _watch(service: VariableService, store: Store, pattern: str) -> Watch:
    return Watch(service, pattern, store.hub)


def bound(service: Service, source: str, method: str) -> Callable[..., Any]:
    """Return a method of a service that knows who calls it."""
    found: Callable[..., Any] = getattr(service, method)
    return partial(found, source=source) if method in service.WRITES else found


def open_session(
    session_id: str,
    *,
    ttl: float | str | None = DEFAULT,
    metadata: Mapping[str, Any] | None = None,
    store: str | os.PathLike[str] | Store | None = None,
    max_variable_bytes: int = MAX_VARIABLE_BYTES,
) -> SessionState:
    """Return a session's variables, programs and metadata; make the session if there is none.

    No pool is needed. All who name the same session of the same store share it.

    Parameters
    ----------
    session_id
        1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
    ttl
        Seconds that it lives without being used; None for ever. Default: what the session has; for
        a new one 24 hours in a notebook, an hour elsewhere.
    metadata
        Notes for a session that is new.
    store
        A path, or ``sqlite:///PATH``. Default: ``sessions.sqlite`` in the data directory.
    max_variable_bytes
        What one value of a variable may take in the store.

    Raises
    ------
    TypeError, ValueError
        An argument is wrong; it is named.
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
    """Return seconds to live.

    Raises
    ------
    TypeError, ValueError
        It is no number above 0.
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
    """Return what belongs to no session: the global programs."""
    row = SessionRow(number=GLOBAL, id="", created=0.0, used=time.time(), ttl=None, expires=None)
    return SessionState(store, row)


def sessions_of(store: Store) -> list[SessionInfo]:
    """Return the sessions of a store, the one used last first."""
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


def where_we_are() -> str:
    """Return who writes, for people."""
    return "notebook" if is_notebook() else "script"
