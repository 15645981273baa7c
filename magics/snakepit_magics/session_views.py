"""Views of sessions and their variables in a notebook: HTML tables, and text."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterable, Sequence

from snakepit_kernel import Change, Process, SessionInfo, SessionStats, Variable
from snakepit_kernel.printable import printable
from snakepit_kernel.sessions.variables import COLUMNS, row_of, shown, table_of
from snakepit_kernel.shells.process import HEADINGS


class VariableList(list[Variable]):
    """List of variables that is displayed as a table."""

    def _repr_html_(self) -> str:
        return table_of(self)

    def __repr__(self) -> str:
        return _text(COLUMNS, map(row_of, self)) if self else "no variables"

    def _repr_pretty_(self, printer: object, _: bool) -> None:
        printer.text(repr(self))  # type: ignore[attr-defined]


class ProcessList(list[Process]):
    """List of background processes that is displayed as a table."""

    def _repr_html_(self) -> str:
        return _html(HEADINGS, self._rows())

    def __repr__(self) -> str:
        return _text(HEADINGS, self._rows()) if self else "no processes"

    def _repr_pretty_(self, printer: object, _: bool) -> None:
        printer.text(repr(self))  # type: ignore[attr-defined]

    def _rows(self) -> list[Sequence[str]]:
        return [process.as_row() for process in self]


class SessionList(list[SessionInfo]):
    """List of sessions that is displayed as a table.

    Parameters
    ----------
    sessions
        The sessions.
    chosen
        Name of the chosen session.
    """

    def __init__(self, sessions: Iterable[SessionInfo], chosen: str) -> None:
        super().__init__(sessions)
        self._chosen = chosen

    def _rows(self) -> list[Sequence[str]]:
        return [
            (
                "*" if session.id == self._chosen else "",
                printable(session.id),
                str(session.variables),
                str(session.programs),
                f"{session.size_bytes:,}",
                f"{session.used:%Y-%m-%d %H:%M}",
                "never" if session.expires is None else f"{session.expires:%Y-%m-%d %H:%M}",
            )
            for session in self
        ]

    def _repr_html_(self) -> str:
        return _html(_SESSION_COLUMNS, self._rows())

    def __repr__(self) -> str:
        return _text(_SESSION_COLUMNS, self._rows())

    def _repr_pretty_(self, printer: object, _: bool) -> None:
        printer.text(repr(self))  # type: ignore[attr-defined]


_SESSION_COLUMNS = ("", "session", "variables", "programs", "bytes", "used", "expires")


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


def _html(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table as HTML."""
    head = "".join(f"<th>{word}</th>" for word in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table as text."""
    table = [columns, *rows]
    widths = [max(len(row[number]) for row in table) for number in range(len(columns))]
    lines = (
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)
