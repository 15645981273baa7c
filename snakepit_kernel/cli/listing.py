"""Tables of the commands: plain lines for pipes, boxes for terminals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table

from ..output.tables import Table as TextTable
from ..printable import printable

MAX_CELL, MAX_LINE = 200, 2000
"""Maximum characters of a table cell, and of a line above or below; JSON has them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The contents of a table, for text or a terminal.

    Attributes
    ----------
    title, footer, notes
        The lines above and below it.
    headings, rows, numbers
        See `snakepit_kernel.output.tables.Table`.
    """

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: Collection[str] = ()
    footer: str = ""
    notes: Sequence[str] = ()

    def as_text(self) -> str:
        """Return it as plain lines, for pipes."""
        table = TextTable(headings=self.headings, rows=self._cells(), numbers=self.numbers)
        return "\n".join([self._above(), table.as_text(), *self._below()])

    def _above(self) -> str:
        return printable(self.title, limit=MAX_LINE)

    def _cells(self) -> list[list[str]]:
        return [[printable(cell, limit=MAX_CELL) for cell in row] for row in self.rows]

    def _below(self) -> list[str]:
        return [printable(line, limit=MAX_LINE) for line in (self.footer, *self.notes) if line]

    def as_table(self) -> Table:
        """Return it as a table, for terminals."""
        table = Table(
            title=self._above(), caption="\n".join(self._below()) or None, title_justify="left"
        )
        table.caption_justify = "left"
        for heading in self.headings:
            is_number = heading in self.numbers
            table.add_column(heading, overflow="fold", justify="right" if is_number else "left")
        for row in self._cells():
            table.add_row(*row)
        return table


def plain_console() -> Console:
    """Return a console that prints texts without interpreting markup."""
    return Console(markup=False, highlight=False, emoji=False)


def print_listings(listings: Sequence[Listing]) -> None:
    """Print tables, with an empty line between two of them."""
    console = plain_console()
    for listing in listings:
        if console.is_terminal:
            console.print(listing.as_table())
        else:
            click.echo(listing.as_text() + ("\n" if listing is not listings[-1] else ""))
