"""Which session is a notebook's own: found again when its file is renamed, never another one's.

A front end tells the kernel the notebook's path as it was when the kernel was first started. The
path alone is no identity: a renamed notebook has another one, and a new notebook may get the old
one. The file is known by its inode and the time when it was made, which a rename and a save by
Jupyter Server keep (`jupyter_server.services.contents.fileio.atomic_writing` writes in place); the
kernel by its connection file, which a restart keeps. A file that was replaced, as by ``git
checkout``, is known by the ids of its cells. Where all of that leaves a doubt, the notebook gets
a session of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from ..files import birth_of, read_json
from ..store.notebook_table import NotebookRow
from ..store.store import Store

MAX_CELLS = 200
"""Cells whose ids are kept: the first ones."""

MAX_FILE_BYTES = 64 * 2**20
"""Largest file whose cells are read."""

CLOCK_SLACK = 60.0
"""Seconds that the clocks of two file systems may differ."""

_KERNEL_FILE = re.compile(r"([A-Za-z0-9-]{20,}|tmp[a-z0-9_]{8})\.json")
"""Name of a connection file that no other kernel will have: made of a UUID, or by `tempfile`, and
not of a pid."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The session that is chosen for a notebook.

    Attributes
    ----------
    session
        Its name.
    doubtful
        Name of a session that may be the notebook's, but need not; None for none.
    owns_file
        Whether the file at the notebook's path is surely its own.
    """

    session: str
    doubtful: str | None = None
    owns_file: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnSession:
    """The session of a notebook.

    Attributes
    ----------
    name
        Its name.
    doubtful
        Name of a session that may have been this notebook's, and was not chosen; None for none.
    """

    name: str
    doubtful: str | None = None


def find_own_session(store: Store, path: str, connection_file: str) -> OwnSession:
    """Return the session of a notebook, and store what is known of the notebook.

    Parameters
    ----------
    store
        The store of sessions.
    path
        Absolute path of the notebook, as the front end has told it.
    connection_file
        Path of the kernel's connection file.

    Raises
    ------
    StoreError
        The store cannot be read or written.
    """
    notebook = look_at(path, connection_file)
    natural = name_of_path(path)
    known = store.notebooks.find(
        path=path, inode=notebook.inode, kernel=notebook.kernel, session=natural
    )
    natural_row = store.sessions.find(natural)
    choice = choose(
        notebook,
        known,
        natural=natural,
        made=None if natural_row is None else natural_row.created,
        started=birth_of(connection_file) if notebook.kernel else 0.0,
        has_moved=_is_beside,
    )
    _note(store, notebook, choice, known)
    other = choice.doubtful
    return OwnSession(
        name=choice.session,
        doubtful=other if other is not None and store.sessions.find(other) is not None else None,
    )


def _note(
    store: Store, notebook: NotebookRow, choice: Choice, known: Sequence[NotebookRow]
) -> None:
    """Store what is known of a notebook: its file only if that is surely its own."""
    before = next((row for row in known if row.session == choice.session), None)
    if choice.owns_file or (before is not None and _is_same_file(notebook, before)):
        noted = notebook
    elif before is not None:
        noted = replace(before, kernel=notebook.kernel or before.kernel)
    elif notebook.kernel:
        noted = replace(notebook, path="", inode=0, born=0.0, cells=_NONE)
    else:
        return
    store.notebooks.note(replace(noted, session=choice.session))


def look_at(path: str, connection_file: str) -> NotebookRow:
    """Return what is known of a notebook without its session."""
    kernel = connection_file if _KERNEL_FILE.fullmatch(PurePath(connection_file).name) else ""
    try:
        status = os.stat(path)  # noqa: PTH116 - no more than numbers
    except OSError:  # a notebook of another machine, or one that was renamed
        return NotebookRow(session="", path=path, inode=0, born=0.0, cells=_NONE, kernel=kernel)
    return NotebookRow(
        session="",
        path=path,
        inode=status.st_ino % 2**63,  # as SQLite holds it
        born=birth_of(path),
        cells=_cells_of(Path(path)) if status.st_size <= MAX_FILE_BYTES else _NONE,
        kernel=kernel,
    )


_NONE: frozenset[str] = frozenset()


def _cells_of(path: Path) -> frozenset[str]:
    """Return the ids of the cells of a notebook's file; none if it has none, or is none."""
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return _NONE
    cells = document.get("cells") if isinstance(document, dict) else None
    if not isinstance(cells, list):
        return _NONE
    ids = [cell.get("id") for cell in cells[:MAX_CELLS] if isinstance(cell, dict)]
    return frozenset(cell_id for cell_id in ids if isinstance(cell_id, str))


