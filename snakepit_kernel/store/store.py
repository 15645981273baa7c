"""The store: one database and its tables, shared within this process."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from weakref import WeakValueDictionary

from ..errors import StoreError
from ..files import make_directory
from ..locks import Lock
from ..paths import DATA_VARIABLE, data_dir
from .change_feed import ChangeHub
from .database import Database, failure
from .notebook_table import NotebookTable
from .program_table import ProgramTable
from .session_table import SessionRow, SessionTable, copy_session
from .variable_table import VariableTable

SWEEP_INTERVAL = 60.0
"""Seconds between sweeps for expired rows."""

FILE_NAME = "sessions.sqlite"


class Store:
    """Sessions, variables and programs, durable beyond every process.

    Another back end would be another class with these attributes.

    Parameters
    ----------
    path
        The database file. Large programs are in a folder next to it.

    Attributes
    ----------
    sessions, notebooks, variables, programs
        The tables.
    hub
        Notifies listeners of changes.
    reads
        Number of reads of each variable by this process, by the number of its session.
    is_closed
        Whether it was closed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            make_directory(path.parent)
        except OSError as error:
            raise failure(path, error) from error
        self._database = Database(path)
        self.sessions = SessionTable(self._database)
        self.notebooks = NotebookTable(self._database)
        self.variables = VariableTable(self._database)
        self.programs = ProgramTable(self._database, path.with_name(f"{path.name}-programs"))
        self.hub = ChangeHub(path)
        self.reads: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._swept = time.monotonic()
        self.is_closed = False

    def __repr__(self) -> str:
        return f"<Store {str(self.path)!r}>"

    def sweep(self) -> list[SessionRow]:
        """Delete everything that has expired; return the deleted sessions."""
        self._swept = time.monotonic()
        files = {row.number: self.programs.files_of(row.number) for row in self.sessions.expired()}
        swept = self.sessions.sweep()
        for row in swept:
            self.reads.pop(row.number, None)
            self.programs.remove_files(files.get(row.number, ()))
        self.variables.sweep()
        self.programs.sweep()
        self.notebooks.sweep()
        return swept

    def sweep_if_due(self) -> list[SessionRow]:
        """Do the same, at most once in `SWEEP_INTERVAL`."""
        return self.sweep() if time.monotonic() - self._swept > SWEEP_INTERVAL else []

    def delete_session(self, number: int) -> bool:
        """Delete a session with everything in it; return whether it existed."""
        files = self.programs.files_of(number)
        was_there = self.sessions.delete(number)
        if was_there:
            self.programs.remove_files(files)
            self.reads.pop(number, None)
        return was_there

    def copy_session(self, number: int, target: int) -> None:
        """Copy the contents of a session to another one; variables without their history."""
        self._database.transaction(lambda connection: copy_session(connection, number, target))
        self.programs.copy(number, target)

    def check(self) -> list[str]:
        """Return the file's defects, one line each; an empty list when it is intact."""
        return self._database.check()

    def rest(self) -> None:
        """Close idle connections; the next use opens the file again."""
        self._database.checkpoint()
        self._database.close_idle()

    def close(self) -> None:
        """Close the database; a later use is an error. `open_store` then returns a new one."""
        self.is_closed = True
        self._database.close()


_stores: WeakValueDictionary[str, Store] = WeakValueDictionary()
_opening = Lock()


def open_store(where: str | os.PathLike[str] | Store | None = None) -> Store:
    """Return the store of a file; callers that name the same file share one.

    Parameters
    ----------
    where
        A path, or ``sqlite:///PATH``. Default: ``sessions.sqlite`` in the data directory.

    Raises
    ------
    TypeError, ValueError
        It is not a path, or an unknown kind of database.
    StoreError
        Its directory cannot be created or used.
    """
    if isinstance(where, Store):
        return where
    path = _path_of(where) if where is not None else _default_path()
    with _opening:
        store = _stores.get(str(path))
        if store is None or store.is_closed:
            store = _stores[str(path)] = Store(path)
        return store


def _default_path() -> Path:
    try:
        return data_dir() / FILE_NAME
    except PermissionError as error:
        remedy = f"see that it is yours, or set {DATA_VARIABLE}"
        raise StoreError(FILE_NAME, str(error), remedy) from error


def check_store(
    where: str | os.PathLike[str] | Store | None,
) -> str | os.PathLike[str] | Store | None:
    """Validate the argument of `open_store`, without opening the store; raise the same errors."""
    if where is None or isinstance(where, Store):
        return where
    return _path_of(where)


def _path_of(where: str | os.PathLike[str]) -> Path:
    if not isinstance(where, str | os.PathLike):
        msg = f"store must be a path or a URL, not {type(where).__name__}"
        raise TypeError(msg)
    text = os.fspath(where)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "sqlite":
        msg = f"store {text!r}: {scheme!r} is not known; use a path, or sqlite:///PATH"
        raise ValueError(msg)
    path = Path(rest.removeprefix("/") if separator else text)
    if separator and rest.startswith("//"):
        path = Path(rest[1:])
    if not path.name or os.path.isdir(path):  # noqa: PTH112 - false where it is not accessible
        msg = f"store {text!r} is not the path of a file"
        raise ValueError(msg)
    return path.absolute()


def _after_fork_in_child() -> None:
    global _opening  # noqa: PLW0603 - another thread of the parent may hold it
    _opening = Lock()
    for store in list(_stores.values()):
        store.hub.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
