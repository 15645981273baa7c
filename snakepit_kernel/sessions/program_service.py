"""Services of a session's programs and metadata, in the owner's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..errors import (
    ProgramNotFound,
    SessionNotFound,
)
from ..ids import check_name
from ..protocol.codec import Codec, loads
from ..store.schema import GLOBAL
from ..validation import bounded
from .handle import SessionHandle
from .values import (
    Program,
    cannot_restore,
    encode,
    json_of,
    program_of,
    restored,
)

MAX_PROGRAMS = 200
"""Maximum number of a session's programs."""

MAX_GLOBAL_PROGRAMS = 10_000
"""Maximum number of global programs, which belong to no session."""

GLOBAL_PROGRAM_TTL = 3600.0
"""Default seconds that a global program lives without being used."""

MAX_PROGRAM_BYTES = 1 << 31
"""Maximum size of a program, pickled."""

MAX_NOTE_BYTES = 1 << 20
"""Maximum size of one entry of the metadata in the store."""


class ProgramService:
    """Serves the programs of a session, or the global ones, to notebook and workers.

    Parameters
    ----------
    session
        The session; that with the number `GLOBAL` for the global programs.
    """

    REMOTE: Final = frozenset({"load", "has", "put", "delete", "infos", "info"})
    WRITES: Final = frozenset({"put"})

    def __init__(self, session: SessionHandle) -> None:
        self._session = session
        self._number = session.row.number
        self._table = session.store.programs
        self._is_global = self._number == GLOBAL
        self._max_programs = MAX_GLOBAL_PROGRAMS if self._is_global else MAX_PROGRAMS

    def load(self, name: str) -> Any:
        """Return the object of a program."""
        self._session.touch()
        found = self._table.load(self._number, name)
        if found is None:
            raise self._missing(name)
        row, body = found
        self._table.touch(row)
        try:
            return loads(body)
        except Exception as error:
            store = self._session.store.path
            raise cannot_restore(store, f"program {name!r}", error) from error

    def put(
        self,
        name: str,
        value: Any,
        metadata: Mapping[str, Any] | None = None,
        ttl: float | None = None,
        *,
        source: str,
    ) -> Program:
        """Store an object as a program."""
        self._session.touch()
        check_name("program", name)
        if ttl is not None and not self._is_global:
            msg = "a program of a session lives as long as that; ttl is for global ones"
            raise ValueError(msg)
        lifetime = bounded(ttl or GLOBAL_PROGRAM_TTL) if self._is_global else None
        codec = Codec(max_bytes=MAX_PROGRAM_BYTES)
        row = self._table.store(
            self._number,
            name,
            encode("program", name, value, codec, "the most that a program may take"),
            metadata=json_of(metadata),
            source=source,
            ttl=lifetime,
            max_programs=self._max_programs,
        )
        if row is None:
            raise SessionNotFound(self._session.row.id)
        return program_of(row)

    def delete(self, name: str) -> None:
        """Delete a program."""
        self._session.touch()
        if not self._table.delete(self._number, name):
            raise self._missing(name)

    def has(self, name: str) -> bool:
        """Whether there is a program of that name."""
        self._session.touch()
        return self._table.find(self._number, name) is not None

    def infos(self) -> list[Program]:
        """Describe all programs, in the order of their names."""
        self._session.touch()
        rows = self._table.all(self._number)
        if not rows:
            self._session.check()
        return [program_of(row) for row in rows]

    def info(self, name: str) -> Program:
        """Describe a program."""
        self._session.touch()
        row = self._table.find(self._number, name)
        if row is None:
            raise self._missing(name)
        return program_of(row)

    def _missing(self, name: str) -> ProgramNotFound:
        self._session.check()
        return ProgramNotFound(name, [row.name for row in self._table.all(self._number)])


class MetadataService:
    """Serves the metadata of a session to notebook and workers.

    Parameters
    ----------
    session
        The session.
    """

    REMOTE: Final = frozenset({"all", "put", "delete"})
    WRITES: Final[frozenset[str]] = frozenset()

    def __init__(self, session: SessionHandle) -> None:
        self._session = session
        self._number = session.row.number
        self._table = session.store.sessions

    def all(self) -> dict[str, Any]:
        """Return all entries, by name."""
        self._session.touch()
        notes = self._table.metadata(self._number)
        if not notes:
            self._session.check()
        return {name: restored(body) for name, body in notes}

    def put(self, name: str, value: Any) -> None:
        """Store an entry."""
        self._session.touch()
        if not isinstance(name, str) or not name:
            msg = f"metadata is named by text, not by {name!r}"
            raise TypeError(msg)
        codec = Codec(max_bytes=MAX_NOTE_BYTES)
        body = encode("metadata", name, value, codec, "the most that a note may take")
        if not self._table.set_metadata(self._number, name, body):
            raise SessionNotFound(self._session.row.id)

    def delete(self, name: str) -> None:
        """Delete an entry."""
        self._session.touch()
        if not self._table.delete_metadata(self._number, name):
            raise KeyError(name)
