"""The table of notebooks: which file had which session."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .database import Database

NOTEBOOK_TTL = 365 * 86400.0
"""Seconds after which a notebook that was not opened is forgotten, if its session is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotebookRow:
    """What is known of a notebook, as its kernel last saw it.

    Attributes
    ----------
    session
        Name of its session.
    path
        Path of its file; empty if it is not known.
    inode
        Number of its file in the file system; 0 if the file is not known.
    born
        When the file was made, in seconds since the epoch; 0 if the file system does not tell. An
        inode may be used again, but not with the same time.
    cells
        Ids of its cells.
    kernel
        Connection file of its kernel, which a restart keeps; empty if that is no identity.
    """

    session: str
    path: str
    inode: int
    born: float
    cells: frozenset[str]
    kernel: str


class NotebookTable:
    """The table of notebooks.

    Parameters
    ----------
    database
        The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, *, path: str, inode: int, kernel: str, session: str) -> list[NotebookRow]:
        """Return the notebooks that share any of these, the one seen last first."""
        select = (
            "SELECT session, path, inode, born, cells, kernel FROM notebooks"
            " WHERE session = ? OR path = ? OR (inode = ? AND inode <> 0)"
            " OR (kernel = ? AND kernel <> '') ORDER BY seen DESC"
        )
        rows = self._database.read(select, (session, path, inode, kernel))
        return [_notebook(row) for row in rows]

    def note(self, row: NotebookRow) -> None:
        """Store what is known of the notebook of a session, in place of what was known before."""
        self._database.write(
            "INSERT OR REPLACE INTO notebooks (session, path, inode, born, cells, kernel, seen)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *(row.session, row.path, row.inode, row.born),
                *(json.dumps(sorted(row.cells)), row.kernel, time.time()),
            ),
        )

    def sweep(self) -> None:
        """Forget notebooks that were not opened for long and have no session any more."""
        over = (time.time() - NOTEBOOK_TTL,)
        if self._database.read("SELECT 1 FROM notebooks WHERE seen < ? LIMIT 1", over):
            self._database.write(
                "DELETE FROM notebooks WHERE seen < ? AND session NOT IN (SELECT id FROM sessions)",
                over,
            )


def _notebook(row: Sequence[object]) -> NotebookRow:
    session, path, inode, born, cells, kernel = row
    return NotebookRow(
        session=session,  # type: ignore[arg-type]
        path=path,  # type: ignore[arg-type]
        inode=inode,  # type: ignore[arg-type]
        born=born,  # type: ignore[arg-type]
        cells=frozenset(json.loads(str(cells))),
        kernel=kernel,  # type: ignore[arg-type]
    )