# -- the choice ------------------------------------------------------------------------------------


def choose(
    notebook: NotebookRow,
    known: Sequence[NotebookRow],
    *,
    natural: str,
    made: float | None,
    started: float,
    has_moved: Callable[[NotebookRow], bool],
) -> Choice:
    """Choose the session of a notebook.

    Parameters
    ----------
    notebook
        What is known of it.
    known
        The notebooks that share something with it, the one seen last first.
    natural
        The name that its path makes.
    made
        When the session of that name was made; None if there is none.
    started
        When its kernel was first started; 0 if that is not known.
    has_moved
        Returns whether the file of a known notebook is there under another name.
    """
    for row in known:
        if notebook.kernel and row.kernel == notebook.kernel:
            return Choice(row.session)  # a restart
    before = next((row for row in known if row.path == notebook.path), None)
    doubtful = None if before is None else before.session
    if not notebook.inode:
        return Choice(natural) if before is None else Choice(_fresh(natural), doubtful)
    if started and notebook.born > started + CLOCK_SLACK:
        # The kernel's own notebook had this path when it was started, and has left it to another.
        return Choice(_fresh(natural), doubtful)
    for row in known:
        if _is_same_file(notebook, row):
            return Choice(row.session, owns_file=True)
    if before is not None:
        if _share(notebook, before) and not has_moved(before):
            return Choice(before.session, owns_file=True)  # replaced by a version of itself
        return Choice(_fresh(natural), doubtful, owns_file=True)
    if any(row.session == natural and row.inode for row in known):
        # Of a notebook that was renamed, and has been opened by its other name since.
        return Choice(_fresh(natural), owns_file=True)
    if made is not None and notebook.born > made + CLOCK_SLACK:
        # Of an earlier file: from before notebooks were noted.
        return Choice(_fresh(natural), natural, owns_file=True)
    return Choice(natural, owns_file=True)


def _is_same_file(one: NotebookRow, other: NotebookRow) -> bool:
    if not one.inode or one.inode != other.inode:
        return False
    if one.born and other.born:
        return one.born == other.born
    # Without its time the inode may be that of a file which is gone.
    has_cells = one.cells or other.cells
    return _share(one, other) if has_cells else one.path == other.path


def _share(one: NotebookRow, other: NotebookRow) -> bool:
    """Whether two notebooks have at least half of the cells of the smaller one in common."""
    common = len(one.cells & other.cells)
    return common > 0 and 2 * common >= min(len(one.cells), len(other.cells))


def _is_beside(row: NotebookRow) -> bool:
    """Whether the file of a notebook is in its folder under another name."""
    try:
        with os.scandir(os.path.dirname(row.path)) as entries:  # noqa: PTH120 - no more than text
            beside = [
                entry.path
                for entry in entries
                if entry.inode() % 2**63 == row.inode and entry.path != row.path
            ]
    except OSError:  # it cannot be known
        return True
    return any(not row.born or birth_of(path) in {0.0, row.born} for path in beside)


# -- names -----------------------------------------------------------------------------------------


def name_of_path(path: str) -> str:
    """Return the session name that a path makes: the file's stem, and a digest of the path."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path).stem).strip("-._") or "notebook"
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem[:50]}-{digest}"


def _fresh(natural: str) -> str:
    """Return a name that no session has."""
    return f"{natural[:-9]}-{secrets.token_hex(4)}"
