"""Views of sessions, variables, processes and jobs in a notebook: tables in HTML, and text."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TypeVar

from snakepit_kernel import Change, Process, SessionInfo, SessionStats, Variable
from snakepit_kernel.output.html import page
from snakepit_kernel.output.html import shown as escaped
from snakepit_kernel.output.tables import Cell, Table, moment
from snakepit_kernel.printable import duration, printable
from snakepit_kernel.sessions.variables import shown, table_of
from snakepit_kernel.shells.process import NO_PROCESSES
from snakepit_kernel.shells.process import table_of as table_of_processes

from .jobs import Job

MAX_TITLE = 80
"""Characters of a job's title in a table."""

T = TypeVar("T")


class TableList(list[T], ABC):
    """A list that is displayed as a table, or as a phrase when it is empty."""

    nothing: str

    @abstractmethod
    def table(self) -> Table:
        """Return the table."""

    def _repr_html_(self) -> str:
        return self.table().as_page() if self else page(escaped(self.nothing))

    def __repr__(self) -> str:
        return self.table().as_text() if self else self.nothing

    def _repr_pretty_(self, printer: object, _: bool) -> None:
        printer.text(repr(self))  # type: ignore[attr-defined]


class VariableList(TableList[Variable]):
    """List of variables that is displayed as a table."""

    nothing = "no variables"

    def table(self) -> Table:
        """Return the table."""
        return table_of(self)


class ProcessList(TableList[Process]):
    """List of background processes that is displayed as a table."""

    nothing = NO_PROCESSES

    def table(self) -> Table:
        """Return the table."""
        return table_of_processes(self)


class JobList(TableList[Job]):
    """List of background jobs that is displayed as a table."""

    nothing = "no jobs"

    def table(self) -> Table:
        """Return the table."""
        rows = [
            (
                str(job.number),
                Cell(text=job.state, state=job.state),
                duration(job.seconds),
                Cell(text=printable(job.title, limit=MAX_TITLE), title=job.title),
            )
            for job in self
        ]
        return Table(headings=("job", "state", "for", "what"), rows=rows, numbers={"job", "for"})


class SessionList(TableList[SessionInfo]):
    """List of sessions that is displayed as a table.

    Parameters
    ----------
    sessions
        The sessions.
    chosen
        Name of the chosen session.
    """

    nothing = "no sessions"

    def __init__(self, sessions: Iterable[SessionInfo], chosen: str) -> None:
        super().__init__(sessions)
        self._chosen = chosen

    def table(self) -> Table:
        """Return the table."""
        rows = [
            (
                "*" if session.id == self._chosen else "",
                printable(session.id),
                str(session.variables),
                str(session.programs),
                f"{session.size_bytes:,}",
                moment(session.used),
                moment(session.expires),
            )
            for session in self
        ]
        return Table(headings=_SESSION_HEADINGS, rows=rows, numbers=_SESSION_NUMBERS)


_SESSION_NUMBERS = ("variables", "programs", "bytes")
_SESSION_HEADINGS = ("", "session", *_SESSION_NUMBERS, "used", "expires")


class StatsView:
    """Statistics of a session, for people.

    Parameters
    ----------
    name
        Name of the session.
    stats
        The statistics.
    """

    def __init__(self, name: str, stats: SessionStats) -> None:
        self._name = name
        self.stats = stats

    def __repr__(self) -> str:
        stats = self.stats
        types = ", ".join(f"{count} {kind}" for kind, count in sorted(stats.types.items()))
        read = ", ".join(f"{name} {count}" for name, count in stats.most_read)
        return (
            f"session    {printable(self._name)}\n"
            f"variables  {stats.variables}, {stats.variable_bytes:,} bytes"
            f"{f': {printable(types)}' if types else ''}\n"
            f"programs   {stats.programs}, {stats.program_bytes:,} bytes\n"
            f"growth     {stats.registered_last_hour} registered in the last hour, "
            f"{stats.registered_last_day} in the last day; {stats.updates} updates\n"
            f"reads      {stats.reads} in this kernel{f': {printable(read)}' if read else ''}"
        )


def print_change(change: Change) -> None:
    """Print a change of a watched variable."""
    value = "" if change.kind == "deleted" else f" = {shown(change.value)}"
    about = f"{change.kind} by {printable(change.source)}, version {change.version}"
    sys.stdout.write(
        f"{printable(change.name)}{value}  ({about})\n"
    )  # print() may be cut before its newline


def type_for(value: object) -> str:
    """Return the default variable type for a value."""
    for kind, name in _TYPES:
        if type(value) is kind:
            return name
    return "array" if type(value).__name__ == "ndarray" else "any"


_TYPES = (
    *((bool, "boolean"), (int, "integer"), (float, "float"), (str, "string")),
    *((list, "list"), (dict, "dict"), (bytes, "bytes")),
)
